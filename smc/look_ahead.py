"""What the network and the log-potential say about noisy particles: clean estimates, twists and their gradients.

Both are called here and nowhere else: in chunks, with one backward pass a chunk where the proposal is to be guided.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from smc.errors import SamplerError
from smc.prior import Denoised, Prior
from smc.twist import Outlook, Twist


@runtime_checkable
class LogPotential(Protocol):
    """The function that tilts the prior."""

    def __call__(self, x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the log-potential of clean latents, differentiable in x0 where guidance is wanted.

        island: which population each row belongs to; most potentials ignore it. Rows are independent.
        """
        ...


@dataclass(frozen=True)
class LookAhead:
    """What is known of particles where they are, one row a particle, all of it detached."""

    denoised: Denoised
    log_psi: Float[Tensor, " n"]
    """The twist: what the log-potential is worth at x_t; -inf where it was not finite."""
    grad: Float[Tensor, "n *event"] | None
    """Gradient of the twist in x_t, zero where something was not finite; None where none was asked for."""
    value: Float[Tensor, " n"]
    """What the log-potential answered to the clean estimates, finite or not."""
    is_bad: Bool[Tensor, " n"]
    """Particles whose log-potential or gradient was not finite."""

    def take(self, rows: Int[Tensor, " m"]) -> LookAhead:
        """Return what is known of the particles `rows`, in that order."""
        grad = None if self.grad is None else self.grad[rows]
        return LookAhead(
            self.denoised.take(rows), self.log_psi[rows], grad, self.value[rows], self.is_bad[rows]
        )


def look_ahead(
    prior: Prior,
    log_potential: LogPotential,
    x: Float[Tensor, "n *event"],
    island: Int[Tensor, " n"],
    t: int,
    twist: Twist | None,
    max_batch: int | None,
) -> LookAhead:
    """Return the clean estimates, their twist and its gradient in x.

    Without a twist no gradient is paid for, and the twist is the log-potential of the clean estimate.
    """
    parts = [
        _glimpse(prior, log_potential, x[rows], island[rows], t, twist) for rows in chunks(len(x), max_batch)
    ]
    return parts[0] if len(parts) == 1 else _joined(parts)


def clean_values(
    log_potential: LogPotential,
    x0: Float[Tensor, "n *event"],
    island: Int[Tensor, " n"],
    max_batch: int | None,
) -> Float[Tensor, " n"]:
    """Return the log-potential of clean latents as it answers, finite or not."""
    with torch.no_grad():
        return torch.cat(
            [
                checked(log_potential(x0[rows], island[rows]), len(x0[rows]))
                for rows in chunks(len(x0), max_batch)
            ]
        )


def buried(log_potential: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the log-potential with -inf, the death of a particle, where it is not finite."""
    return torch.where(torch.isfinite(log_potential), log_potential, -torch.inf)


def checked(log_potential: Tensor, n: int) -> Float[Tensor, " n"]:
    """Return what a log-potential answered if it can be used. Raises SamplerError saying what it is instead."""
    if tuple(log_potential.shape) != (n,):
        raise SamplerError(
            f"the log-potential must return one number a row, shape ({n},), got {tuple(log_potential.shape)}"
        )
    if not log_potential.is_floating_point():
        raise SamplerError(f"the log-potential must return floating point numbers, got {log_potential.dtype}")
    return log_potential.float()


def chunks(n: int, max_batch: int | None) -> Iterator[slice]:
    """Return the rows of each call, at most `max_batch` of them."""
    size = max_batch or n
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


def _glimpse(
    prior: Prior,
    log_potential: LogPotential,
    x: Float[Tensor, "n *event"],
    island: Int[Tensor, " n"],
    t: int,
    twist: Twist | None,
) -> LookAhead:
    """Look ahead for one chunk."""
    x = x.detach().requires_grad_(twist is not None)
    with torch.set_grad_enabled(twist is not None):
        denoised = prior.denoise(x, t)
        value = checked(log_potential(denoised.x0, island), len(x))
    if twist is None:
        return LookAhead(denoised, buried(value), None, value, ~torch.isfinite(value))
    if not value.requires_grad:
        raise SamplerError(
            "guidance needs a log-potential that is differentiable in x0, but this one has no gradient; "
            "set guidance=None to propose from the prior alone"
        )
    grad_x0, grad_x = torch.autograd.grad(value.sum(), (denoised.x0, x), materialize_grads=True)
    value, denoised = value.detach(), denoised.detach()
    outlook = Outlook(
        denoised, lambda x0: checked(log_potential(x0, island), len(x0)), value, grad_x0, grad_x
    )
    with torch.no_grad():
        return _twisted(twist, outlook)


def _twisted(twist: Twist, at: Outlook) -> LookAhead:
    """Return the look-ahead with a twist. Where the twist is not finite, the log-potential itself stands in and
    nothing guides: weights account for any twist and any proposal, and the particle is counted.
    """
    log_psi, share = twist(at)
    grad = per_row(share, at.grad_x) * at.grad_x
    is_bad = ~(torch.isfinite(log_psi) & torch.isfinite(grad).flatten(1).all(1))
    return LookAhead(
        at.denoised,
        buried(torch.where(is_bad, at.value, log_psi)),
        torch.where(per_row(is_bad, grad), 0.0, grad),
        at.value,
        is_bad,
    )


def per_row(numbers: Shaped[Tensor, " n"], like: Tensor) -> Shaped[Tensor, "n *ones"]:
    """Return one number a row, shaped to be multiplied with rows of any shape."""
    return numbers.view(-1, *[1] * (like.dim() - 1))


def _joined(parts: Sequence[LookAhead]) -> LookAhead:
    """Return the chunks' look-aheads as one."""
    grads = [part.grad for part in parts if part.grad is not None]
    denoised = replace(
        parts[0].denoised,
        x0=torch.cat([part.denoised.x0 for part in parts]),
        eps=torch.cat([part.denoised.eps for part in parts]),
    )
    return LookAhead(
        denoised,
        torch.cat([part.log_psi for part in parts]),
        torch.cat(grads) if grads else None,
        torch.cat([part.value for part in parts]),
        torch.cat([part.is_bad for part in parts]),
    )
