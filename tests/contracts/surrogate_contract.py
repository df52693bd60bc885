"""What every surrogate must do: subclass `SurrogateContract` in a test module, with a fixture `recipe`."""

from dataclasses import fields, is_dataclass

import pytest
import torch
from torch import Generator, Tensor

from surrogate.base import Dataset, Surrogate, SurrogateModel
from surrogate.errors import FitError, SurrogateError
from surrogate.state import load, save


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def wavy(X: Tensor) -> Tensor:
    return torch.sin(2 * X[:, 0]) + 0.5 * X[:, 1] ** 2 - 0.3 * X[:, 1] * X[:, 2]


def observations(n: int = 40, seed: int = 1) -> Dataset:
    X = torch.randn(n, 3, generator=seeded(seed), dtype=torch.float64)
    return Dataset(X, wavy(X))


def queries(n: int = 6) -> Tensor:
    return torch.randn(n, 3, generator=seeded(7), dtype=torch.float64)


def repeated_rows() -> Dataset:
    data = observations(10)
    return Dataset(data.X.repeat(4, 1), data.y.repeat(4))


def contradictory_rows() -> Dataset:
    data = observations(10)
    return Dataset(data.X.repeat(2, 1), torch.cat([data.y, -data.y]))


def constant_features() -> Dataset:
    data = observations()
    return Dataset(torch.cat([data.X, torch.full((40, 2), 0.1, dtype=torch.float64)], dim=1), data.y)


def one_outlier() -> Dataset:
    data = observations()
    return Dataset(data.X, torch.where(torch.arange(40) == 5, 1e4, data.y))


def more_features_than_rows() -> Dataset:
    X = torch.randn(8, 30, generator=seeded(), dtype=torch.float64)
    return Dataset(X, wavy(X))


def tensors_in(part: object) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    if isinstance(part, tuple):
        return [tensor for item in part for tensor in tensors_in(item)]
    return [t for f in fields(part) for t in tensors_in(getattr(part, f.name))] if is_dataclass(part) else []


BAD_DATA = {
    "all y equal": Dataset(observations().X, torch.full((40,), 0.1, dtype=torch.float64)),
    "all X equal": Dataset(torch.ones(40, 3, dtype=torch.float64), observations().y),
    "two rows": observations(2),
    "duplicates": repeated_rows(),
    "contradictions": contradictory_rows(),
    "y of 1e9": Dataset(observations().X, 1e9 * observations().y),
    "y of 1e-9": Dataset(observations().X, 1e-9 * observations().y),
    "y far from 0": Dataset(observations().X, 1e9 + observations().y),
    "X of 1e9": Dataset(1e9 * observations().X, observations().y),
    "X of 1e-9": Dataset(1e-9 * observations().X, observations().y),
    "constant features": constant_features(),
    "an outlier": one_outlier(),
    "one feature": Dataset(observations().X[:, :1], observations().y),
    "d > n": more_features_than_rows(),
    "noise known to be 0": Dataset(
        repeated_rows().X, repeated_rows().y, torch.zeros(40, dtype=torch.float64)
    ),
}


class SurrogateContract:
    """The suite. `tolerance` is what rounding may change, in units of std(y)."""

    tolerance = 1e-3

    @pytest.fixture
    def recipe(self) -> SurrogateModel:
        raise NotImplementedError("give the class a fixture `recipe` that returns the model under test")

    @pytest.fixture
    def fitted(self, recipe: SurrogateModel) -> Surrogate:
        return recipe.fit(observations(), generator=seeded())

    def assert_same(
        self, surrogate: Surrogate, mean: Tensor, std: Tensor, X: Tensor, scale: float = 1.0
    ) -> None:
        posterior = surrogate.posterior(X)
        torch.testing.assert_close(posterior.mean, mean, atol=self.tolerance * scale, rtol=0)
        torch.testing.assert_close(posterior.std, std, atol=self.tolerance * scale, rtol=0)

    def test_protocols(self, recipe, fitted):
        assert isinstance(recipe, SurrogateModel)
        assert isinstance(fitted, Surrogate)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_posterior_has_a_row_a_query_and_the_dtype_of_the_query(self, fitted, dtype):
        posterior = fitted.posterior(queries(5).to(dtype))
        for values in (posterior.mean, posterior.std):
            assert values.shape == (5,)
            assert values.dtype == dtype
        assert (posterior.std > 0).all()

    def test_noise_is_told_a_row_or_not_at_all(self, fitted):
        noise_std = fitted.posterior(queries(5).float()).noise_std
        if noise_std is not None:
            assert noise_std.shape == (5,)
            assert noise_std.dtype == torch.float32
            assert (noise_std > 0).all()

    def test_no_queries_have_a_posterior_of_no_rows(self, fitted):
        posterior = fitted.posterior(torch.empty(0, 3))
        assert posterior.mean.shape == posterior.std.shape == (0,)

    def test_keeps_no_graph(self, fitted):
        """A graph kept would be freed by the first backward pass, and fail at the second."""
        found = tensors_in(fitted)
        assert found
        assert not any(tensor.requires_grad for tensor in found)
        assert not fitted.posterior(queries()).mean.requires_grad

    def test_learns(self, fitted):
        X = queries(200)
        error = (fitted.posterior(X).mean - wavy(X)).square().mean().sqrt()
        assert error < 0.6 * wavy(X).std()

    def test_float32_data_fit_as_well(self, recipe, fitted):
        data = Dataset(observations().X.float(), observations().y.float())
        posterior = fitted.posterior(queries())
        self.assert_same(recipe.fit(data, generator=seeded()), posterior.mean, posterior.std, queries(), 10)

    @pytest.mark.parametrize("where", ["between the data", "at the data"])
    def test_gradients_match_finite_differences(self, fitted, where):
        X = (queries(3) if where == "between the data" else observations().X[:3].clone()).requires_grad_()
        assert torch.autograd.gradcheck(lambda X: fitted.posterior(X).mean, X, atol=1e-5)
        # A variance is a difference of almost equal numbers near the data: a longer step drowns its rounding.
        assert torch.autograd.gradcheck(lambda X: fitted.posterior(X).std, X, eps=1e-4, atol=1e-4, rtol=1e-2)

    def test_rows_are_independent(self, fitted):
        X = queries()
        together = fitted.posterior(X)
        for i, row in enumerate(X.split(1)):
            alone = fitted.posterior(row)
            torch.testing.assert_close(alone.mean[0], together.mean[i], atol=1e-9, rtol=1e-9)
            # Of the variance: a GP's is a difference of numbers near 1, rounded to about 1e-16 times the condition of
            # its kernel matrix (1e6), and how depends on the processor; near the data the root magnifies that.
            torch.testing.assert_close(alone.std[0] ** 2, together.std[i] ** 2, atol=1e-9, rtol=1e-9)

    def test_the_order_of_the_data_does_not_matter(self, recipe, fitted):
        data = observations()
        order = torch.randperm(len(data), generator=seeded(3))
        shuffled = recipe.fit(Dataset(data.X[order], data.y[order]), generator=seeded())
        posterior = fitted.posterior(queries())
        self.assert_same(shuffled, posterior.mean, posterior.std, queries())

    def test_same_data_and_seed_give_the_same_bits(self, recipe, fitted):
        torch.manual_seed(123)  # whatever the global stream holds
        again = recipe.fit(observations(), generator=seeded())
        assert torch.equal(again.posterior(queries()).mean, fitted.posterior(queries()).mean)
        assert torch.equal(again.posterior(queries()).std, fitted.posterior(queries()).std)

    def test_leaves_global_state_and_data_alone(self, recipe):
        data, before = observations(), torch.random.get_rng_state()
        with torch.no_grad():
            recipe.fit(data, generator=seeded())
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(data.X, observations().X)
        assert torch.equal(data.y, observations().y)

    @pytest.mark.parametrize(("a", "b"), [(7.0, -3.0), (1e6, 1e6), (1e-6, 0.0)])
    def test_scale_and_shift_of_y_carry_over(self, recipe, fitted, a, b):
        data = observations()
        scaled = recipe.fit(Dataset(data.X, a * data.y + b), generator=seeded())
        posterior = fitted.posterior(queries())
        self.assert_same(scaled, a * posterior.mean + b, a * posterior.std, queries(), scale=a)

    def test_is_less_sure_away_from_the_data(self, fitted):
        X = observations().X
        at_data, beyond = fitted.posterior(X).std, fitted.posterior(5 * X).std
        assert beyond.mean() > 3 * at_data.mean()
        assert beyond.min() > at_data.median()

    def test_is_surer_with_more_data(self, recipe):
        few, many = (
            recipe.fit(observations(n), generator=seeded()).posterior(queries(50)) for n in (20, 160)
        )
        assert many.std.mean() < 0.8 * few.std.mean()

    def test_state_survives_saving_and_loading(self, fitted, tmp_path):
        save(fitted, tmp_path / "state")
        loaded = load(tmp_path / "state")
        assert type(loaded) is type(fitted)
        X = torch.cat([queries(), 5 * observations().X])
        for dtype in (torch.float32, torch.float64):
            expected, got = fitted.posterior(X.to(dtype)), loaded.posterior(X.to(dtype))
            assert torch.equal(got.mean, expected.mean)
            assert torch.equal(got.std, expected.std)

    @pytest.mark.parametrize("where", ["X", "y"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_refuses_data_that_are_not_finite_and_names_the_row(self, recipe, where, value):
        X, y = observations().X.clone(), observations().y.clone()
        (X if where == "X" else y)[7] = value
        with pytest.raises(FitError, match=rf"{where} is not finite in row 7\b"):
            recipe.fit(Dataset(X, y), generator=seeded())

    @pytest.mark.parametrize("n", [0, 1])
    def test_refuses_fewer_than_two_observations(self, recipe, n):
        with pytest.raises(FitError, match=f"at least 2 observations, got {n}"):
            recipe.fit(Dataset(torch.ones(n, 3), torch.ones(n)), generator=seeded())

    def test_refuses_queries_of_another_width(self, fitted):
        with pytest.raises(SurrogateError, match=r"expected 3 features.*got 4"):
            fitted.posterior(torch.zeros(2, 4))

    @pytest.mark.parametrize("name", BAD_DATA)
    def test_bad_data_give_a_sensible_posterior(self, recipe, name):
        data = BAD_DATA[name]
        surrogate = recipe.fit(data, generator=seeded())
        X = torch.cat([data.X, data.X + data.X.std(0) + 1, 100 * data.X]).requires_grad_()
        posterior = surrogate.posterior(X)
        (gradient,) = torch.autograd.grad((posterior.mean + posterior.std).sum(), X)
        for values in (posterior.mean, posterior.std, gradient):
            assert torch.isfinite(values).all()
        assert (posterior.std > 0).all()
        spread = (data.y.max() - data.y.min()).clamp(min=0.1)
        at_data = posterior.mean[: len(data)]
        assert (at_data > data.y.min() - spread).all()
        assert (at_data < data.y.max() + spread).all()
