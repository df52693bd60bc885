"""Training of batched networks: Adam on minibatches, stopped where the error on what was held out is least.

Rows are held out as by a bootstrap, but evenly: members come in groups of `N_FOLDS`, and each member of a group
leaves another fold out. So every row is trained on by most members, the newest as well, and still predicted by
some that have not seen it. What decides is the error of these together, because their average is what is used:
alone, a member has few rows to judge its steps by, and stops too early (`experiments/benchmarks/README.md`,
surrogate_cost).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn.functional import softplus

from surrogate.errors import FitError
from surrogate.network import Network

N_FOLDS = 4
MIN_ROWS = 2 * N_FOLDS
"""With fewer rows nothing is held out."""
STEPS_A_CHECK = 20
MIN_VARIANCE = 1e-6
"""Smallest variance of noise that can be learnt, as a share of the variance of y."""


@runtime_checkable
class Criterion(Protocol):
    """What training makes small."""

    @property
    def is_out(self) -> Bool[Tensor, "s n"]:
        """Which rows each member is judged by, and not trained on."""
        ...

    def loss(self, outputs: Float[Tensor, "s b o"], rows: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the loss at these rows, summed over members: they do not interact."""
        ...

    def held_out_loss(self, outputs: Float[Tensor, "s b o"], rows: Int[Tensor, " b"]) -> float:
        """Return the loss of the average over the members that each of these rows, all held out, was held out of."""
        ...


def train(
    network: Network,
    Z: Float[Tensor, "n d"],
    criterion: Criterion,
    *,
    n_iterations: int,
    batch_size: int,
    learning_rate: float,
    generator: Generator,
) -> Network:
    """Return a copy of `network` trained for n_iterations steps, as it was when its held-out loss was least.

    Where nothing is held out it is the last step's. The learning rate falls to 0 along a cosine. Raises
    FitError for training that diverges.
    """
    network = network.copy()
    best: Network | None = None
    least = math.inf
    for tensor in network.parameters:
        tensor.requires_grad_()
    optimizer = torch.optim.Adam(network.parameters, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_iterations)
    rows = torch.arange(len(Z), device=Z.device)
    judged = criterion.is_out.any(0).nonzero().flatten()
    for step in range(1, n_iterations + 1):
        if len(Z) > batch_size:
            rows = torch.randint(len(Z), (batch_size,), generator=generator, device=Z.device)
        with torch.enable_grad():
            loss = criterion.loss(network(Z[rows]), rows)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if len(judged) and (step % STEPS_A_CHECK == 0 or step == n_iterations):
            with torch.no_grad():
                held_out_loss = criterion.held_out_loss(network(Z[judged]), judged)
            if held_out_loss < least:
                best, least = network.copy(), held_out_loss  # a copy: training goes on
    if not all(tensor.isfinite().all() for tensor in network.parameters):
        raise FitError(f"training diverged: learning_rate {learning_rate} is too high for these data")
    return network.copy() if best is None else best


def held_out(
    n_members: int, n: int, n_judged: int, generator: Generator, device: torch.device
) -> Bool[Tensor, "s n"]:
    """Return which of n rows each member is not trained on: none where n is below MIN_ROWS.

    Of at most `n_judged` rows, drawn by chance, one in N_FOLDS is left out of each member, and each row by one
    member of each group of N_FOLDS. So many rows suffice to judge by; the rest all members are trained on.
    """
    is_out = torch.zeros(n_members, n, dtype=torch.bool, device=device)
    if n < MIN_ROWS:
        return is_out
    judged = torch.randperm(n, generator=generator, device=device)[:n_judged]
    for i in range(n_members):
        if i % N_FOLDS == 0:
            order = judged[torch.randperm(len(judged), generator=generator, device=device)]
        is_out[i, order[i % N_FOLDS :: N_FOLDS]] = True
    return is_out


@dataclass(frozen=True)
class SquaredError:
    """Σ_j w_ij·(f_i(x_j) - y_ij)², for networks of one output."""

    targets: Float[Tensor, "s n"]
    weights: Float[Tensor, "s n"]
    """0 where a row is held out of a member."""
    is_out: Bool[Tensor, "s n"]
    """Rows that a member is judged by."""
    reliability: Float[Tensor, " n"]
    """What a row counts for when the steps are judged."""

    def loss(self, outputs: Float[Tensor, "s b o"], rows: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the weighted mean over the rows, summed over members."""
        errors = outputs[:, :, 0] - self.targets[:, rows]
        return (self.weights[:, rows] * errors.square()).mean(1).sum()

    def held_out_loss(self, outputs: Float[Tensor, "s b o"], rows: Int[Tensor, " b"]) -> float:
        """Return the squared error of the members' average, each row by those that left it out."""
        is_out = self.is_out[:, rows]
        error = pooled(outputs[:, :, 0] - self.targets[:, rows], is_out)
        return weighted(error.square(), self.reliability[rows])


@dataclass(frozen=True)
class GaussianNLL:
    """Σ_j w_ij·v_ij^β·[ (f_i(x_j) - y_ij)² / v_ij + log v_ij ] / 2,  v_ij^β held constant in the gradient.

    For networks of two outputs, f and what v = softplus(·) is made of. With β = 0 it is the likelihood, under
    which rows that are fitted badly get a large v and are then left alone; β = 1/2 keeps them in the fit
    (Seitzer, Tavakoli, Antic and Martius 2022, arXiv 2203.09168).
    """

    targets: Float[Tensor, "s n"]
    weights: Float[Tensor, "s n"]
    is_out: Bool[Tensor, "s n"]
    reliability: Float[Tensor, " n"]
    """What a row counts for when the steps are judged."""
    beta: float = 0.5

    def loss(self, outputs: Float[Tensor, "s b o"], rows: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """Return the weighted mean over the rows, summed over members."""
        squares = (outputs[:, :, 0] - self.targets[:, rows]).square()
        variance = variance_of(outputs)
        terms = variance.detach() ** self.beta * (squares / variance + variance.log()) / 2
        return (self.weights[:, rows] * terms).mean(1).sum()

    def held_out_loss(self, outputs: Float[Tensor, "s b o"], rows: Int[Tensor, " b"]) -> float:
        """Return the likelihood's loss (β = 0) of what the members believe together.

        Its variance is the noise and what they disagree about: were it the noise alone, the noise would be
        blamed for errors that more training takes away, and training would stop at once.
        """
        is_out = self.is_out[:, rows]
        errors = outputs[:, :, 0] - self.targets[:, rows]
        error = pooled(errors, is_out)
        variance = pooled(variance_of(outputs) + (errors - error).square(), is_out)
        return weighted((error.square() / variance + variance.log()) / 2, self.reliability[rows])


def variance_of(outputs: Float[Tensor, "s n o"]) -> Float[Tensor, "s n"]:
    """Return the variance of the noise that networks of two outputs have learnt, in units of theirs."""
    return softplus(outputs[:, :, 1]) + MIN_VARIANCE


def pooled(values: Float[Tensor, "s b"], is_out: Bool[Tensor, "s b"]) -> Float[Tensor, " b"]:
    """Return the average over the members that left a row out."""
    return (values * is_out).sum(0) / is_out.sum(0)


def weighted(values: Float[Tensor, " b"], weights: Float[Tensor, " b"]) -> float:
    """Return the weighted mean."""
    return float((values * weights).sum() / weights.sum())
