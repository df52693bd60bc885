"""What sampling from a diffusers pipeline costs beyond its networks: `sample` against a bare loop of the same networks.

step_ratio         time of `sample` a step over the bare loop's, with the twist that makes the same calls: the slowest
                   of four families of tiny pipelines; on a CUDA device for one of Stable Diffusion 1.5's size
step_ratio_KIND    the same for each family
default_ratio      the same with the default twist, which decodes and values images once more a step, without gradient
memory_ratio       peak memory of `sample` over the bare loop's, above what is resident before either; median of pairs
gib_per_particle   what one more particle takes at 512 × 512 in float32, for networks of Stable Diffusion 1.5's size
gib_at_rest        those networks themselves
particles_24gb     the most that 24 GB hold at a time by those two numbers, and 80 GB
particles_80gb

The bare loop predicts, guides, decodes and takes one gradient a step, through the same modules with the same settings:
no kernel, no weights, no noise. The last three need some minutes and 15 GB on a CPU and are left out of --quick.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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
    LatentConsistencyPrior,
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

    def prior(self) -> LatentPrior:
        """Return the prior, with random weights from seed 0."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipeline = sd15_sized() if self.kind == "sd15_sized" else KINDS[self.kind]({})
        cls = PRIORS.get(self.kind, StableDiffusionPrior)
        made: LatentPrior = cls.from_pipeline(
            pipeline, Prompting(("a cat",), 5.0), n_steps=self.n_steps, height=self.size, width=self.size
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


def time_ratios(load: Load, n_pairs: int) -> tuple[float, float]:
    """Return the median ratios of times over pairs of runs: with the same calls, and at the default twist."""
    torch.set_num_threads(1)
    prior = load.prior()
    same, default = [], []
    for _ in range(n_pairs + 1):  # the first round warms up
        bare = _seconds(bare_loop, prior, load, SAME_CALLS)
        same.append(_seconds(full_sampler, prior, load, SAME_CALLS) / bare)
        default.append(_seconds(full_sampler, prior, load, DEFAULT) / bare)
    return float(np.median(same[1:])), float(np.median(default[1:]))


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
    """Return GiB in use before a run, and how far the run raises that at most. On a CPU: Linux only."""
    torch.set_num_threads(1)
    prior = load.prior()
    if load.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30
        run(prior, load, DEFAULT)
        return before, torch.cuda.max_memory_allocated() / 2**30 - before
    run(prior, Load(load.kind, 1, 2, load.size), DEFAULT) if load.kind != "sd15_sized" else None
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak that loading left
    before = _status_gib("VmRSS")
    run(prior, load, DEFAULT)
    return before, _status_gib("VmHWM") - before


def _status_gib(name: str) -> float:
    (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name)]
    return int(line.split()[1]) / 2**20


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function answers in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    has_cuda = torch.cuda.is_available()
    n_particles, n_steps = (4, 3) if options.is_quick else (8, 4)
    loads = {kind: Load(kind, n_particles, n_steps, 32) for kind in PRIORS}
    if has_cuda:
        loads = {"sd15_sized": Load("sd15_sized", 4, 6, 512, "cuda")}
    n_pairs = 1 if options.is_quick else options.n_seeds
    largest = next(iter(loads.values())) if has_cuda else Load("stable_diffusion", 2 * n_particles, 3, 96)
    figures = {"memory_ratio": float(np.median([_memory_ratio(largest) for _ in range(n_pairs)]))}
    if not options.is_quick:
        figures |= capacity("cuda" if has_cuda else "cpu")
    os.environ.update(KEEPS_MEMORY)  # processes read it when they start; memory is measured without it
    ratios = {kind: in_a_process(time_ratios, load, n_pairs) for kind, load in loads.items()}
    return {
        "step_ratio": max(same for same, _ in ratios.values()),
        **{f"step_ratio_{kind}": same for kind, (same, _) in ratios.items()},
        "default_ratio": max(default for _, default in ratios.values()),
        **figures,
    }


def _memory_ratio(load: Load) -> float:
    """Return the ratio of one pair of runs, a fresh process each: how a heap is fragmented is a matter of chance."""
    ours, bare = (in_a_process(peak_gib, run, load)[1] for run in (full_sampler, bare_loop))
    print(f"peak memory: {ours:.3f} GiB, bare loop {bare:.3f} GiB")
    return float(ours / bare)


def capacity(device: str) -> dict[str, float]:
    """Return how many particles of Stable Diffusion 1.5's size fit, from one and from two of them."""
    rest, one = in_a_process(peak_gib, full_sampler, Load("sd15_sized", 1, 2, 512, device))
    _, two = in_a_process(peak_gib, full_sampler, Load("sd15_sized", 2, 2, 512, device))
    each = two - one
    weights = sum(p.numel() * p.element_size() for p in _parameters()) / 2**30
    print(f"at rest {rest:.2f} GiB, one particle {one:.2f} more, two {two:.2f} more")
    most = {
        f"particles_{gb}gb": float(int((gb * 1e9 / 2**30 - weights - (one - each)) // each))
        for gb in (24, 80)
    }
    return {"gib_per_particle": each, "gib_at_rest": weights, **most}


def _parameters() -> list[Tensor]:
    with torch.device("meta"):
        pipeline = sd15_sized()
    return [*pipeline.unet.parameters(), *pipeline.vae.parameters()]


if __name__ == "__main__":
    harness.run("pipeline_cost", measure, n_seeds=5)
