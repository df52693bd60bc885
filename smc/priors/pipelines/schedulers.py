"""Chains read from the schedulers of diffusers' pipelines, once: noise tables, spacing, what networks predict."""

from __future__ import annotations

import json
import math
from typing import Any

from smc.errors import PriorError
from smc.prior import CLEAN
from smc.priors.pipelines.chain import (
    PREDICTIONS,
    ConsistencyChain,
    GaussianChain,
    Levels,
    Prediction,
    from_epsilon,
    from_flow,
)
from smc.schedule import Steps, leading_steps, linspace_steps, trailing_steps


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
    if kind not in PREDICTIONS:
        raise PriorError(f"unknown prediction_type {kind!r}; known are {', '.join(PREDICTIONS)}")
    return PREDICTIONS[kind]
