"""Measure the shipped airfoil prior against its data and write its model card.

    python -m experiments.problems.airfoil_prior_card

Every measured number of `airfoil_prior.md` comes from here; about half a minute on one core.
"""

from __future__ import annotations

import os
import platform
import textwrap
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a second thread slows a busy machine 40 times

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Generator, Tensor

from experiments.problems.train_airfoil_prior import (
    MIN_TRAILING_EDGE,
    SEED,
    SETTINGS,
    WEIGHTS,
    training_designs,
)
from oracles.airfoil import AirfoilOracle
from oracles.evaluation import VALUE
from oracles.kulfan import TRAILING_EDGE
from smc.priors.denoiser import Denoiser
from smc.priors.training import split_rows

CARD = Path(__file__).with_name("airfoil_prior.md")
N_SAMPLES = 4000
N_PERMUTATIONS = 999
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Row:
    """One population of airfoils as the oracle sees it."""

    label: str
    n: int
    feasible: float
    """Share with an answer."""
    crossing: float
    """Share whose surfaces cross, a negative trailing edge included."""
    rare: float
    """Share with a number beyond 4 std of the data."""
    value: tuple[float, ...]
    """Quantiles of L/D among the feasible."""


@dataclass(frozen=True)
class TwoSample:
    """Whether two populations can be told apart."""

    label: str
    energy: float
    """Energy distance 2·E|x-y| - E|x-x'| - E|y-y'| in standardised coordinates; 0 for equal distributions."""
    p_value: float
    """Share of random relabellings with at least that distance, the real one among them."""
    auc: float
    """Of boosted trees that tell them apart, 5-fold cross-validated; 0.5 for equal distributions."""
    auc_without_edge: float
    """The same without the thickness of the trailing edge, which the data hold an atom of."""


@dataclass(frozen=True)
class Measurements:
    """Everything measured that the card reports."""

    fingerprint: str
    n_parameters: int
    n_train: int
    n_test: int
    rows: list[Row]
    tests: list[TwoSample]
    nearest: dict[str, tuple[float, ...]]
    """Quantiles of the distance to the nearest training airfoil, in standardised coordinates."""


# ---------------------------------------------------------------- measurements
def draw(prior: Denoiser, n: int, seed: int) -> Float[Tensor, "n d"]:
    """Return clean latents from the unguided chain."""
    generator = Generator().manual_seed(seed)
    x = prior.init(n, generator)
    for t, s in prior.steps:
        x, _ = prior.kernel(x, prior.denoise(x, t), t, s).propose(None, 0.0, generator)
    return x


def gaussian_fit(X: Float[Tensor, "n d"], n: int, seed: int) -> Float[Tensor, "n d"]:
    """Return draws of a normal distribution with the mean and covariance of X: what a prior has to beat."""
    z = torch.randn((n, X.shape[1]), generator=Generator().manual_seed(seed), dtype=X.dtype)
    factor: Tensor = torch.linalg.cholesky(X.T.cov())
    return X.mean(0) + z @ factor.T


def row(label: str, latents: Float[Tensor, "n d"], prior: Denoiser) -> Row:
    """Return what the default oracle says of a population given in the prior's standardised coordinates."""
    evaluations = AirfoilOracle().evaluate(prior.decode(latents))
    n = len(latents)
    values = [e.outcomes[VALUE] for e in evaluations if e.error is None]
    errors = [e.error for e in evaluations if e.error is not None]
    n_crossing = sum("cross" in error or "trailing edge" in error for error in errors)
    quantiles = tuple(np.quantile(values, QUANTILES).tolist())
    rare = (latents.abs() > 4).any(1).double().mean().item()
    return Row(label, n, len(values) / n, n_crossing / n, rare, quantiles)


def two_sample(label: str, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], seed: int = 0) -> TwoSample:
    """Return an energy-distance permutation test and a classifier test of equally many rows of a and b."""
    n = min(len(a), len(b))
    both = torch.cat([a[:n], b[:n]]).double()
    is_a = torch.arange(2 * n) < n
    generator = Generator().manual_seed(seed)
    shuffles = [is_a[torch.randperm(2 * n, generator=generator)] for _ in range(N_PERMUTATIONS)]
    energies = _energies(torch.cdist(both, both), torch.stack([is_a, *shuffles]))
    p_value = float((energies >= energies[0]).double().mean())
    aucs = [_auc(part.numpy(), is_a.numpy(), seed) for part in (both, both[:, :TRAILING_EDGE])]
    return TwoSample(label, float(energies[0]), p_value, *aucs)


def _auc(X: Float[np.ndarray, "k d"], is_a: Bool[np.ndarray, " k"], seed: int) -> float:
    trees = HistGradientBoostingClassifier(random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    scores = cross_val_predict(trees, X, is_a, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(is_a, scores))


def _energies(distances: Float[Tensor, "k k"], is_a: Bool[Tensor, "p k"]) -> Float[Tensor, " p"]:
    """Return the energy distance of every split of k rows into halves; a row is no pair with itself."""
    n = len(distances) // 2
    signs = torch.where(is_a, 1.0, -1.0).double()
    within = (distances.sum() + ((signs @ distances) * signs).sum(1)) / 2  # of both halves: the signs agree
    between = (distances.sum() - within) / 2
    return 2 * between / n**2 - within / (n * (n - 1))


def nearest(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> tuple[float, ...]:
    """Return quantiles of the distance from rows of a to their nearest row of b."""
    closest = torch.cdist(a.double(), b.double()).min(1).values
    return tuple(np.quantile(closest.numpy(), QUANTILES).tolist())


def measure() -> Measurements:
    """Return what the card reports of the shipped weights."""
    prior = Denoiser.load(WEIGHTS)
    X = torch.from_numpy(training_designs()).float()
    train_rows, test_rows = split_rows(len(X), SETTINGS.test_share, Generator().manual_seed(SEED))
    data = prior.encode(X)
    train, test = data[train_rows], data[test_rows]
    samples = draw(prior, N_SAMPLES, seed=1)
    fine_samples = draw(replace(prior, n_steps=250), N_SAMPLES, seed=1)
    gaussian = gaussian_fit(data.double(), N_SAMPLES, seed=1).float()
    return Measurements(
        fingerprint=prior.fingerprint(),
        n_parameters=sum(p.numel() for p in prior.network.parameters()),
        n_train=len(train),
        n_test=len(test),
        rows=[
            row("data", data, prior),
            row("samples", samples, prior),
            row("samples, 250 steps", fine_samples, prior),
            row("Gaussian fit", gaussian, prior),
        ],
        tests=[
            two_sample("held-out data, training data", test, train),
            two_sample("samples, held-out data", samples, test),
            two_sample("samples, training data", samples, train),
            two_sample("samples of 250 steps, training data", fine_samples, train),
            two_sample("Gaussian fit, held-out data", gaussian, test),
            two_sample("Gaussian fit, training data", gaussian, train),
        ],
        nearest={
            "held-out data": nearest(test, train),
            "samples": nearest(samples, train),
            "Gaussian fit": nearest(gaussian, train),
        },
    )


# ---------------------------------------------------------------- the card
_INTRODUCTION = """# Model card: airfoil prior

`airfoil_prior.safetensors`, fingerprint `{fingerprint}` at 50 steps and eta 1. This card is written by
`python -m experiments.problems.airfoil_prior_card`: change it there.

**What it is.** A diffusion model of airfoil shapes: a residual MLP with {n_parameters:,} parameters that
predicts v on a cosine schedule of 1,000 levels (`smc/priors/denoiser.py`). A design is 18 Kulfan (CST)
numbers: 8 upper weights, 8 lower weights, the leading-edge weight and the thickness of the trailing edge
(`oracles/kulfan.py`).

**Data.** The UIUC airfoil coordinates that ship inside the aerosandbox wheel, fitted and filtered by
`oracles/uiuc.py`: {n_train:,} airfoils to train on and {n_test} held out, on which the iteration to keep
was chosen. Trailing edges thinner than {edge} chords, most of them exactly 0, were raised to {edge}. The
licence of the coordinates is not established: they are read from the installed package, and no coordinate
is part of this repository. The weights were fitted to them.

**Training.** `python -m experiments.problems.train_airfoil_prior`, one to two minutes on one core, seed
{seed}: {settings}.

**Measured with** {packages}."""

_SAMPLES = """## Samples against the data

By the default oracle (NeuralFoil "large", 5 degrees, Re 1e6, confidence at least 0.9). Feasible: share
with an answer. Crossing: share whose surfaces cross or whose trailing edge is negative. Rare: share with
a number beyond 4 std of the data. Then quantiles of L/D among the feasible. A Gaussian with the mean and
covariance of the data is the yardstick. The chain has 50 steps unless it says otherwise.

| | n | feasible | crossing | rare | {quantiles} |
|---|---:|---:|---:|---:|{rule}
{rows}

**Two-sample tests**, equally many of each. Energy distance in standardised coordinates, without the pairs
of a row with itself, so it may fall below 0; p from {n_permutations} permutations. AUC of
gradient-boosted trees, 5 folds, 0.5 where they cannot tell; with all 18 numbers, and without the trailing
edge.

| | energy distance | p | AUC, all 18 | AUC, without edge |
|---|---:|---:|---:|---:|
{tests}

**Memorisation.** Distance to the nearest training airfoil, standardised coordinates. Samples that
repeated the data would be much closer than held-out airfoils are.

| | {quantiles} |
|---|{rule}
{distances}"""

_LIMITS = """## Limits

- Trees tell samples from data by the trailing edge: most of the data have exactly the same thickness,
  while samples scatter around it. Without that number they do little better than chance on held-out
  airfoils.
- At 50 steps the chain is a little too narrow, as coarse DDIM chains are, and the energy test against all
  training data notices; at 250 steps it does not. Rare shapes come up less often than in the data.
- The database is a history of subsonic design, no random sample: families are near-copies of each other,
  and many a held-out airfoil has a sibling among the training airfoils. This is what its small distances
  are.
- L/D is the opinion of NeuralFoil, a network trained on XFoil; no wind tunnel was asked.
- A design is a shape at one operating point: nothing here knows of structure, and of manufacture only the
  trailing edge."""


def card(m: Measurements) -> str:
    """Return the model card as Markdown."""
    packages = ("torch", "aerosandbox", "neuralfoil", "scikit-learn", "numpy")
    introduction = _INTRODUCTION.format(
        **{name: getattr(m, name) for name in ("fingerprint", "n_parameters", "n_train", "n_test")},
        edge=MIN_TRAILING_EDGE,
        seed=SEED,
        settings=textwrap.fill(", ".join(f"{k} {v}" for k, v in asdict(SETTINGS).items()), 110),
        packages=", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]),
    )
    samples = _SAMPLES.format(
        quantiles=" | ".join(f"q{100 * q:02.0f}" for q in QUANTILES),
        rule="---:|" * len(QUANTILES),
        n_permutations=N_PERMUTATIONS,
        rows="\n".join(
            f"| {r.label} | {r.n:,} | {_cells((r.feasible, r.crossing, r.rare), 3)} | {_cells(r.value, 1)} |"
            for r in m.rows
        ),
        tests="\n".join(
            f"| {t.label} | {t.energy:.4f} | {t.p_value:.3f} | {_cells((t.auc, t.auc_without_edge), 2)} |"
            for t in m.tests
        ),
        distances="\n".join(f"| {label} | {_cells(values, 2)} |" for label, values in m.nearest.items()),
    )
    return "\n\n".join([introduction, samples, _LIMITS]) + "\n"


def _cells(numbers: tuple[float, ...], n_digits: int) -> str:
    return " | ".join(f"{number:.{n_digits}f}" for number in numbers)


def main() -> None:
    """Measure the shipped weights; print and write the card."""
    text = card(measure())
    CARD.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
