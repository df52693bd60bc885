"""Noise levels of a pipeline's scheduler, what its network predicts, and the steps between levels.

    x_t  = a_t · x0 + b_t · eps                                               a → signal, b → noise
    std² = η² · b_s² · (1 - a_t²·b_s² / (a_s²·b_t²))                          variance of x_s given x_t and x0, times η²
    p(x_s|x_t) = N( a_s · x0 + √(b_s² - std²) · eps,  std² · I )

Where a² + b² = 1 this is DDIM, eqs. 12 and 16 (Song et al. 2021, arXiv 2010.02502). For rectified flow, a = 1 - σ and
b = σ, it is an Euler step of the ODE at η = 0: a_s·x0 + b_s·eps = x_t + (σ_s - σ_t)·(eps - x0). With η above 0 it is a
step of an SDE with the ODE's marginals, which particles need to be told apart. As steps get small it tends to

    dx = [ v + g²/(2σ) · (x + (1-σ)·v) ] dσ + g dw,        g² = 2η²·σ/(1-σ)

the SDE of Flow-GRPO (Liu et al. 2025, arXiv 2505.05470), where v = eps - x0. Long steps keep a_s and b_s exactly, which
Euler steps of that SDE do not (Wang and Yu 2025, arXiv 2509.05952).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from smc.errors import PriorError
from smc.prior import CLEAN, Denoised
from smc.schedule import (
    GaussianKernel,
    Steps,
    check_eta,
    leading_steps,
    linspace_steps,
    renoising_std,
    trailing_steps,
)

Prediction = Callable[[Tensor, Tensor, float, float], tuple[Tensor, Tensor]]
"""(network's output, x_t, signal, noise) → (x0, eps)."""


# ---------------------------------------------------------------- what networks predict
def from_epsilon(
    output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], signal: float, noise: float
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
    """Return x0 and eps of a network that predicts eps."""
    return (x - noise * output) / signal, output


def from_v(
    output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], signal: float, noise: float
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
    """Return x0 and eps of a network that predicts v = signal·eps - noise·x0."""
    return signal * x - noise * output, noise * x + signal * output


def from_sample(
    output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], signal: float, noise: float
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
    """Return x0 and eps of a network that predicts x0."""
    return output, (x - signal * output) / noise


def from_flow(
    output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], signal: float, noise: float
) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
    """Return x0 and eps of a network that predicts the velocity eps - x0 of a rectified flow (signal + noise = 1)."""
    return x - noise * output, x + signal * output


_PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": from_epsilon,
    "v_prediction": from_v,
    "sample": from_sample,
}


# ---------------------------------------------------------------- chains
@dataclass(frozen=True)
class Levels:
    """The levels a prior walks through: plain numbers, taken from a scheduler once."""

    steps: Steps
    at: Mapping[int, tuple[float, float]]
    """t → (signal, noise), for every t of the steps and for CLEAN."""
    times: Mapping[int, float]
    """t → what the network is told of the level."""
    prediction: Prediction
    clip: float | None
    """Bound of clean estimates, for priors in pixels; None for none."""
    source: str
    """The scheduler's config and the number of steps, as JSON: what the numbers were computed from. The last digits of
    the numbers themselves differ between processors."""

    def estimates(
        self, output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], t: int
    ) -> tuple[Float[Tensor, "n *event"], Float[Tensor, "n *event"]]:
        """Return x0 and eps that a network's output at t implies. A clipped x0 has the eps that goes with it."""
        signal, noise = self.at[t]
        x0, eps = self.prediction(output, x, signal, noise)
        if self.clip is None:
            return x0, eps
        x0 = x0.clamp(-self.clip, self.clip)
        return x0, (x - signal * x0) / noise


@runtime_checkable
class Chain(Protocol):
    """Levels and how to walk through them."""

    @property
    def levels(self) -> Levels:
        """Where the chain goes."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """What of it the user chose, by name."""
        ...

    def denoised(self, output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], t: int) -> Denoised:
        """Return the estimates that a network's output at t implies."""
        ...

    def kernel(self, denoised: Denoised, s: int) -> GaussianKernel:
        """Return p(x_s | x_t). The last step has no noise."""
        ...


@dataclass(frozen=True)
class GaussianChain:
    """DDIM, or a rectified flow's SDE: the kernel above."""

    levels: Levels
    eta: float = 1.0
    """Noise of the kernel: 0 for the deterministic sampler, 1 for the ancestral one."""

    def __post_init__(self) -> None:
        check_eta(self.eta)

    @property
    def settings(self) -> Mapping[str, object]:
        """Its eta."""
        return {"eta": self.eta}

    def denoised(self, output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], t: int) -> Denoised:
        """Return the estimates that a network's output at t implies."""
        return Denoised(*self.levels.estimates(output, x, t), *self.levels.at[t])

    def kernel(self, denoised: Denoised, s: int) -> GaussianKernel:
        """Return p(x_s | x_t). The last step has no noise, even where a scheduler ends a little short of clean data."""
        signal, noise = self.levels.at[s]
        std = 0.0
        if s != CLEAN:
            std = renoising_std(denoised.signal, denoised.noise, signal, noise, self.eta)
        rest = math.sqrt(max(noise**2 - std**2, 0.0))
        return GaussianKernel(signal * denoised.x0 + rest * denoised.eps, std)


@dataclass(frozen=True)
class ConsistencyChain:
    """Multistep consistency sampling as a Markov kernel: x_s = a_s·f(x_t) + b_s·z, and f(x_t) at the end.

    Song et al. 2023 (arXiv 2303.01469), algorithm 1; f = c_skip·x_t + c_out·x0 as in latent consistency models (Luo et
    al. 2023, arXiv 2310.04378). f(x_t) is where the ODE ends, one point of the data and not the mean of them, so its
    derivative is no posterior covariance: the sampler's twist takes it for certain.
    """

    levels: Levels
    scalings: Mapping[int, tuple[float, float]]
    """t → (c_skip, c_out)."""

    @property
    def settings(self) -> Mapping[str, object]:
        """None: all its noise is new at every step."""
        return {}

    def denoised(self, output: Float[Tensor, "n *event"], x: Float[Tensor, "n *event"], t: int) -> Denoised:
        """Return f(x_t), and the eps that goes with it."""
        signal, noise = self.levels.at[t]
        c_skip, c_out = self.scalings[t]
        x0 = c_out * self.levels.estimates(output, x, t)[0] + c_skip * x
        return Denoised(x0, (x - signal * x0) / noise, signal, noise, is_mean=False)

    def kernel(self, denoised: Denoised, s: int) -> GaussianKernel:
        """Return p(x_s | x_t): all noise is new."""
        signal, noise = self.levels.at[s]
        return GaussianKernel(signal * denoised.x0, noise)


# ---------------------------------------------------------------- from schedulers
def ddim_chain(scheduler: Any, n_steps: int, eta: float) -> GaussianChain:
    """Return the DDIM chain over the noise table of any of Stable Diffusion's schedulers.

    Spacing, offset, the last ᾱ, prediction type and clipping are those of its config. Each step ends where the next
    begins; diffusers' DDIMScheduler steps by n_train // n_steps instead, which is the same only where that divides and
    the spacing is not linspace. Raises PriorError for a scheduler without such a table or with another sampler's, for
    more steps than the table has and for dynamic thresholding, which mixes the pixels of an image.
    """
    from diffusers import DDIMScheduler

    name, config = _checked(scheduler)
    if name == "LCMScheduler":
        raise PriorError(
            "the pipeline's scheduler is an LCMScheduler, so its network was distilled to consistency (by an LCM-LoRA, "
            "say) and DDIM would sample it wrongly; LatentConsistencyPrior takes distilled models that are told "
            "guidance's scale"
        )
    ddim = DDIMScheduler.from_config(config)
    ts = [t for t, _ in _spaced(ddim.config, n_steps)]
    at, prediction = _table(ddim, ts), _prediction(ddim)
    if prediction is from_epsilon and at[ts[0]][0] == 0:
        raise PriorError(
            "the scheduler's noise table ends in pure noise (rescale_betas_zero_snr), where a prediction of eps says "
            "nothing of x0; such a table needs prediction_type v_prediction or sample"
        )
    at[CLEAN] = _level(float(ddim.final_alpha_cumprod))
    times = {t: float(t) for t in ts}
    return GaussianChain(
        Levels(paired(ts), at, times, prediction, _clip(config), _source(config, n_steps)), eta
    )


def consistency_chain(scheduler: Any, n_steps: int) -> ConsistencyChain:
    """Return the chain of an LCMScheduler. Raises PriorError for another, and for more steps than were distilled."""
    from diffusers import LCMScheduler

    name, config = _checked(scheduler)
    if name != "LCMScheduler":
        raise PriorError(
            f"a latent consistency model is sampled by an LCMScheduler, and this pipeline has a {name}"
        )
    lcm = LCMScheduler.from_config(config)
    n_original = int(lcm.config.original_inference_steps)
    if not 1 <= n_steps <= n_original:
        raise PriorError(
            f"n_steps must be between 1 and the {n_original} steps that the model was distilled on, got {n_steps}"
        )
    lcm.set_timesteps(n_steps)
    ts = lcm.timesteps.tolist()
    scalings = {t: _pair(lcm.get_scalings_for_boundary_condition_discrete(t)) for t in ts}
    at = {**_table(lcm, ts), CLEAN: (1.0, 0.0)}
    times = {t: float(t) for t in ts}
    levels = Levels(paired(ts), at, times, _prediction(lcm), _clip(config), _source(config, n_steps))
    return ConsistencyChain(levels, scalings)


def flow_chain(scheduler: Any, n_steps: int, eta: float, n_tokens: int) -> GaussianChain:
    """Return the chain of a FlowMatchEulerDiscreteScheduler; t counts its levels down to 0.

    n_tokens: patches of an image, for schedulers whose shift depends on the resolution. Raises PriorError for another
    scheduler.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    name = type(scheduler).__name__
    if name != "FlowMatchEulerDiscreteScheduler":
        raise PriorError(
            f"a rectified flow is sampled by a FlowMatchEulerDiscreteScheduler, and this pipeline has a {name}"
        )
    if n_steps < 1:
        raise PriorError(f"n_steps must be at least 1, got {n_steps}")
    flow = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    flow.set_timesteps(
        n_steps, mu=_shift(flow.config, n_tokens) if flow.config.use_dynamic_shifting else None
    )
    ts = list(range(n_steps - 1, -1, -1))
    sigmas = dict(zip([*ts, CLEAN], flow.sigmas.double().tolist(), strict=True))
    times = dict(zip(ts, flow.timesteps.double().tolist(), strict=True))
    at = {t: (1 - sigma, sigma) for t, sigma in sigmas.items()}
    return GaussianChain(
        Levels(paired(ts), at, times, from_flow, None, _source(scheduler.config, n_steps)), eta
    )


def _shift(config: Any, n_tokens: int) -> float:
    """Return the shift that a resolution asks for: linear in the number of patches."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.16)
    return float(least + (most - least) * (n_tokens - low) / (high - low))


def paired(ts: list[int]) -> Steps:
    """Return falling levels as (t, s) pairs that end at CLEAN."""
    return tuple(zip(ts, [*ts[1:], CLEAN], strict=True))


def _checked(scheduler: Any) -> tuple[str, Any]:
    """Return a scheduler's class and config. Raises PriorError where it has no table of betas to read."""
    name, config = type(scheduler).__name__, scheduler.config
    if "beta_schedule" not in config and "trained_betas" not in config:
        raise PriorError(
            f"the pipeline's scheduler, a {name}, has no table of betas, so DDIM's would be another model's; known are "
            "those of Stable Diffusion: DDIM, DDPM, PNDM, Euler, DPM-Solver and the like"
        )
    if config.get("thresholding"):
        raise PriorError(
            "the scheduler's config asks for dynamic thresholding, which this program does not have: its bound "
            "depends on a quantile of each image; set thresholding to false in scheduler_config.json"
        )
    return name, config


def _spaced(config: Any, n_steps: int) -> Steps:
    """Return the steps that a config's spacing gives. Raises PriorError for more than its table has."""
    n_train = int(config.num_train_timesteps)
    match config.timestep_spacing:
        case "leading":
            return leading_steps(n_train, n_steps, int(config.steps_offset))
        case "trailing":
            return trailing_steps(n_train, n_steps)
        case "linspace":
            return linspace_steps(n_train, n_steps)
    raise PriorError(
        f"unknown timestep_spacing {config.timestep_spacing!r}; known are leading, trailing, linspace"
    )


def _clip(config: Any) -> float | None:
    """Return the bound of clean estimates; none for a scheduler that does not know of clipping.

    DDIM's own default is to clip, which is for pixels and would spoil latents.
    """
    return float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample", False) else None


def _source(config: Any, n_steps: int) -> str:
    told = {name: value for name, value in config.items() if not name.startswith("_")}
    return json.dumps([n_steps, told], sort_keys=True, default=str)


def _table(scheduler: Any, ts: list[int]) -> dict[int, tuple[float, float]]:
    return {t: _level(float(scheduler.alphas_cumprod[t])) for t in ts}


def _level(alpha_bar: float) -> tuple[float, float]:
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def _pair(numbers: Any) -> tuple[float, float]:
    first, second = map(float, numbers)
    return first, second


def _prediction(scheduler: Any) -> Prediction:
    kind = str(scheduler.config.prediction_type)
    if kind not in _PREDICTIONS:
        raise PriorError(f"unknown prediction_type {kind!r}; known are {', '.join(_PREDICTIONS)}")
    return _PREDICTIONS[kind]
