import pytest
import torch

from surrogate.errors import SurrogateError
from surrogate.features import (
    PCA,
    Encoder,
    EncoderModel,
    Flatten,
    Identity,
    PrincipalComponents,
    Standardize,
    Standardizer,
)
from tests.contracts.surrogate_contract import seeded

DESIGNS = torch.tensor([[[1.0, 0.1], [2.0, 5.0]], [[3.0, 0.1], [2.0, 9.0]], [[5.0, 0.1], [2.0, 13.0]]])


def test_flatten_keeps_the_numbers():
    X = Flatten()(DESIGNS)
    assert isinstance(Flatten(), Encoder)
    assert X.tolist() == DESIGNS.reshape(3, 4).tolist()


def test_standardize_by_hand():
    encoder = Standardize(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.5]))
    assert isinstance(encoder, Encoder)
    assert encoder(torch.tensor([[3.0, 1.0]])).tolist() == [[1.0, -2.0]]


def test_fitted_columns_have_mean_0_and_std_1_unless_constant():
    encoder = Standardize.of(DESIGNS)
    X = encoder(DESIGNS.double())
    torch.testing.assert_close(X.mean(0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(X.std(0), torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64))
    assert encoder.std.tolist() == [2.0, 1.0, 1.0, 4.0]


def test_rounding_of_a_constant_is_no_spread():
    column = torch.tensor([[0.3], [0.1 * 3]] * 5, dtype=torch.float64)
    assert column.std() > 0
    assert Standardize.of(column).std.item() == 1
    assert Standardize.of(1e-12 * torch.tensor([[1.0], [2.0]])).std.item() < 1e-12, "small is not constant"


def test_keeps_the_dtype_and_passes_gradients():
    designs = DESIGNS.clone().requires_grad_()
    X = Standardize.of(DESIGNS)(designs)
    assert X.dtype == torch.float32
    (gradient,) = torch.autograd.grad(X.sum(), designs)
    torch.testing.assert_close(gradient.flatten(1)[0], torch.tensor([0.5, 1.0, 1.0, 0.25]))


def test_refusals():
    with pytest.raises(SurrogateError, match="at least 2 designs, got 1"):
        Standardize.of(DESIGNS[:1])
    with pytest.raises(SurrogateError, match=r"expected positive std, got 0.0 in column 1"):
        Standardize(torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(SurrogateError, match=r"expected 2 features.*got 4"):
        Standardize(torch.zeros(2), torch.ones(2))(DESIGNS)


@pytest.mark.parametrize("recipe", [Identity(), Flatten(), Standardizer(), PrincipalComponents(2)])
def test_recipes_give_frozen_differentiable_encoders_of_independent_rows(recipe):
    designs = torch.randn(20, 4, generator=seeded(), dtype=torch.float64)
    encoder = recipe.fit(designs)
    assert isinstance(recipe, EncoderModel)
    assert isinstance(encoder, Encoder)
    X = designs[:3].clone().requires_grad_()
    assert torch.autograd.gradcheck(encoder, X)
    torch.testing.assert_close(encoder(designs)[4:5], encoder(designs[4:5]))
    assert encoder(designs.float()).dtype == torch.float32


def test_no_designs_have_no_rows():
    designs = torch.randn(20, 2, 2, generator=seeded())
    for recipe in (Flatten(), Standardizer(), PrincipalComponents(3)):
        assert recipe.fit(designs)(designs[:0]).shape == (
            0,
            3 if isinstance(recipe, PrincipalComponents) else 4,
        )


def test_identity_takes_rows_only():
    rows = DESIGNS.flatten(1)
    assert Identity()(rows) is rows
    with pytest.raises(SurrogateError, match=r"shape \(n, d\), got \(3, 2, 2\): use Flatten"):
        Identity().fit(DESIGNS)


def test_standardizer_is_the_recipe_of_standardize():
    encoder = Standardizer().fit(DESIGNS)
    assert torch.equal(encoder.mean, Standardize.of(DESIGNS).mean)
    assert torch.equal(encoder.std, Standardize.of(DESIGNS).std)


def stretched(n, d=5):
    """Designs whose variance lies along the axes: 16, 4, 1, … of them rotated by nothing, shifted by 7."""
    scales = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64)[:d]
    return 7 + torch.randn(n, d, generator=seeded(3), dtype=torch.float64) * scales


def test_pca_by_hand():
    designs = torch.tensor([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]])
    encoder = PrincipalComponents(1, whitens=False).fit(designs)
    assert encoder.mean.tolist() == [3.0, 3.0]
    torch.testing.assert_close(encoder.basis, torch.full((1, 2), 0.5**0.5, dtype=torch.float64))
    torch.testing.assert_close(
        encoder(designs.double())[:, 0], torch.tensor([-8.0, 0.0, 8.0]).double().sign() * 8**0.5
    )
    whitened = PrincipalComponents(1).fit(designs)
    torch.testing.assert_close(whitened(designs.double())[:, 0], torch.tensor([-1.0, 0.0, 1.0]).double())


def test_pca_components_are_uncorrelated_and_in_order():
    designs = stretched(200)
    kept = PrincipalComponents(5, whitens=False).fit(designs)(designs)
    covariance = kept.T.cov()
    torch.testing.assert_close(covariance, covariance.diagonal().diag(), atol=1e-9, rtol=0)
    assert (covariance.diagonal().diff() < 0).all()
    torch.testing.assert_close(covariance.trace(), designs.T.cov().trace())
    whitened = PrincipalComponents(5).fit(designs)(designs)
    torch.testing.assert_close(whitened.T.cov(), torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize(("share", "n"), [(0.5, 1), (0.9, 2), (0.96, 3), (1.0, 5)])
def test_pca_keeps_as_many_components_as_explain_the_share(share, n):
    designs = stretched(400)
    encoder = PrincipalComponents(explained=share).fit(designs)
    assert len(encoder.scale) == n
    variances = encoder.scale.square()
    assert variances.sum() >= (share - 1e-12) * designs.T.cov().trace()
    assert n == 1 or variances[:-1].sum() < share * designs.T.cov().trace()


def test_pca_of_fewer_designs_than_columns():
    designs = torch.randn(6, 40, generator=seeded(), dtype=torch.float64)
    encoder = PrincipalComponents(explained=1.0).fit(designs)
    assert encoder.basis.shape == (5, 40)
    back = encoder.mean + (encoder(designs) * encoder.scale) @ encoder.basis
    torch.testing.assert_close(back, designs)
    with pytest.raises(SurrogateError, match=r"at least 6 directions, got 6 designs that vary in 5"):
        PrincipalComponents(6).fit(designs)


def test_pca_of_images_and_their_signs():
    images = torch.randn(30, 1, 4, 4, generator=seeded())
    encoder = PrincipalComponents(3).fit(images)
    assert encoder(images).shape == (30, 3)
    mirrored = PrincipalComponents(3).fit(-images)
    torch.testing.assert_close(mirrored.basis, encoder.basis)
    assert (encoder.basis.gather(1, encoder.basis.abs().argmax(1, keepdim=True)) > 0).all()


def test_pca_refusals():
    for wrong in ({}, {"n_components": 2, "explained": 0.5}):
        with pytest.raises(SurrogateError, match="either n_components or explained"):
            PrincipalComponents(**wrong)
    with pytest.raises(SurrogateError, match="n_components must be at least 1, got 0"):
        PrincipalComponents(0)
    with pytest.raises(SurrogateError, match=r"explained must be above 0 and at most 1, got 1\.5"):
        PrincipalComponents(explained=1.5)
    with pytest.raises(SurrogateError, match="at least 2 designs, got 1"):
        PrincipalComponents(1).fit(DESIGNS[:1])
    with pytest.raises(SurrogateError, match=r"at least 1 directions, got 4 designs that vary in 0"):
        PrincipalComponents(explained=0.9).fit(torch.full((4, 3), 0.1))
    with pytest.raises(SurrogateError, match=r"expected 4 features a design, got 3"):
        PrincipalComponents(1).fit(DESIGNS)(torch.zeros(2, 3))
    with pytest.raises(SurrogateError, match=r"positive scales, got 0.0 for component 1"):
        PCA(torch.zeros(2), torch.eye(2), torch.tensor([1.0, 0.0]))
