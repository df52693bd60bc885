"""Does a test die when a numerical line of the sampler is wrong? Breaks the lines one at a time and looks.

    python tests/mutants.py [--only SUBSTRING] [--jobs 2]

Every mutant is a line of the table below. The source tree is copied to a temporary directory, the line is broken there
and the fast tests of the sampler are run until the first that fails; the checkout is never edited. What is left out of
the fast tests is the grid of settings and the importance sampling on mixtures: they see everything, slowly.

Left out of the table are lines whose change nobody can see: a hint for the device, the sorting of draws that are
shuffled anyway, a slice that ends beyond the last row.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300
TOO_SLOW = 99
LEFT_OUT = (
    "test_training.py or test_guidance.py or evidence_and_moments_are_exact or against_importance_sampling or every_mode "
    "or chunk_size"
)
"""Names of tests that are slow, or of what no sampler needs."""


@dataclass(frozen=True)
class Mutant:
    """One wrong line."""

    file: str
    old: str
    """Stands in the file exactly once."""
    new: str
    why: str
    """The mistake, in a few words."""


def _in(file: str, *lines: tuple[str, str, str]) -> tuple[Mutant, ...]:
    return tuple(Mutant(f"smc/{file}.py", old, new, why) for why, old, new in lines)


# One line a mutant, however long: that is how a table is read.
# fmt: off
# ruff: noqa: E501
WEIGHTS = _in(
    "weights",
    ("log Z starts without -log P", "-math.log(n_particles), dtype", "0.0, dtype"),
    ("NaN for the dead", "torch.where(is_dead[:, None], even, log_w - log_sum[:, None])", "log_w - log_sum[:, None]"),
    ("divided by the largest, not by the sum", "log_w - log_sum[:, None])", "log_w - log_w.amax(1)[:, None])"),
    ("log of the mean for the log of the sum", "torch.logsumexp(log_w, dim=1)\n", "torch.logsumexp(log_w, dim=1) - math.log(log_w.shape[1])\n"),
    ("ESS of W, not of W²", "torch.exp(2 * log_w)", "torch.exp(log_w)"),
    ("ESS upside down", "row_sum(torch.exp(2 * log_w)).reciprocal()", "row_sum(torch.exp(2 * log_w))"),
    ("conditional ESS forgets the present weights", "first = torch.logsumexp(log_w + log_increment", "first = torch.logsumexp(log_increment"),
    ("conditional ESS becomes that of the product", "torch.logsumexp(log_w + 2 * log_increment", "torch.logsumexp(2 * log_w + 2 * log_increment"),
    ("conditional ESS with w for w²", "log_w + 2 * log_increment", "log_w + log_increment"),
    ("conditional ESS of the first power", "torch.exp(2 * first - second)", "torch.exp(first - second)"),
    ("conditional ESS as a share", "return log_w.shape[1] * torch.exp(", "return torch.exp("),
)

RESAMPLING = _in(
    "resampling",
    ("the offset's sign", "_cumulative(log_w) - offset)", "_cumulative(log_w) + offset)"),
    ("an offset for every particle", "u[:, :1].clamp(max=1 - p * 2**-53)", "u.clamp(max=1 - p * 2**-53)"),
    ("the last offset rounds", "u[:, :1].clamp(max=1 - p * 2**-53)", "u[:, :1]"),
    ("points counted from below", "torch.ceil(p *", "torch.floor(p *"),
    ("no chance in the strata", "(strata + u) / log_w", "(strata + 0.5) / log_w"),
    ("one draw for all places", "u.sort(dim=1).values", "u[:, :1].expand_as(u)"),
    ("a point that rounds to 1", "points.clamp(max=1 - 2**-53).contiguous()", "points.contiguous()"),
    ("u = 0 reaches a weight of 0", "right=True", "right=False"),
    ("a sum that ends below 1", "return cumulative / cumulative[:, -1:]", "return cumulative"),
    ("one draw too few", "torch.where(places < n_sure,", "torch.where(places <= n_sure,"),
    ("sorted draws, of which the largest are used", "rest.logsumexp(1, keepdim=True), u)", "rest.logsumexp(1, keepdim=True), u.sort(1).values)"),
    ("the rest drawn by the whole weights", "torch.where(has_rest, left, 1.0)", "torch.where(has_rest, log_w.double().exp(), 1.0)"),
    ("a hair below a whole number is the one below", "torch.floor(expected + 1e-6)", "torch.floor(expected)"),
    ("pairs below one in sum", "is_less = a + b < 1", "is_less = a + b > 1"),
    ("odds of the other", "torch.where(is_less, a, 1 - b) / shares", "torch.where(is_less, b, 1 - a) / shares"),
    ("even odds", "wins = u[:, k] < odds", "wins = u[:, k] < 0.5"),
    ("one number for all pairs", "wins = u[:, k] < odds", "wins = u[:, 0] < odds"),
    ("who is made whole", "+= (~is_less).long()", "+= is_less.long()"),
    ("who goes on", "stays = wins == is_less", "stays = wins"),
    ("nothing is over", "a = torch.where(is_less, a + b, a + b - 1)", "a = torch.where(is_less, a + b, 0.0)"),
    ("the last carrier is forgotten", "+= (a > 0.5).long()", "+= (a > 1.5).long()"),
    ("the first of those that end together", 'scatter_reduce_(1, begins, places, "amax")', 'scatter_reduce_(1, begins, places, "amin")'),
)

TEMPERING = _in(
    "tempering",
    ("λ starts at 1", "min((1 + gamma) ** at.i - 1, 1.0)", "min((1 + gamma) ** at.i, 1.0)"),
    ("λ beyond 1", "min((1 + gamma) ** at.i - 1, 1.0)", "(1 + gamma) ** at.i - 1"),
    ("λ below 1 at clean data", "1.0 if at.i >= at.n_steps else min(", "min("),
    ("the default γ", "2 ** (1 / (0.87 * at.n_steps)) - 1", "2 ** (1 / at.n_steps) - 1"),
    ("the present step's λ", "(at.i / at.n_steps) ** self.power", "((at.i - 1) / at.n_steps) ** self.power"),
    ("the power", "(at.i / at.n_steps) ** self.power", "(at.i / at.n_steps)"),
    ("λ below 1 at clean data, adaptive", "if at.i >= at.n_steps:", "if False:"),
    ("the whole λ for its growth", "(candidate - at.lam)[:, None] * spread", "candidate[:, None] * spread"),
    ("a share for a number", "wanted = self.ess_target * at.log_w.shape[1]", "wanted = self.ess_target"),
    ("the dead count", "torch.where(torch.isneginf(at.log_psi), 0.0, at.log_psi)", "at.log_psi"),
    ("bisection stops early", "range(24)", "range(4)"),
    ("bisection takes the other half", "torch.where(is_fine, middle, low), torch.where(is_fine, high, middle)", "torch.where(is_fine, low, middle), torch.where(is_fine, middle, high)"),
    ("never the whole way at once", "return torch.where(keeps(whole_way), 1.0, low)", "return low"),
    ("λ may fall", "low, high = at.lam, whole_way", "low, high = torch.zeros_like(at.lam), whole_way"),
)

TWIST = _in(
    "twist",
    ("no Tweedie factor", "(at.denoised.tweedie * along)", "along"),
    ("the variance of a unit Jacobian", "row_dot(at.grad_x0.float(), at.grad_x.float())", "row_dot(at.grad_x0.float(), at.grad_x0.float())"),
    ("the variance in half precision", "row_dot(at.grad_x0.float(), at.grad_x.float())", "row_dot(at.grad_x0, at.grad_x)"),
    ("the root of a negative variance", "* along).clamp(min=0)", "* along)"),
    ("a negative zero for a variance", ".clamp(min=0) + 0.0", ".clamp(min=0)"),
    ("errors with the wrong sign guide", "share = share.masked_fill(along < 0, 0.0)", "pass"),
    ("wrong signs guide nobody where there is signal, too", "if at.denoised.is_noise and at.denoised.is_mean:", "if at.denoised.is_mean:"),
    ("wrong signs guide no consistency model", "if at.denoised.is_noise and at.denoised.is_mean:", "if at.denoised.is_noise:"),
    ("the wrong signs for the right ones", "share.masked_fill(along < 0, 0.0)", "share.masked_fill(along > 0, 0.0)"),
    ("τ² for τ", "tau = variance.sqrt()", "tau = variance"),
    ("a step of 1/0 where nothing is uncertain", ".masked_fill(tau == 0, 0.0)", ""),
    ("the step measured in τ²", "step = (at.denoised.tweedie / tau)", "step = (at.denoised.tweedie / variance)"),
    ("the step without Tweedie's factor", "step = (at.denoised.tweedie / tau)", "step = (1.0 / tau)"),
    ("one std along g, not along Σg", "per_row(step, at.grad_x) * at.grad_x", "per_row(tau / row_dot(at.grad_x0, at.grad_x0).clamp(min=torch.finfo(tau.dtype).tiny), at.grad_x0) * at.grad_x0"),
    ("the probe one std the wrong way", "at.denoised.x0 + per_row(step", "at.denoised.x0 - per_row(step"),
    ("the bend without its 2", "(2 * (at.value + tau", "((at.value + tau"),
    ("the bend without the tangent", "at.value + tau - ahead", "at.value - ahead"),
    ("the bend's sign", "at.value + tau - ahead", "ahead - at.value - tau"),
    ("bends upwards", "tau - ahead)).clamp(min=0)", "tau - ahead))"),
    ("the shift without the bend", "shift = (tau / (1 + bend))", "shift = (tau / torch.ones_like(bend))"),
    ("the shift without a bound", "(tau / (1 + bend)).clamp(max=self.max_shift)", "(tau / (1 + bend))"),
    ("the parabola is believed beyond where it was measured", "max_shift: float = 1.0", "max_shift: float = 3.0"),
    ("a bound that bounds nothing", "0 < self.max_shift < math.inf", "0 < self.max_shift"),
    ("the parabola without its ½", "tau - 0.5 * (1 + bend) * shift", "tau - (1 + bend) * shift"),
    ("the parabola without its bend", "0.5 * (1 + bend) * shift", "0.5 * shift"),
    ("the determinant left out", " - 0.5 * torch.log1p(bend)", ""),
    ("the determinant's sign", "- 0.5 * torch.log1p(bend)", "+ 0.5 * torch.log1p(bend)"),
    ("the determinant without its ½", "- 0.5 * torch.log1p(bend)", "- torch.log1p(bend)"),
    ("the share without the bound", "torch.minimum(1 / (1 + bend), self.max_shift / tau)", "1 / (1 + bend)"),
    ("the whole gradient", "torch.minimum(1 / (1 + bend), self.max_shift / tau)", "torch.ones_like(tau)"),
    ("an infinite answer counts as straight", "log_psi + 0 * ahead", "log_psi"),
)

PRIOR = _in(
    "prior",
    ("Tweedie without the signal", "self.noise**2 / self.signal if", "self.noise**2 if"),
    ("Tweedie with the noise's std", "self.noise**2 / self.signal if", "self.noise / self.signal if"),
    ("Tweedie of pure noise", "is_noise else 0.0", "is_noise else 1.0"),
    ("Tweedie of next to pure noise", "self.signal**2 <= 1e-4", "self.signal <= 0"),
    ("Tweedie given up too early", "self.signal**2 <= 1e-4", "self.signal**2 <= 1e-3"),
    ("the signal's root for its share of the variance", "self.signal**2 <= 1e-4", "self.signal <= 1e-4"),
    ("x0 is not gathered", "x0, eps = overwritten(self.x0, target, source),", "x0, eps = self.x0,"),
    ("eps is not gathered", ", overwritten(self.eps, target, source)", ", self.eps"),
    ("eps of another x0", "(x - signal * x0) / noise, signal", "(x - x0) / noise, signal"),
)

LOOK_AHEAD = _in(
    "look_ahead",
    ("the gradient is not gathered", "else overwritten(self.grad, target, source)", "else self.grad"),
    ("the potential is not gathered", "log_psi = overwritten(self.log_psi, target, source)", "log_psi = self.log_psi"),
    ("the estimates are not gathered", "LookAhead(self.denoised.overwritten(target, source), log_psi, grad)", "LookAhead(self.denoised, log_psi, grad)"),
    ("the share is not applied to the gradient", "grad = per_row(share, grads[1]) * grads[1]", "grad = grads[1]"),
    ("the gradient in x0 for that in x", "grad = per_row(share, grads[1]) * grads[1]", "grad = per_row(share, grads[1]) * grads[0]"),
    ("both gradients swapped", "(x0, x), allow_unused", "(x, x0), allow_unused"),
    ("a bad gradient is not seen", "torch.isfinite(log_psi + row_sum(grad))", "torch.isfinite(log_psi)"),
    ("a bad twist is not seen", "torch.isfinite(log_psi + row_sum(grad))", "torch.isfinite(row_sum(grad))"),
    ("an unknown twist kills", "buried(torch.where(is_bad, value, log_psi))", "buried(log_psi)"),
    ("a bad gradient is used", "grad.masked_fill(per_row(is_bad, grad), 0.0)", "grad"),
    ("a bad twist is counted nowhere", "NotFinite.among(denoised.x0, value, is_bad)", "NotFinite.among(denoised.x0, value, ~torch.isfinite(value))"),
    ("the unguided are not buried", "LookAhead(denoised, buried(value), None)", "LookAhead(denoised, value, None)"),
    ("buried to 0", "~torch.isfinite(log_potential), -torch.inf)", "~torch.isfinite(log_potential), 0.0)"),
    ("the islands of the first chunk for all", "asked(log_potential, denoised.x0, island[rows])", "asked(log_potential, denoised.x0, island[: len(x_t)])"),
    ("the islands of the first chunk for all, at clean data", "asked(log_potential, x0[rows], island[rows])", "asked(log_potential, x0[rows], island[: len(x0[rows])])"),
    ("weights in the potential's precision", "return value.float()", "return value"),
    ("the potential edits what it is asked about", "log_potential(x0.clone(), island)", "log_potential(x0, island)"),
    ("estimates keep their graph", "x0=denoised.x0.detach()", "x0=denoised.x0"),
    ("the noise keeps its graph", "eps=denoised.eps.detach()", "eps=denoised.eps"),
    ("values keep their graph", "values.append(value.detach())", "values.append(value)"),
    ("the first particle is shown, bad or not", "is_bad.byte().argmax(keepdim=True)", "is_bad.byte().argmin(keepdim=True)"),
    ("chunks larger than allowed", "size = max_batch or n", "size = n"),
)

RESULT = _in(
    "result",
    ("ancestors counted in every island", "index_copy(0, due, lives_on.sum(1))", "index_fill(0, due, p)"),
    ("the variance of weights is off by 1", "self.n_particles / self.ess - 1", "self.n_particles / self.ess"),
    ("draws of the first island for all", "(invert(self.log_w, points) + self._first_rows())", "(invert(self.log_w, points) + 0 * self._first_rows())"),
    ("dead islands are drawn from", "self._first_rows())[~torch.isneginf(self.log_z)]", "self._first_rows())"),
    ("islands of the wrong length", "[:, None] * p\n", "[:, None] * n_islands\n"),
    ("one draw an island, repeated", "points = uniform((len(self.log_w), n_each), self.log_w, generator)", "points = uniform((len(self.log_w), 1), self.log_w, generator).expand(-1, n_each)"),
    ("pooled draws ignore the evidence", "(self.log_w.double() + self.log_z.double()[:, None])", "(self.log_w.double() + 0 * self.log_z.double()[:, None])"),
    ("pooled draws without an offset", "+ uniform((1,), pooled, generator)) / n", "+ 0.5) / n"),
    ("pooled draws at random points", "torch.arange(n, device=pooled.device) + uniform((1,), pooled, generator)) / n", "n * uniform((n,), pooled, generator)) / n"),
    ("pooled draws in order", "rows[uniform((n,), pooled, generator).argsort()]", "rows"),
    ("the mean of log Z", "float(Z.mean().log() + self.log_z.max())", "float(self.log_z.double().mean())"),
    ("log Z without its largest", "float(Z.mean().log() + self.log_z.max())", "float(Z.mean().log())"),
    ("exp overflows", "torch.exp(self.log_z.double() - self.log_z.max())", "torch.exp(self.log_z.double())"),
    ("the sum of Z", "float(Z.mean().log()", "float(Z.sum().log()"),
    ("the scatter for the error", "(Z.mean() * math.sqrt(len(Z)))", "Z.mean()"),
    ("the error of Z for that of log Z", "Z.std() / (Z.mean() * math.sqrt(len(Z)))", "Z.std() / math.sqrt(len(Z))"),
    ("the heaviest for the best", "self.log_psi.argmax(1, keepdim=True)", "self.log_w.argmax(1, keepdim=True)"),
    ("the best of the dead", "best.flatten()[~torch.isneginf(self.log_z)]", "best.flatten()"),
)

ROWS = _in(
    "rows",
    ("a row times itself", "return row_sum(a * b)", "return row_sum(a * a)"),
    ("the wrong axis", "numbers.view(-1, *[1] * (like.dim() - 1))", "numbers.view(*[1] * (like.dim() - 1), -1)"),
    ("islands mix", "rows.index_select(0, source))", "rows.index_select(0, source % len(target)))"),
    ("source and target swapped", "rows.index_copy(0, target, rows.index_select(0, source))", "rows.index_copy(0, source, rows.index_select(0, target))"),
    ("in place", "rows.index_copy(0,", "rows.index_copy_(0,"),
)

NOISE = _in(
    "noise",
    ("uniform noise for normal", "torch.randn(shape, generator=generator, dtype=like.dtype", "torch.rand(shape, generator=generator, dtype=like.dtype"),
    ("float32 numbers that round to 1", "dtype=torch.float64, device", "dtype=torch.float32, device"),
    ("the global stream", "torch.rand(shape, generator=generator, dtype", "torch.rand(shape, dtype"),
    ("the global stream, normal", "torch.randn(shape, generator=generator, dtype", "torch.randn(shape, dtype"),
)

SCHEDULE = _in(
    "schedule",
    ("β not squared back", "n_train, dtype=torch.float64) ** 2)", "n_train, dtype=torch.float64))"),
    ("β falls", "torch.linspace(beta_start, beta_end, n_train", "torch.linspace(beta_end, beta_start, n_train"),
    ("β summed", "torch.cumprod(1 - betas, dim=0)", "(1 - torch.cumsum(betas, dim=0))"),
    ("the cosine not squared", "* math.pi / 2) ** 2", "* math.pi / 2)"),
    ("chains start a level too high", "round(n_train - i * n_train / n_steps) - 1", "round(n_train - i * n_train / n_steps) - 2"),
    ("leading without its offset", "i * stride + offset for i", "i * stride for i"),
    ("linspace from the level below", "torch.linspace(n_train - 1, 0, n_steps", "torch.linspace(n_train - 2, 0, n_steps"),
    ("clean data is level 0", "return 1.0 if t == CLEAN else alpha_bars[t]", "return alpha_bars[max(t, 0)]"),
    ("the std of the forward step", "(1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s)", "(1 - alpha_bar_t / alpha_bar_s)"),
    ("η squared", "return eta * math.sqrt(variance)", "return eta**2 * math.sqrt(variance)"),
    ("variance for std", "return eta * math.sqrt(variance)", "return eta * variance"),
    ("the mean ignores the std", "max(1 - alpha_bar_s - std**2, 0.0)", "max(1 - alpha_bar_s, 0.0)"),
    ("std for variance in the mean", "max(1 - alpha_bar_s - std**2, 0.0)", "max(1 - alpha_bar_s - std, 0.0)"),
    ("ᾱ for its root", "math.sqrt(alpha_bar_s) * x0", "alpha_bar_s * x0"),
    ("half precision goes on", "self.mean.to(torch.promote_types(self.mean.dtype, torch.float32))", "self.mean"),
    ("drift in units of the latent", "capped(self.std * grad.to(mean.dtype), max_drift)", "capped(grad.to(mean.dtype), max_drift)"),
    ("no cap", "capped(self.std * grad.to(mean.dtype), max_drift)", "self.std * grad.to(mean.dtype)"),
    ("the cap is not accounted for in the ratio", "-row_dot(delta, z + 0.5 * delta)", "-row_dot(self.std * grad, z + 0.5 * self.std * grad)"),
    ("the ratio's sign", "-row_dot(delta, z + 0.5 * delta)", "row_dot(delta, z + 0.5 * delta)"),
    ("the ratio's ½", "z + 0.5 * delta)", "z + delta)"),
    ("the ratio without noise", "row_dot(delta, z + 0.5 * delta)", "row_dot(delta, 0.5 * delta)"),
    ("the ratio with the drift's sign", "z + 0.5 * delta)", "z - 0.5 * delta)"),
    ("drift twice", "self.std * (delta + z), log_ratio", "self.std * (2 * delta + z), log_ratio"),
    ("drift the wrong way", "self.std * (delta + z), log_ratio", "self.std * (z - delta), log_ratio"),
    ("the ratio in the mean's precision", "log_ratio.float()", "log_ratio"),
    ("the cap stretches", "longest / length.clamp(min=longest)", "longest / length.clamp(min=1e-9)"),
    ("the cap on the squared length", "row_dot(drift, drift).sqrt()", "row_dot(drift, drift)"),
)

SAMPLER = _in(
    "sampler",
    ("guided before the potential counts", "max(first, math.ceil(self.guidance.start * n_steps))", "math.ceil(self.guidance.start * n_steps)"),
    ("guided a step early", "math.ceil(self.guidance.start * n_steps)", "math.floor(self.guidance.start * n_steps)"),
    ("guided a step late", "i >= n_unguided", "i > n_unguided"),
    ("the last step is guided, which has no noise", "i >= n_unguided and s != CLEAN else None", "i >= n_unguided else None"),
    ("the potential a step early", "math.ceil(self.start * n_steps)", "math.floor(self.start * n_steps)"),
    ("a start beyond the last step", "min(math.ceil(self.start * n_steps), n_steps - 1)", "math.ceil(self.start * n_steps)"),
    ("no tempering before guidance starts", "Constant() if knows and is_guided_throughout", "Constant() if knows"),
    ("guided from where the potential counts is late", "self.guidance.start <= self.start", "self.guidance.start < self.start"),
    ("the potential is never asked", "potential = log_potential if i >= n_free else _nothing", "potential = _nothing"),
    ("the potential is asked from the start", "potential = log_potential if i >= n_free else _nothing", "potential = log_potential"),
    ("λ of the step before", "config, i + 1 - n_free, n_steps - n_free", "config, i - n_free, n_steps - n_free"),
    ("λ counts free steps", "config, i + 1 - n_free, n_steps - n_free", "config, i + 1, n_steps"),
    ("resampled before the last move", "is_last=s == CLEAN", "is_last=False"),
    ("weights not renewed before resampling", "particles = reweight(particles, ahead.log_psi)", "particles = particles"),
    ("an unknown twist kills for good", "log_psi=floored(ahead.log_psi, config.n_particles)", "log_psi=ahead.log_psi"),
    ("an unknown twist counts 0", "torch.maximum(islands, lowest.masked_fill(torch.isposinf(lowest), 0.0)).flatten()", "islands.masked_fill(torch.isneginf(islands), 0.0).flatten()"),
    ("the lowest twist of all islands", "islands.masked_fill(torch.isneginf(islands), torch.inf).amin(1, keepdim=True)", "islands.masked_fill(torch.isneginf(islands), torch.inf).amin().expand(len(islands), 1)"),
    ("an island that knows nothing counts infinitely", "lowest.masked_fill(torch.isposinf(lowest), 0.0)", "lowest"),
    ("clean data do not kill", "reweight(particles, buried(value))", "reweight(particles, floored(buried(value), config.n_particles))"),
    ("the twist is not tempered", "particles.lam[:, None] * log_psi.view_as(particles.log_w)", "log_psi.view_as(particles.log_w)"),
    ("the old twist is not taken out", "particles.log_ratio + log_twist - particles.log_twist", "particles.log_ratio + log_twist"),
    ("the old twist is added", "log_twist - particles.log_twist", "log_twist + particles.log_twist"),
    ("the proposal is not accounted for", "particles.log_ratio + log_twist - particles.log_twist", "log_twist - particles.log_twist"),
    ("the ratio upside down", "particles.log_ratio + log_twist - particles.log_twist", "log_twist - particles.log_twist - particles.log_ratio"),
    ("the old weights are forgotten", "weights.normalise(particles.log_w + increment)", "weights.normalise(increment)"),
    ("evidence of the last step alone", "log_z=particles.log_z + log_mean)", "log_z=log_mean)"),
    ("evidence never grows", "log_z=particles.log_z + log_mean)", "log_z=particles.log_z)"),
    ("evidence upside down", "log_z=particles.log_z + log_mean)", "log_z=particles.log_z - log_mean)"),
    ("evidence averages over islands", "particles.log_z + log_mean)", "particles.log_z + log_mean.mean())"),
    ("the twist in the weights is not remembered", "log_w=log_w, log_twist=log_twist, log_z", "log_w=log_w, log_z"),
    ("the stream is drawn only when somebody is due", "u = uniform((config.n_islands, p), size, generator)\n    is_due = (size < config.ess_min * p) | (config.ess_min == 1)\n", "is_due = (size < config.ess_min * p) | (config.ess_min == 1)\n    u = uniform((config.n_islands, p), size, generator) if is_due.any() else size.new_zeros(config.n_islands, p, dtype=torch.float64)\n"),
    ("ess_min as a number of particles", "size < config.ess_min * p", "size < config.ess_min"),
    ("resampled above the bound", "(size < config.ess_min * p)", "(size > config.ess_min * p)"),
    ("never always", " | (config.ess_min == 1)", ""),
    ("is_last ignored", "if is_last:", "if False:"),
    ("weights of other islands", "config.resampling(particles.log_w[due], u[due])", "config.resampling(particles.log_w[: len(due)], u[due])"),
    ("numbers of other islands", "config.resampling(particles.log_w[due], u[due])", "config.resampling(particles.log_w[due], u[: len(due)])"),
    ("islands mix", "(due[:, None] * p + place).flatten() for", "(torch.arange(len(due))[:, None] * p + place).flatten() for"),
    ("x is not gathered", "        x=overwritten(particles.x, target, source),\n", ""),
    ("weights are not made equal", "        log_w=particles.log_w.index_fill(0, due, -math.log(p)),\n", ""),
    ("equal weights of 1", "index_fill(0, due, -math.log(p))", "index_fill(0, due, 0.0)"),
    ("equal weights everywhere", "particles.log_w.index_fill(0, due, -math.log(p))", "torch.full_like(particles.log_w, -math.log(p))"),
    ("the twist is not gathered", "log_twist=overwritten(particles.log_twist.flatten(), target, source).view_as(particles.log_w)", "log_twist=particles.log_twist"),
    ("the ratio is not gathered", "log_ratio=overwritten(particles.log_ratio.flatten(), target, source).view_as(particles.log_w)", "log_ratio=particles.log_ratio"),
    ("what was seen is not gathered", "return particles, ahead.overwritten(target, source), info", "return particles, ahead, info"),
    ("λ before the potential counts", "if i < 1:", "if False:"),
    ("clean data at the rule's λ", "if i == n_steps:", "if False:"),
    ("guided at the present λ", "per_row(lam.repeat_interleave(config.n_particles), grad) * grad", "per_row(particles.lam.repeat_interleave(config.n_particles), grad) * grad"),
    ("guided at λ = 1", "grad = per_row(lam.repeat_interleave(config.n_particles), grad) * grad", "grad = 1.0 * grad"),
    ("λ of other islands", "lam.repeat_interleave(config.n_particles)", "lam.repeat(config.n_particles)"),
    ("the cap is not passed on", "max_drift = config.guidance.max_drift if config.guidance is not None else math.inf", "max_drift = math.inf"),
    ("λ is not remembered", "log_ratio=log_ratio.view_as(particles.log_w), lam=lam)", "log_ratio=log_ratio.view_as(particles.log_w))"),
    ("the ratio is not remembered", "x=x, log_ratio=log_ratio.view_as(particles.log_w), lam=lam)", "x=x, lam=lam)"),
    ("clean data is not weighed", "particles = reweight(particles, buried(value))", "particles = particles"),
    ("NaN at clean data", "reweight(particles, buried(value))", "reweight(particles, value)"),
    ("NaN in the answer", "log_psi = buried(value).view_as", "log_psi = value.view_as"),
    ("one dead island is all dead", "torch.isneginf(particles.log_z).all()", "torch.isneginf(particles.log_z).any()"),
)

# fmt: on

MUTANTS = (
    WEIGHTS + RESAMPLING + TEMPERING + TWIST + PRIOR + LOOK_AHEAD + RESULT + ROWS + NOISE + SCHEDULE + SAMPLER
)


def fast_tests(mutant: Mutant | None) -> list[str]:
    """Return the sampler's test files, first the one named as the broken file is."""
    files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "smc").glob("test_*.py"))
    nearest = "" if mutant is None else f"tests/smc/test_{Path(mutant.file).name}"
    order = [nearest, "tests/smc/test_sampler.py"]
    return sorted(files, key=lambda file: order.index(file) if file in order else len(order))


class FirstFailure:
    """A pytest plugin that remembers the first test that failed."""

    name: str | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the name of the test this reports on, if it failed and none did before."""
        if report.failed and self.name is None:
            self.name = report.nodeid.removeprefix("tests/smc/")


def outcome(mutant: Mutant | None) -> tuple[bool, str]:
    """Run the fast tests on a copy with this line broken; return whether one failed, and what to print of it.

    For a process of its own: the directory, the path and both outputs are not what they were afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder)
        for part in ("smc", "tests/smc"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        for part in ("pyproject.toml", "tests/conftest.py"):
            shutil.copy(ROOT / part, copy / part)
        if mutant is not None:
            source = (copy / mutant.file).read_text()
            n = source.count(mutant.old)
            if n != 1:
                return False, f"STALE: {mutant.old!r} stands in {mutant.file} {n} times, not once"
            (copy / mutant.file).write_text(source.replace(mutant.old, mutant.new))
        try:
            return tested(copy, fast_tests(mutant))
        finally:
            os.chdir(ROOT)


def tested(copy: Path, files: list[str]) -> tuple[bool, str]:
    """Run the tests in this copy until the first fails."""
    os.chdir(copy)
    sys.path.insert(0, str(copy))  # before the checkout, which may be installed in this environment
    sys.dont_write_bytecode = True
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    signal.signal(signal.SIGALRM, lambda *_: pytest.exit("too slow", returncode=TOO_SLOW))
    signal.alarm(TIMEOUT_S)
    first = FirstFailure()
    options = ["-x", "-q", "-p", "no:cacheprovider", "-k", f"not ({LEFT_OUT})"]
    returncode = int(pytest.main([*options, *files], plugins=[first]))
    signal.alarm(0)
    return verdict(returncode, first.name)


def verdict(returncode: int, failed: str | None) -> tuple[bool, str]:
    """Return whether a test failed, and what to print: a mutant that is slow, or cannot be imported, is none."""
    if returncode == pytest.ExitCode.TESTS_FAILED and failed is not None:
        return True, f"killed by {failed}"
    if returncode == pytest.ExitCode.OK:
        return False, "SURVIVED"
    if returncode == TOO_SLOW:
        return False, f"NO VERDICT: the tests took more than {TIMEOUT_S} s"
    return False, f"NO VERDICT: pytest ended with {returncode}, which no failing test explains"


def main() -> int:
    """Print a line for every mutant; return 1 if a test is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="mutants whose file or description contains this")
    parser.add_argument("--jobs", type=int, default=2, help="test runs at a time")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = [mutant for mutant in MUTANTS if arguments.only in f"{mutant.file}: {mutant.why}"]
    if not chosen:
        parser.error(f"no mutant's file or description contains {arguments.only!r}")
    # A process for each, forked from one that has loaded what takes seconds to load.
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["pytest", "torch", "hypothesis", "jaxtyping", "beartype", "safetensors"])
    n_alive = 0
    with ProcessPoolExecutor(arguments.jobs, mp_context=forks, max_tasks_per_child=1) as pool:
        _, said = pool.submit(outcome, None).result()
        if said != "SURVIVED":
            print(f"the tests do not pass without any mutant: {said}")
            return 1
        for mutant, (is_killed, said) in zip(chosen, pool.map(outcome, chosen), strict=True):
            n_alive += not is_killed
            print(f"{mutant.file}: {mutant.why}: {said}", flush=True)
    print(f"{len(chosen) - n_alive} of {len(chosen)} mutants killed")
    return int(n_alive > 0)


if __name__ == "__main__":
    sys.exit(main())
