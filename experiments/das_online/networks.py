"""The networks of the published loop: perceptrons with a narrow last hidden layer, trained by Adam from scratch.

    minimise Σ_j (f_i(x_j) - y_j)²        j over the rows of network i: all of them, or as many drawn with replacement

Their shape, optimiser and learning rate are those of krafton-ai/DAS (`aesthetic_scorer.py`, `online/dataset.py`); how
long they train and whether the newest rows are among the data depends on the `Faults`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn.functional import silu

from experiments.das_online.faults import Faults
from surrogate.errors import FitError, SurrogateError

HELD_OUT = 0.1
"""Share of the data that the published loop validates on: the newest."""
MIN_ROWS = 8
"""With fewer rows nothing is held out at random."""
STEPS_A_CHECK = 10


@dataclass(frozen=True)
class Perceptrons:
    """Some networks of one shape, evaluated together."""

    weights: tuple[Float[Tensor, "s _ _"], ...]
    """Of each layer: networks, inputs, outputs."""
    biases: tuple[Float[Tensor, "s 1 _"], ...]
    is_affine: bool
    """Whether nothing stands between the layers; otherwise SiLU does."""

    def features(self, Z: Float[Tensor, "*s n d"]) -> Float[Tensor, "s n m"]:
        """Return the last hidden layer; Z holds the rows of all networks, or each network's own."""
        h = Z if Z.ndim == 3 else Z.expand(len(self.biases[0]), *Z.shape)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = torch.baddbmm(bias.to(h), h, weight.to(h))
            h = h if self.is_affine else silu(h)
        return h

    def __call__(self, Z: Float[Tensor, "*s n d"]) -> Float[Tensor, "s n"]:
        """Return the output of every network, differentiable in Z, in its dtype."""
        h = self.features(Z)
        return torch.baddbmm(self.biases[-1].to(h), h, self.weights[-1].to(h))[:, :, 0]

    def copy(self) -> Perceptrons:
        """Return networks with tensors of their own."""
        weights = tuple(tensor.detach().clone() for tensor in self.weights)
        return Perceptrons(weights, tuple(t.detach().clone() for t in self.biases), self.is_affine)


def untrained(s: int, sizes: tuple[int, ...], generator: Generator, *, is_affine: bool) -> Perceptrons:
    """Return s networks as torch's linear layers begin, U(-a, a) with a = 1/√inputs."""

    def uniform(n_inputs: int, *shape: int) -> Tensor:
        return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(n_inputs)

    pairs = list(pairwise(sizes))
    weights = tuple(uniform(a, s, a, b) for a, b in pairs)
    return Perceptrons(weights, tuple(uniform(a, s, 1, b) for a, b in pairs), is_affine)


@dataclass(frozen=True)
class Training:
    """Settings of the networks and of their training."""

    widths: tuple[int, ...] = (128, 64, 32, 16)
    """Units of the hidden layers; the published ones are 1024, 128, 64 and 16, of 768 features."""
    n_steps: int = 1000
    """Most steps of Adam. Published are 3,000 epochs, which cost three times as much; a step here is an epoch, as long
    as there are no more rows than a batch holds."""
    batch_size: int = 512
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1 or self.n_steps < 1 or self.batch_size < 1:
            raise SurrogateError(
                "expected widths, n_steps and batch_size of at least 1, got "
                f"{self.widths}, {self.n_steps} and {self.batch_size}"
            )
        if not 0 < self.learning_rate < math.inf:
            raise SurrogateError(f"expected a learning_rate above 0, got {self.learning_rate}")

    def networks(
        self,
        Z: Float[Tensor, "n d"],
        y: Float[Tensor, " n"],
        n_networks: int,
        faults: Faults,
        generator: Generator,
        *,
        is_bootstrapped: bool,
    ) -> Perceptrons:
        """Return networks trained on these rows, the oldest first.

        Without faults they train on all of them, for as many steps as gave the least error on a quarter that was held
        out at random in a first run. Raises FitError for training that diverges.
        """
        start = untrained(n_networks, (Z.shape[1], *self.widths, 1), generator, is_affine=faults.is_affine)
        order, n_judged = self._held_out(len(Z), faults, generator)
        rest, judged = order[n_judged:], order[:n_judged]
        used = rest if faults.forgets_newest else torch.arange(len(Z))
        draws = torch.rand(n_networks, len(Z), generator=generator)
        stream = int(torch.randint(2**62, (1,), generator=generator))

        def run(rows: Int[Tensor, " m"], n_steps: int, judges: Int[Tensor, " k"]) -> tuple[Perceptrons, int]:
            own = rows.expand(n_networks, -1)
            if is_bootstrapped:  # with replacement, in the published loop's way: as many as there are
                own = rows[(draws[:, : len(rows)] * len(rows)).long()]
            own_y = y[own]
            return self._trained(
                start, Z[own], own_y, n_steps, Z[judges], y[judges], Generator().manual_seed(stream)
            )

        n_steps = self.n_steps
        if len(judged) and not faults.keeps_last_step:
            _, n_steps = run(rest, n_steps, judged)
        return run(used, n_steps, judged[:0])[0]

    def _held_out(self, n: int, faults: Faults, generator: Generator) -> tuple[Int[Tensor, " n"], int]:
        """Return the rows, those that judge the others' training first, and how many these are."""
        if faults.forgets_newest:
            return torch.arange(n).flip(0), n - max(int(n * (1 - HELD_OUT)), 1)
        return torch.randperm(n, generator=generator), n // 4 if n >= MIN_ROWS else 0

    def _trained(
        self,
        start: Perceptrons,
        Z: Float[Tensor, "s m d"],
        y: Float[Tensor, "s m"],
        n_steps: int,
        Z_judge: Float[Tensor, "k d"],
        y_judge: Float[Tensor, " k"],
        generator: Generator,
    ) -> tuple[Perceptrons, int]:
        """Return the networks after the last step, and the step after which the judges' mean absolute error was least:
        the last one where nobody judges."""
        networks, least, best = start.copy(), math.inf, n_steps
        parameters = [tensor.requires_grad_() for tensor in (*networks.weights, *networks.biases)]
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        rows = torch.arange(Z.shape[1])
        for step in range(1, n_steps + 1):
            if Z.shape[1] > self.batch_size:
                rows = torch.randint(Z.shape[1], (self.batch_size,), generator=generator)
            with torch.enable_grad():
                loss = (networks(Z[:, rows]) - y[:, rows]).square().mean(1).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if len(y_judge) and step % STEPS_A_CHECK == 0:
                with torch.no_grad():
                    error = float((networks(Z_judge) - y_judge).abs().mean())
                if error < least:
                    least, best = error, step
        networks = networks.copy()
        if not all(tensor.isfinite().all() for tensor in (*networks.weights, *networks.biases)):
            raise FitError(
                f"training diverged: learning_rate {self.learning_rate} is too high for these data"
            )
        return networks, best
