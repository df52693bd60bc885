"""Training a prior: what it learns on data whose distribution is known, repeatability, refusals."""

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from smc.errors import PriorError
from smc.priors import training
from smc.priors.denoiser import ALPHA_BARS, Denoiser, ResidualMLP
from smc.priors.training import (
    TrainingProgress,
    TrainingSettings,
    _average_in,
    _noised,
    _rate,
    _step,
    split_rows,
    train_denoiser,
)

QUICK = TrainingSettings(n_iterations=30, batch_size=64, width=16, n_blocks=1)
MEAN = torch.tensor([100.0, -2.0])
FACTOR = torch.tensor([[10.0, 0.0], [0.48, 0.14]])  # covariance [[100, 4.8], [4.8, 0.25]]: correlation 0.96


def gaussian(n: int, seed: int = 0) -> Tensor:
    return MEAN + torch.randn(n, 2, generator=Generator().manual_seed(seed)) @ FACTOR.T


def draw(prior: Denoiser, n: int) -> Tensor:
    generator = Generator().manual_seed(1)
    x = prior.init(n, generator)
    for t, s in prior.steps:
        x, _ = prior.kernel(x, prior.denoise(x, t), t, s).propose(None, 0.0, generator)
    return prior.decode(x)


@pytest.fixture(scope="module")
def learnt() -> tuple[Denoiser, list[TrainingProgress]]:
    """A prior of 2,000 draws of N(MEAN, FACTOR·FACTORᵀ), some seconds of training."""
    progress: list[TrainingProgress] = []
    settings = TrainingSettings(n_iterations=1200, width=32, n_blocks=2, ema_decay=0.99)
    return train_denoiser(gaussian(2000), settings=settings, on_progress=progress.append), progress


class TestLearning:
    def test_samples_have_the_moments_of_the_data(self, learnt: tuple[Denoiser, list[TrainingProgress]]):
        """In the user's units: mean and std within a tenth of the std, correlation 0.96 within 0.02."""
        samples = draw(learnt[0], 4000)
        std = torch.tensor([10.0, 0.5])
        assert ((samples.mean(0) - MEAN).abs() / std).max() < 0.1
        assert (samples.std(0) / std - 1).abs().max() < 0.1
        assert torch.corrcoef(samples.T)[0, 1].item() == pytest.approx(0.96, abs=0.02)

    @pytest.mark.parametrize("t", [100, 400, 700])
    def test_estimate_is_the_posterior_mean(self, learnt: tuple[Denoiser, list[TrainingProgress]], t: int):
        """Of N(0, C), standardised: E[x0|x_t] = √ᾱ·C·(ᾱ·C + (1-ᾱ)·I)⁻¹·x_t."""
        C = torch.tensor([[1.0, 0.96], [0.96, 1.0]])
        a = ALPHA_BARS[t]
        x0 = torch.randn(500, 2, generator=Generator().manual_seed(2)) @ torch.linalg.cholesky(C).T
        x = a**0.5 * x0 + (1 - a) ** 0.5 * torch.randn(500, 2, generator=Generator().manual_seed(3))
        exact = a**0.5 * x @ torch.linalg.inv(a * C + (1 - a) * torch.eye(2)) @ C
        assert (learnt[0].denoise(x, t).x0 - exact).square().mean().sqrt() < 0.12

    def test_loss_falls_to_what_the_data_leave_open(self, learnt: tuple[Denoiser, list[TrainingProgress]]):
        """The best v-loss of N(0, C) is the mean over levels and eigenvalues c of c / (ᾱ·c + 1 - ᾱ)."""
        a = torch.tensor(ALPHA_BARS)
        open_share = sum((c / (a * c + 1 - a)).mean().item() for c in (1.96, 0.04)) / 2
        last = learnt[1][-1]
        assert last.test_loss == pytest.approx(open_share, rel=0.1)
        assert last.train_loss == pytest.approx(open_share, rel=0.1)

    def test_a_constant_column_stays_constant(self):
        X = torch.cat([gaussian(64), torch.full((64, 1), 7.0), torch.zeros(64, 1)], dim=1)
        samples = draw(train_denoiser(X, settings=QUICK), 100)
        assert (samples[:, 2] - 7).abs().max() < 1e-3
        assert samples[:, 3].abs().max() < 1e-4

    def test_columns_of_tiny_numbers_keep_their_scale(self):
        prior = train_denoiser(1e-9 * gaussian(64), settings=QUICK)
        torch.testing.assert_close(1e9 * prior.std, gaussian(64).std(0, correction=0))

    def test_few_rows_are_not_learnt_by_heart(self):
        """The test loss of 20 rows rises soon; the weights returned are those of its lowest."""
        settings = TrainingSettings(
            n_iterations=300,
            batch_size=64,
            learning_rate=5e-3,
            ema_decay=0.9,
            test_share=0.25,
            width=64,
            n_blocks=2,
        )
        progress: list[TrainingProgress] = []
        X = torch.randn(20, 8, generator=Generator().manual_seed(0))
        prior = train_denoiser(X, settings=settings, on_progress=progress.append)
        lowest = min(p.test_loss for p in progress)
        assert progress[-1].test_loss > 1.2 * lowest
        _, test = split_rows(20, settings.test_share, Generator().manual_seed(0))
        batch = _noised(prior.encode(X)[test].repeat(1000, 1), Generator().manual_seed(9))
        loss = (prior.network(batch.x, batch.t) - batch.v).square().mean().item()
        assert loss == pytest.approx(lowest, rel=0.05)


class TestRepeatability:
    def test_same_seed_same_weights(self):
        X = gaussian(64)
        torch.manual_seed(1)
        first = train_denoiser(X, settings=QUICK, seed=3).fingerprint()
        torch.manual_seed(2)
        state = torch.random.get_rng_state()
        assert train_denoiser(X, settings=QUICK, seed=3).fingerprint() == first
        assert torch.equal(torch.random.get_rng_state(), state)
        assert train_denoiser(X, settings=QUICK, seed=4).fingerprint() != first

    def test_watching_changes_nothing(self):
        X = gaussian(64)
        watched = train_denoiser(X, settings=QUICK, on_progress=lambda _: None)
        assert watched.fingerprint() == train_denoiser(X, settings=QUICK).fingerprint()

    def test_array_and_tensor_are_the_same_data(self):
        X = gaussian(64)
        assert (
            train_denoiser(X.numpy(), settings=QUICK).fingerprint()
            == train_denoiser(X, settings=QUICK).fingerprint()
        )

    def test_data_are_not_written_to(self):
        X = gaussian(64).double()
        before = X.clone()
        train_denoiser(X, settings=QUICK)
        assert torch.equal(X, before)

    def test_integers_are_numbers_too(self):
        X = np.random.default_rng(0).integers(0, 9, (32, 2))
        assert train_denoiser(X, settings=QUICK).event_shape == (2,)


class TestProgress:
    def test_counts_up_to_the_end(self):
        seen: list[TrainingProgress] = []
        settings = TrainingSettings(n_iterations=130, batch_size=8, width=8, n_blocks=1)
        train_denoiser(gaussian(32), settings=settings, on_progress=seen.append)
        assert [p.iteration for p in seen] == [*range(2, 131, 2)]
        assert {p.n_iterations for p in seen} == {130}

    def test_train_loss_is_the_mean_since_the_last_report(self, monkeypatch: pytest.MonkeyPatch):
        losses = iter(range(120))
        monkeypatch.setattr(training, "_step", lambda *_: float(next(losses)))
        seen: list[TrainingProgress] = []
        settings = TrainingSettings(n_iterations=120, batch_size=8, width=8, n_blocks=1)
        train_denoiser(gaussian(32), settings=settings, on_progress=seen.append)
        assert [p.train_loss for p in seen] == [i + 0.5 for i in range(0, 120, 2)]

    def test_one_iteration_is_enough_to_report(self):
        seen: list[TrainingProgress] = []
        settings = TrainingSettings(n_iterations=1, batch_size=8, width=8, n_blocks=1)
        train_denoiser(gaussian(32), settings=settings, on_progress=seen.append)
        assert [p.iteration for p in seen] == [1]

    def test_a_new_network_has_loss_1(self):
        seen: list[TrainingProgress] = []
        settings = TrainingSettings(n_iterations=1, batch_size=4096, width=8, n_blocks=1)
        train_denoiser(gaussian(4000), settings=settings, on_progress=seen.append)
        assert seen[0].train_loss == pytest.approx(1.0, abs=0.05)


class TestParts:
    def test_split_is_a_partition(self):
        train, test = split_rows(100, 0.2, Generator().manual_seed(0))
        assert len(test) == 20
        assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))
        assert len(split_rows(16, 0.01, Generator().manual_seed(0))[1]) == 1

    def test_noised_rows_know_their_noise(self):
        """x0 and eps follow from x_t and v; eps is standard normal; every n-th of the table is hit once."""
        x0 = gaussian(5000)
        batch = _noised(x0, Generator().manual_seed(0))
        a = torch.tensor(ALPHA_BARS)[batch.t.long(), None]
        torch.testing.assert_close(a.sqrt() * batch.x - (1 - a).sqrt() * batch.v, x0, atol=1e-3, rtol=1e-4)
        eps = (1 - a).sqrt() * batch.x + a.sqrt() * batch.v
        assert eps.mean().abs() < 0.05
        assert (eps.std() - 1).abs() < 0.03
        assert torch.bincount(batch.t.long(), minlength=1000).tolist() == [5] * 1000

    def test_average_moves_by_one_minus_decay(self):
        slow, fast = (ResidualMLP.seeded(2, 4, 1, Generator().manual_seed(seed)) for seed in (0, 1))
        before, target = slow.enter.weight.clone(), fast.enter.weight.clone()
        _average_in(slow, fast, 0.75)
        torch.testing.assert_close(slow.enter.weight, 0.75 * before + 0.25 * target)
        assert torch.equal(fast.enter.weight, target)

    def test_a_step_is_no_longer_than_the_clip(self):
        network = ResidualMLP.seeded(2, 4, 1, Generator().manual_seed(0))
        before = torch.nn.utils.parameters_to_vector(network.parameters())
        batch = _noised(100 * gaussian(64), Generator().manual_seed(0))
        _step(network, torch.optim.SGD(network.parameters(), lr=1.0), batch, clip_norm=0.01)
        after = torch.nn.utils.parameters_to_vector(network.parameters())
        assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)

    def test_learning_rate_warms_up_from_0_and_falls_to_0(self):
        assert _rate(0.0) == 0
        assert _rate(0.025) == pytest.approx(0.5, rel=0.01)
        assert _rate(0.5) == pytest.approx(0.5)
        assert _rate(1.0) == pytest.approx(0)
        first = TrainingSettings(n_iterations=1, batch_size=8, width=8, n_blocks=1)
        prior = train_denoiser(gaussian(32), settings=first)
        assert prior.network(gaussian(5), torch.tensor([3.0])).abs().max() == 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("X", "message"),
        [
            (torch.zeros(64), r"must be a matrix with one row a design, got shape \(64,\)"),
            (torch.zeros(4, 4, 4), r"got shape \(4, 4, 4\)"),
            (torch.zeros(64, 0), r"got shape \(64, 0\)"),
            (torch.zeros(15, 2), "at least 16 rows, got 15"),
        ],
    )
    def test_wrong_shape(self, X: Tensor, message: str):
        with pytest.raises(PriorError, match=message):
            train_denoiser(X)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_row_that_is_not_finite_is_named(self, value: float):
        X = gaussian(64)
        X[17, 1] = value
        with pytest.raises(PriorError, match=rf"row 17 is \[.*, {value}\]$"):
            train_denoiser(X)
        X[40] = value
        with pytest.raises(PriorError, match=r"row 17 .*\(2 such rows\)"):
            train_denoiser(X)

    def test_all_wrong_settings_at_once(self):
        with pytest.raises(PriorError) as e:
            TrainingSettings(n_iterations=0, learning_rate=-1.0, ema_decay=1.0, test_share=0.9)
        for part in ("n_iterations must be at least 1, got 0", "learning_rate", "ema_decay", "test_share"):
            assert part in str(e.value)
