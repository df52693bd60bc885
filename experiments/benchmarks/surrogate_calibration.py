"""Calibration on held-out batches of a campaign: every batch is predicted before it is told, from 64 queries on.

coverage90_*   share of outcomes in the central 90 % interval of their prediction
nll_gain_*     nats an outcome by which the predictions are more probable than those of a homoscedastic baseline: the
               same means, and for std the root mean square of the last 64 errors before the batch
crps_*         continuous ranked probability score, in stds of the outcomes before the batch
rmse_*         root mean square error of the mean, likewise

airfoil        the campaign of `make demo` at its defaults; *_airfoil_ensemble: a deep ensemble on the same designs
digits         64 features: scikit-learn's 8×8 digits and their size as JPEG. Each round draws 16 of those that are
               left, without repetition, in proportion to exp(UCB / 0.02); *_digits_ensemble: a campaign of its own

Predictions are of what is observed: their variance is that of the surrogate's belief plus that of the noise it
learnt. Batches are chosen by the very beliefs that are tested, and for what these expect the most of, so that no
coverage can be promised. All outcomes of all seeds count alike.
"""

from __future__ import annotations

import math
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from experiments.benchmarks import harness

import numpy as np  # isort: skip  (after the harness, which sets the number of threads)
import torch
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from torch import Tensor

from bbo.config.plan import load_plan
from bbo.ledger import Query
from bbo.objective import value_of
from experiments.problems.airfoil import CONFIG
from oracles.evaluation import VALUE
from oracles.jpeg import JpegSizeOracle
from surrogate.acquisition import UCB
from surrogate.base import Dataset, Posterior, Surrogate, SurrogateModel
from surrogate.ensemble import DeepEnsemble
from surrogate.features import Standardize
from surrogate.gp import ExactGP

BATCH_SIZE = 16
N_FIRST = 64
"""Queries before the first batch that counts."""
N_ERRORS = 64
"""Errors before a batch that the baseline's std is taken from."""
KL_COEF = 0.02
Z90 = 1.6448536269514722


@dataclass(frozen=True)
class Predicted:
    """One batch as it was predicted and as it came, in units of the outcomes before it."""

    n_queries: int
    """Before the batch, failed ones included."""
    error: Float[np.ndarray, " n"]
    """Observed minus mean."""
    std: Float[np.ndarray, " n"]
    """Of an observation: belief and noise."""


# ------------------------------------------------------------------- one batch
def believed(recipe: SurrogateModel, X: Float[Tensor, "n d"], y: Float[Tensor, " n"]) -> Surrogate:
    """Return the surrogate of the outcomes so far, standardised."""
    data = Dataset(X.double(), (y - y.mean()) / y.std())
    return recipe.fit(data, generator=torch.Generator().manual_seed(len(y)))


def predicted(
    n_queries: int, posterior: Posterior, before: Float[Tensor, " m"], y: Float[Tensor, " n"]
) -> Predicted:
    """Return a batch with outcomes y that this belief, about standardised outcomes, was about."""
    variance = posterior.std.square()
    if posterior.noise_std is not None:
        variance = variance + posterior.noise_std.square()
    observed = (y - before.mean()) / before.std()
    return Predicted(n_queries, (observed - posterior.mean).numpy(), variance.sqrt().numpy())


# ------------------------------------------------------------------- campaigns
def airfoil(seed: int, budget: int) -> dict[str, list[Predicted]]:
    """Run the demo's campaign, and take what it predicted; then let an ensemble predict each of its batches."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"campaign.seed={seed}", f"campaign.budget={budget}", f"campaign.directory={folder}/run"]
        with load_plan(CONFIG, overrides).open() as opened:
            opened.run()
            queries = opened.ledger.queries()
            X = opened.executor.encode(opened.archive.designs(queries)).double()
            y = torch.tensor([value_of(query, VALUE) for query in queries], dtype=torch.float64)
    return {"airfoil": _recorded(queries, y), "airfoil_ensemble": _replayed(DeepEnsemble(), X, y)}


def _recorded(queries: Sequence[Query], y: Float[Tensor, " n"]) -> list[Predicted]:
    """Return every batch but the first as the campaign predicted it; a failed query, NaN in y, is left out."""
    mean, std = (
        torch.tensor([math.nan if p is None else p for p in predictions], dtype=torch.float64)
        for predictions in ([q.predicted_mean for q in queries], [q.predicted_std for q in queries])
    )
    batches = []
    for start in range(BATCH_SIZE, len(y), BATCH_SIZE):
        before, new = y[:start], slice(start, start + BATCH_SIZE)
        known, answered = before[before.isfinite()], y[new].isfinite()
        scale = known.std()
        posterior = Posterior((mean[new] - known.mean()) / scale, std[new] / scale)
        at_answered = Posterior(posterior.mean[answered], posterior.std[answered])
        batches.append(predicted(start, at_answered, known, y[new][answered]))
    return batches


def _replayed(recipe: SurrogateModel, X: Float[Tensor, "n d"], y: Float[Tensor, " n"]) -> list[Predicted]:
    """Return every batch but the first as this recipe predicts it; a failed query, NaN in y, is left out."""
    batches = []
    for start in range(BATCH_SIZE, len(y), BATCH_SIZE):
        before, new = slice(0, start), slice(start, start + BATCH_SIZE)
        known, answered = y[before].isfinite(), y[new].isfinite()
        surrogate = believed(recipe, X[before][known], y[before][known])
        with torch.no_grad():
            posterior = surrogate.posterior(X[new][answered])
        batches.append(predicted(start, posterior, y[before][known], y[new][answered]))
    return batches


def digits(seed: int, budget: int) -> dict[str, list[Predicted]]:
    """Run a campaign on the digits with each of two surrogates."""
    return {
        "digits": _pool_campaign(ExactGP(), seed, budget),
        "digits_ensemble": _pool_campaign(DeepEnsemble(), seed, budget),
    }


def _pool_campaign(recipe: SurrogateModel, seed: int, budget: int) -> list[Predicted]:
    """Spend the budget on the digits; return every batch but the first, as it was predicted."""
    torch.set_num_threads(1)
    images = torch.from_numpy(load_digits().images) / 16
    X = Standardize.of(images)(images)
    sizes = torch.tensor([e.outcomes[VALUE] for e in JpegSizeOracle().evaluate(images)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(X), generator=generator)[:BATCH_SIZE]
    batches = []
    while len(chosen) < budget:
        surrogate = believed(recipe, X[chosen], sizes[chosen])
        with torch.no_grad():
            new = drawn(UCB()(surrogate, X, torch.zeros(len(X), dtype=torch.long)), chosen, generator)
            batches.append(predicted(len(chosen), surrogate.posterior(X[new]), sizes[chosen], sizes[new]))
        chosen = torch.cat([chosen, new])
    return batches


def drawn(
    utility: Float[Tensor, " n"], chosen: Int[Tensor, " m"], generator: torch.Generator
) -> Int[Tensor, " b"]:
    """Return a batch drawn ∝ exp(utility / KL_COEF) without replacement from what was not chosen (Gumbel top-k)."""
    uniform = torch.rand(len(utility), generator=generator, dtype=torch.float64)
    keys = utility / KL_COEF - torch.log(-torch.log(uniform))
    keys[chosen] = -math.inf
    return keys.topk(BATCH_SIZE).indices


# ------------------------------------------------------------------- figures
def figures_of(campaigns: list[list[Predicted]], name: str) -> dict[str, float]:
    """Return the figures of some campaigns, all their outcomes together."""
    scored = [
        (batch, baseline(batches[:i]))
        for batches in campaigns
        for i, batch in enumerate(batches)
        if batch.n_queries >= N_FIRST and len(batch.error) > 0
    ]
    error = np.concatenate([batch.error for batch, _ in scored])
    std = np.concatenate([batch.std for batch, _ in scored])
    constant = np.concatenate([np.full(len(batch.error), base) for batch, base in scored])
    return {
        f"coverage90_{name}": float(np.mean(np.abs(error) <= Z90 * std)),
        f"nll_gain_{name}": float(np.mean(nll(error, constant) - nll(error, std))),
        f"crps_{name}": float(np.mean(crps(error, std))),
        f"crps_baseline_{name}": float(np.mean(crps(error, constant))),
        f"rmse_{name}": float(np.sqrt(np.mean(error**2))),
    }


def baseline(before: list[Predicted]) -> float:
    errors = np.concatenate([batch.error for batch in before])[-N_ERRORS:]
    return float(np.sqrt(np.mean(errors**2)))


def nll(error: Float[np.ndarray, " n"], std: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return minus the log-density of N(0, std²) at each error."""
    scores: np.ndarray = 0.5 * (error / std) ** 2 + np.log(std) + 0.5 * math.log(2 * math.pi)
    return scores


def crps(error: Float[np.ndarray, " n"], std: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the score of N(0, std²): std·(z·(2Φ(z) - 1) + 2φ(z) - 1/√π) (Gneiting and Raftery 2007)."""
    z = torch.from_numpy(error / std)
    phi = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    scores = z * (2 * torch.special.ndtr(z) - 1) + 2 * phi - 1 / math.sqrt(math.pi)
    return np.asarray(std * scores.numpy())


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    seeds, budget = (range(1), 112) if options.is_quick else (range(options.n_seeds), 256)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        started = [[pool.submit(job, seed, budget) for seed in seeds] for job in (airfoil, digits)]
        runs = [[campaign.result() for campaign in problem] for problem in started]
    figures: dict[str, float] = {}
    for problem in runs:
        for name in problem[0]:
            figures |= figures_of([campaign[name] for campaign in problem], name)
    return figures


if __name__ == "__main__":
    harness.run("surrogate_calibration", measure)
