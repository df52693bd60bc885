"""What the network and the log-potential say about noisy particles: clean estimates, twists and their gradients.

Both are called here and nowhere else: in chunks, with one backward pass a chunk where the proposal is to be guided.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smc.errors import SamplerError
from smc.prior import Denoised, Prior, rows_of
from smc.rows import overwritten, per_row, row_sum
from smc.twist import Outlook, Twist


@runtime_checkable
class LogPotential(Protocol):
    """The function that tilts the prior."""

    def __call__(self, x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the log-potential of clean latents, differentiable in x0 where guidance is wanted.

        island: which population each row belongs to; most potentials ignore it. Rows are independent. The answer is
        used in float32: subtract what is the same for all rows, since a large constant costs small differences.
        """
        ...


@dataclass(frozen=True)
class LookAhead:
    """What is known of particles where they are, one row a particle, all of it detached."""

    denoised: Denoised
    log_psi: Float[Tensor, " n"]
    """The twist: what the log-potential is worth at x_t; -inf where it is not known."""
    grad: Float[Tensor, "n *event"] | None
    """Gradient of the twist in x_t, zero where something was not finite; None where none was asked for."""

    def overwritten(self, target: Int[Tensor, " m"], source: Int[Tensor, " m"]) -> LookAhead:
        """Return what is known once the particles `target` have become copies of `source`."""
        grad = None if self.grad is None else overwritten(self.grad, target, source)
        log_psi = overwritten(self.log_psi, target, source)
        return LookAhead(self.denoised.overwritten(target, source), log_psi, grad)


@dataclass(frozen=True)
class NotFinite:
    """Where something was not finite, and one example to show."""

    is_bad: Bool[Tensor, " n"]
    """Particles whose log-potential, twist or gradient was not finite."""
    x0: Float[Tensor, "*event"]
    """Clean estimate of the first of them."""
    value: Float[Tensor, ""]
    """What the log-potential answered to it."""

    @classmethod
    def among(
        cls, x0: Float[Tensor, "n *event"], value: Float[Tensor, " n"], is_bad: Bool[Tensor, " n"]
    ) -> NotFinite:
        """Return the bad particles with the first of them; nothing waits for the device."""
        first = is_bad.byte().argmax(keepdim=True)
        # Copies: an index with a number would wait for it, and its views would keep every step's x0 in memory.
        return cls(is_bad, x0.index_select(0, first)[0], value.index_select(0, first)[0])


def look_ahead(
    prior: Prior,
    log_potential: LogPotential,
    x: Float[Tensor, "n *event"],
    island: Int[Tensor, " n"],
    t: int,
    twist: Twist | None,
    max_batch: int | None,
) -> tuple[LookAhead, NotFinite]:
    """Return the clean estimates, their twist and its gradient in x; and what of them was not finite.

    Without a twist no gradient is paid for, and the log-potential of the clean estimate stands in for it. So it does,
    without guidance, where a twist is not finite: weights account for any twist and any proposal.
    """
    denoised, value, grads = _estimates(
        prior, log_potential, x, island, t, max_batch, is_guided=twist is not None
    )
    if twist is None or grads is None:
        not_finite = NotFinite.among(denoised.x0, value, ~torch.isfinite(value))
        return LookAhead(denoised, buried(value), None), not_finite
    ask = partial(clean_values, log_potential, island=island, max_batch=max_batch)
    with torch.no_grad():
        log_psi, share = twist(Outlook(denoised, ask, value, *grads))
    grad = per_row(share, grads[1]) * grads[1]
    is_bad = ~torch.isfinite(log_psi + row_sum(grad))
    not_finite = NotFinite.among(denoised.x0, value, is_bad)
    return LookAhead(
        denoised, buried(torch.where(is_bad, value, log_psi)), grad.masked_fill(per_row(is_bad, grad), 0.0)
    ), not_finite


def _estimates(
    prior: Prior,
    log_potential: LogPotential,
    x: Float[Tensor, "n *event"],
    island: Int[Tensor, " n"],
    t: int,
    max_batch: int | None,
    *,
    is_guided: bool,
) -> tuple[Denoised, Float[Tensor, " n"], tuple[Tensor, Tensor] | None]:
    """Return the clean estimates, their log-potential and, where guided, its gradients in x0 and in x."""
    parts, values, grads = [], [], []
    for rows in chunks(len(x), max_batch):
        with torch.set_grad_enabled(is_guided):
            x_t = x[rows].detach().requires_grad_(is_guided)
            denoised = rows_of(prior, island[rows]).denoise(x_t, t)
            value = asked(log_potential, denoised.x0, island[rows])
            if is_guided:
                grads.append(gradients(value, denoised.x0, x_t))
        parts.append(replace(denoised, x0=denoised.x0.detach(), eps=denoised.eps.detach()))
        values.append(value.detach())
    x0, eps = joined([part.x0 for part in parts]), joined([part.eps for part in parts])
    denoised = replace(parts[0], x0=x0, eps=eps)
    both = (joined([g for g, _ in grads]), joined([g for _, g in grads])) if is_guided else None
    return denoised, joined(values), both


def clean_values(
    log_potential: LogPotential,
    x0: Float[Tensor, "n *event"],
    island: Int[Tensor, " n"],
    max_batch: int | None,
) -> Float[Tensor, " n"]:
    """Return the log-potential of clean latents as it answers, finite or not, without a gradient."""
    with torch.no_grad():
        return joined([asked(log_potential, x0[rows], island[rows]) for rows in chunks(len(x0), max_batch)])


def buried(log_potential: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return the log-potential with -inf, the death of a particle, where it is not finite."""
    return log_potential.masked_fill(~torch.isfinite(log_potential), -torch.inf)


def asked(
    log_potential: LogPotential, x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return what the log-potential answers, checked. It is given a copy: it may edit that in place."""
    return checked(log_potential(x0.clone(), island), x0)


def checked(value: object, x0: Float[Tensor, "n *event"]) -> Float[Tensor, " n"]:
    """Return what a log-potential answered if it can be used. Raises SamplerError saying what it is instead."""
    if not isinstance(value, Tensor):
        raise SamplerError(f"the log-potential must return a torch.Tensor, got {type(value).__name__}")
    if tuple(value.shape) != (len(x0),):
        raise SamplerError(
            f"the log-potential must return one number a row, shape ({len(x0)},), got {tuple(value.shape)}"
        )
    if not value.is_floating_point():
        raise SamplerError(f"the log-potential must return floating point numbers, got {value.dtype}")
    if value.device != x0.device:
        raise SamplerError(
            f"the log-potential must answer on the device it is asked on, {x0.device}, not {value.device}"
        )
    return value.float()


def gradients(
    value: Float[Tensor, " n"], x0: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"]
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
    """Return the gradients of each row's value in x0 and in x. Raises SamplerError where there is none."""
    found: tuple[Tensor | None, ...] = (None, None)
    if value.requires_grad:
        found = torch.autograd.grad(value.sum(), (x0, x), allow_unused=True)
    if found[0] is None or found[1] is None:
        raise SamplerError(
            "guidance needs a log-potential that is differentiable in x0, but this one has no gradient; "
            "set guidance=None to propose from the prior alone"
        )
    return found[0], found[1]


def chunks(n: int, max_batch: int | None) -> Iterator[slice]:
    """Return the rows of each call, at most `max_batch` of them."""
    size = max_batch or n
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


def joined(parts: list[Tensor]) -> Tensor:
    """Return the chunks' rows as one tensor."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
