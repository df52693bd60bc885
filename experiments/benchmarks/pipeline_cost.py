"""What sampling from a diffusers pipeline costs beyond its networks: `sample` against a bare loop of the same networks.

step_ratio         time of `sample` a step over the bare loop's, with the twist that makes the same calls: the slowest
                   of four families of tiny pipelines
step_ratio_KIND    the same for each family
default_ratio      the same with the default twist, which decodes and values images once more a step, without gradient
memory_ratio       peak memory of `sample` over the bare loop's, above what is resident before either; median of pairs
gib_per_particle   what one more particle takes at 512 × 512 in float32, for networks of Stable Diffusion 1.5's size
gib_at_rest        those networks themselves
particles_24gb     the most that 24 GB hold at a time by those two numbers, and 80 GB
particles_80gb

The bare loop predicts, guides, decodes and takes one gradient a step, through the same modules with the same settings:
no kernel, no weights, no noise. The last four need some minutes and 15 GB on a CPU and are left out of --quick.

Where there is a CUDA device the same is measured there instead, for networks of Stable Diffusion 1.5's size alone,
once with weights in float32 and once in float16: `step_ratio_float16`, and so on. Memory is what torch allocates, of
one pair. In seconds as well:

ms_per_particle_step   what a step of one of four particles takes at the default twist, averaged over six steps, the
                       last of which is not guided

--quick leaves float32 out.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.benchmarks import harness
from experiments.benchmarks.sampler_speed import KEEPS_MEMORY

import numpy as np  # isort: skip  (after the harness, which sets the number of threads)
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from experiments.tiny_pipelines import KINDS, sd15_sized
from smc.look_ahead import LogPotential
from smc.prior import rows_of
from smc.priors.pipelines import (
    Dtype,
    LatentConsistencyPrior,
    Precision,
    Prompting,
    StableDiffusion3Prior,
    StableDiffusionPrior,
    StableDiffusionXLPrior,
)
from smc.priors.pipelines.latent_prior import LatentPrior
from smc.sampler import Guidance, SamplerConfig, sample
from smc.twist import PointEstimate, PosteriorVariance, Twist

PRIORS: dict[str, Any] = {
    "stable_diffusion": StableDiffusionPrior,
    "stable_diffusion_xl": StableDiffusionXLPrior,
    "stable_diffusion_3": StableDiffusion3Prior,
    "latent_consistency": LatentConsistencyPrior,
}
SAME_CALLS, DEFAULT = PointEstimate(), PosteriorVariance()


@dataclass(frozen=True)
class Load:
    """What is sampled."""

    kind: str
    n_particles: int
    n_steps: int
    size: int
    device: str = "cpu"
    weights: Dtype = Dtype.FLOAT32

    def prior(self) -> LatentPrior:
        """Return the prior, with random weights from seed 0, made on its device."""
        with torch.random.fork_rng(), torch.device(self.device):
            torch.manual_seed(0)
            pipeline = sd15_sized() if self.kind == "sd15_sized" else KINDS[self.kind]({})
        if self.weights is not Dtype.FLOAT32:
            pipeline.to(self.weights.torch)
        cls = PRIORS.get(self.kind, StableDiffusionPrior)
        made: LatentPrior = cls.from_pipeline(
            pipeline,
            Prompting(("a cat",), 5.0),
            n_steps=self.n_steps,
            height=self.size,
            width=self.size,
            precision=Precision(self.weights),
        )
        return made.to(self.device)


def brightness(prior: LatentPrior) -> LogPotential:
    """Return a reward that costs nothing but the decoding."""

    def value(x0: Float[Tensor, "n c h w"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:  # noqa: ARG001
        return prior.decode(x0).flatten(1).mean(1)

    return value


def bare_loop(prior: LatentPrior, load: Load, twist: Twist) -> None:  # noqa: ARG001
    """Call networks and gradient as often as the sampler does, and nothing else."""
    reward, island = brightness(prior), torch.zeros(load.n_particles, dtype=torch.long)
    x = prior.init(load.n_particles, Generator().manual_seed(0))
    for t, _ in prior.steps[:-1]:
        x = x.detach().requires_grad_()
        torch.autograd.grad(reward(rows_of(prior, island).denoise(x, t).x0, island).sum(), x)
    with torch.no_grad():  # the last step is not guided, and clean images are valued once more
        x0 = prior.denoise(x, prior.steps[-1][0]).x0
        for _ in range(2):
            reward(x0, island)


def full_sampler(prior: LatentPrior, load: Load, twist: Twist) -> None:
    """Sample at the defaults, but for the twist."""
    config = SamplerConfig(n_islands=1, n_particles=load.n_particles, guidance=Guidance(twist))
    sample(prior, brightness(prior), config, generator=Generator().manual_seed(0))


Run = Callable[[LatentPrior, Load, Twist], None]


def made_and_timed(load: Load, n_pairs: int) -> dict[str, float]:
    """Return the figures of time in this process, which makes the prior first."""
    torch.set_num_threads(1)
    return times(load.prior(), load, n_pairs)


def times(prior: LatentPrior, load: Load, n_pairs: int) -> dict[str, float]:
    """Return the median ratios of times over pairs of runs, and milliseconds a particle and step."""
    rounds = []
    for _ in range(n_pairs + 1):  # the first round warms up
        bare = _seconds(bare_loop, prior, load, SAME_CALLS)
        same, default = (_seconds(full_sampler, prior, load, twist) for twist in (SAME_CALLS, DEFAULT))
        rounds.append((same / bare, default / bare, 1e3 * default / (load.n_particles * load.n_steps)))
    medians = np.median(rounds[1:], axis=0).tolist()
    return dict(zip(("step_ratio", "default_ratio", "ms_per_particle_step"), medians, strict=True))


def _seconds(run: Run, prior: LatentPrior, load: Load, twist: Twist) -> float:
    """Return CPU seconds, or on a CUDA device seconds until all is done."""
    if load.device == "cpu":
        began = time.process_time()
        run(prior, load, twist)
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    run(prior, load, twist)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_gib(run: Run, load: Load) -> tuple[float, float]:
    """Return GiB in use before a run, and how far the run raises that at most, of this process; Linux only."""
    torch.set_num_threads(1)
    prior = load.prior()
    run(prior, Load(load.kind, 1, 2, load.size), DEFAULT) if load.kind != "sd15_sized" else None
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak that loading left
    before = _status_gib("VmRSS")
    run(prior, load, DEFAULT)
    return before, _status_gib("VmHWM") - before


def gpu_peak_gib(run: Run, prior: LatentPrior, load: Load) -> float:
    """Return how many GiB of a GPU a run takes at most, besides the prior."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(prior, load, DEFAULT)
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def _status_gib(name: str) -> float:
    (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name)]
    return int(line.split()[1]) / 2**20


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function answers in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    n_pairs = 1 if options.is_quick else options.n_seeds
    if torch.cuda.is_available():
        return on_gpu(n_pairs, options.is_quick)
    return on_cpu(n_pairs, options.is_quick)


def on_cpu(n_pairs: int, is_quick: bool) -> dict[str, float]:
    """Return the figures of four families of tiny pipelines, and the memory of one that is not tiny."""
    n_particles, n_steps = (4, 3) if is_quick else (8, 4)
    largest = Load("stable_diffusion", 2 * n_particles, 3, 96)
    memory = {"memory_ratio": float(np.median([_memory_ratio(largest) for _ in range(n_pairs)]))}
    if not is_quick:
        (rest, one), (_, two) = (
            in_a_process(peak_gib, full_sampler, Load("sd15_sized", n, 2, 512)) for n in (1, 2)
        )
        print(f"at rest {rest:.2f} GiB, one particle {one:.2f} more, two {two:.2f} more")
        memory |= capacity(one, two, Dtype.FLOAT32)
    os.environ.update(KEEPS_MEMORY)  # processes read it when they start; memory is measured without it
    found = {
        kind: in_a_process(made_and_timed, Load(kind, n_particles, n_steps, 32), n_pairs) for kind in PRIORS
    }
    return {
        "step_ratio": max(figures["step_ratio"] for figures in found.values()),
        **{f"step_ratio_{kind}": figures["step_ratio"] for kind, figures in found.items()},
        "default_ratio": max(figures["default_ratio"] for figures in found.values()),
        **memory,
    }


def on_gpu(n_pairs: int, is_quick: bool) -> dict[str, float]:
    """Return the figures of networks of Stable Diffusion 1.5's size, in float32 and in float16."""
    found: dict[str, float] = {}
    for weights in (Dtype.FLOAT16,) if is_quick else (Dtype.FLOAT32, Dtype.FLOAT16):
        load = Load("sd15_sized", 4, 6, 512, "cuda", weights)
        prior = load.prior()
        figures = times(prior, load, n_pairs)
        one, two, ours = (
            gpu_peak_gib(full_sampler, prior, replace(load, n_particles=n)) for n in (1, 2, load.n_particles)
        )
        figures["memory_ratio"] = ours / gpu_peak_gib(bare_loop, prior, load)
        figures |= capacity(one, two, weights)
        found |= {f"{name}_{weights.value}": value for name, value in figures.items()}
    return found


def _memory_ratio(load: Load) -> float:
    """Return the ratio of one pair of runs, a fresh process each: how a heap is fragmented is a matter of chance."""
    ours, bare = (in_a_process(peak_gib, run, load)[1] for run in (full_sampler, bare_loop))
    print(f"peak memory: {ours:.3f} GiB, bare loop {bare:.3f} GiB")
    return float(ours / bare)


def capacity(one: float, two: float, weights: Dtype) -> dict[str, float]:
    """Return how many particles of Stable Diffusion 1.5's size fit, from the GiB that one takes and that two take."""
    each = two - one
    at_rest = sum(p.numel() * weights.torch.itemsize for p in _parameters()) / 2**30
    most = {
        f"particles_{gb}gb": float(int((gb * 1e9 / 2**30 - at_rest - (one - each)) // each))
        for gb in (24, 80)
    }
    return {"gib_per_particle": each, "gib_at_rest": at_rest, **most}


def _parameters() -> list[Tensor]:
    with torch.device("meta"):
        pipeline = sd15_sized()
    return [*pipeline.unet.parameters(), *pipeline.vae.parameters()]


if __name__ == "__main__":
    harness.run("pipeline_cost", measure, n_seeds=5)
