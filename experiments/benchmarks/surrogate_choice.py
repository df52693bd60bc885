"""What `Auto` rests on: seconds and held-out likelihood of each surrogate, by the number of observations and features.

fit_*          CPU seconds of a fit
nll_*          mean negative log-density of 1500 outcomes that were not fitted, in nats, y in units of its std
log_loss_*     mean negative log-probability of whether 2000 airfoils that were not fitted are feasible; base: the
               feasible share alone
cover90_*, ms_*   printed only: coverage of the 90 % interval; milliseconds of a posterior with gradient at 256 points

Named by model, features and observations: nll_gp_18_256. Features, all rows independent and alike:
  18   draws of the airfoil prior and their L/D
  64   blends of two of scikit-learn's 8×8 digits, and their size as JPEG
  512  two such digits side by side, each enlarged to 16×16, and their size as JPEG
The models are those of their defaults, one process, one thread, one draw of the data a seed. An exact GP of more than
1024 observations is left out: it takes minutes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from experiments.benchmarks import harness

import torch  # isort: skip  (after the harness, which sets the number of threads)
from jaxtyping import Bool, Float
from sklearn.datasets import load_digits
from torch import Tensor

from experiments.problems.airfoil import prior_designs, values
from oracles.evaluation import VALUE
from oracles.jpeg import JpegSizeOracle
from surrogate.base import Dataset, SurrogateModel
from surrogate.ensemble import DeepEnsemble
from surrogate.feasibility import FeasibilityModel, GPFeasibility
from surrogate.feasibility_ensemble import EnsembleFeasibility
from surrogate.gp import ExactGP
from surrogate.neural_linear import NeuralLinear
from surrogate.sparse_gp import SparseGP

N_TEST = 1500
N_TEST_LABELS = 2000
MAX_EXACT = 1024
SURROGATES: Mapping[str, SurrogateModel] = {
    "gp": ExactGP(),
    "sparse_gp": SparseGP(),
    "sparse_gp_1000": SparseGP(n_inducing=1000),
    "ensemble": DeepEnsemble(),
    "neural_linear": NeuralLinear(),
}
CLASSIFIERS: Mapping[str, FeasibilityModel] = {"gp": GPFeasibility(), "ensemble": EnsembleFeasibility()}


@dataclass(frozen=True)
class Problem:
    """Rows in random order; the last N_TEST are never fitted."""

    X: Float[Tensor, "n d"]
    y: Float[Tensor, " n"]


# ------------------------------------------------------------------- data
@cache
def airfoils(n: int) -> tuple[Float[Tensor, "n 18"], Float[Tensor, " n"]]:
    """Return n draws of the prior, standardised, and L/D, NaN where it fails."""
    designs = torch.cat([prior_designs(1000, seed) for seed in range(math.ceil(n / 1000))])[:n]
    y = torch.cat([torch.from_numpy(values(part)) for part in torch.split(designs, 1000)])
    X = designs.double()
    return (X - X.mean(0)) / X.std(0), y.double()


def feasible_airfoils(n: int) -> Problem:
    """Return at least n airfoils that have an L/D: about one in 25 has none."""
    X, y = airfoils(math.ceil(1.06 * n))
    return Problem(X[y.isfinite()], y[y.isfinite()])


def blends(n: int) -> Problem:
    """Return n blends of two digits each, 64 pixels."""
    digits, generator = torch.from_numpy(load_digits().images) / 16, torch.Generator().manual_seed(0)
    first, second = torch.randint(len(digits), (2, n), generator=generator)
    share = torch.rand(n, 1, 1, generator=generator, dtype=torch.float64)
    return _with_sizes(share * digits[first] + (1 - share) * digits[second])


def pairs(n: int) -> Problem:
    """Return n pairs of digits, 512 pixels."""
    digits, generator = torch.from_numpy(load_digits().images) / 16, torch.Generator().manual_seed(0)
    large = torch.nn.functional.interpolate(digits.unsqueeze(1), size=(16, 16), mode="bilinear").squeeze(1)
    left, right = torch.randint(len(digits), (2, n), generator=generator)
    return _with_sizes(torch.cat([large[left], large[right]], dim=2))


def _with_sizes(images: Float[Tensor, "n h w"]) -> Problem:
    sizes = [evaluation.outcomes[VALUE] for evaluation in JpegSizeOracle().evaluate(images)]
    return Problem(images.flatten(1), torch.tensor(sizes, dtype=torch.float64))


# ------------------------------------------------------------------- one fit
def surrogate_figures(recipe: SurrogateModel, problem: Problem, n: int, name: str) -> dict[str, float]:
    """Return the figures of one fit to the first n rows, and print them."""
    T, t = problem.X[-N_TEST:], problem.y[-N_TEST:]
    began = time.process_time()
    fitted = recipe.fit(Dataset(problem.X[:n], problem.y[:n]), generator=torch.Generator().manual_seed(0))
    seconds = time.process_time() - began
    queries = T[:256].float().requires_grad_()
    began = time.process_time()
    for _ in range(3):
        belief = fitted.posterior(queries)
        torch.autograd.grad((belief.mean + belief.std).sum(), queries)
    milliseconds = (time.process_time() - began) / 3 * 1e3
    with torch.no_grad():
        belief = fitted.posterior(T)
    variance = belief.std.square()
    if belief.noise_std is not None:
        variance = variance + belief.noise_std.square()
    squares = (t - belief.mean).square() / variance
    nll = (squares + (2 * math.pi * variance / problem.y.var()).log()).mean().item() / 2
    covered = (squares < 1.6448536269514722**2).double().mean().item()
    print(
        f"{name:24s} fit {seconds:6.2f} s  {milliseconds:3.0f} ms  nll {nll:7.3f}  cover90 {covered:.3f}",
        flush=True,
    )
    return {f"fit_{name}": seconds, f"nll_{name}": nll}


def feasibility_figures(
    recipe: FeasibilityModel, X: Float[Tensor, "n d"], is_feasible: Bool[Tensor, " n"], n: int, name: str
) -> dict[str, float]:
    """Return the mean log-loss of fits to n rows, up to eight of them, and print it."""
    T, truth = X[-N_TEST_LABELS:], is_feasible[-N_TEST_LABELS:]
    losses, began = [], time.process_time()
    for start in range(0, min(8 * n, len(X) - N_TEST_LABELS - n + 1), n):
        rows = slice(start, start + n)
        fitted = recipe.fit(X[rows], is_feasible[rows], generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            log_p = fitted.log_probability(T).clamp(max=-1e-12)
        losses.append(-torch.where(truth, log_p, torch.log(-torch.expm1(log_p))).mean().item())
    seconds, loss = (time.process_time() - began) / len(losses), sum(losses) / len(losses)
    print(f"{name:24s} fit {seconds:6.2f} s  log-loss {loss:.3f}, mean of {len(losses)}", flush=True)
    return {f"log_loss_{name}": loss}


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    torch.set_num_threads(1)
    sizes = (64, 256) if options.is_quick else (64, 256, 1024, 4096, 10_000)
    figures: dict[str, float] = {}
    for make in (feasible_airfoils, blends, pairs):
        problem = make(sizes[-1] + N_TEST)
        for n in sizes:
            for model, recipe in SURROGATES.items():
                is_other = not (isinstance(recipe, SparseGP) and n <= recipe.n_inducing)  # than the exact GP
                if is_other and not (isinstance(recipe, ExactGP) and n > MAX_EXACT):
                    name = f"{model}_{problem.X.shape[1]}_{n}"
                    figures |= surrogate_figures(recipe, problem, n, name)
    X, y = airfoils(sizes[-1] + N_TEST_LABELS)
    share = y[-N_TEST_LABELS:].isfinite().double().mean().item()
    figures["log_loss_base"] = -share * math.log(share) - (1 - share) * math.log(1 - share)
    for n in (16, 32, 64, 128, 256, 512) if not options.is_quick else (32, 128):
        for model, classifier in CLASSIFIERS.items():
            figures |= feasibility_figures(classifier, X, y.isfinite(), n, f"{model}_{n}")
    if not options.is_quick:
        for n in (2048, 10_000):
            figures |= feasibility_figures(EnsembleFeasibility(), X, y.isfinite(), n, f"ensemble_{n}")
    return figures


if __name__ == "__main__":
    harness.run("surrogate_choice", measure, n_seeds=1)
