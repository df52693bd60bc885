"""What the sampler costs beyond the network: `sample` against a bare loop of the same calls.

ratio_2500x4     CPU time of `sample` over the bare loop's: 2500 islands of 4 particles in the plane, a network of the
                 size of the paper's toy problems (5 k parameters)
ratio_300x100    the same with 300 islands of 100
ratio_big_net    the same with 16 islands of 4 images of 16 × 16, a U-Net of 1.7 M parameters
memory_ratio     peak memory of `sample` over the bare loop's, above what is resident before either, 300 × 100

The bare loop makes the network's forward pass, the reward and the gradient of one by the other, in the same chunks,
for the same chain, and nothing else: no noise, no kernel, no weights. One thread; medians of pairs run in turn.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from experiments.benchmarks import harness

import numpy as np  # isort: skip  (after the harness, which sets the number of threads)
import torch
from diffusers import UNet2DModel
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from smc.prior import Denoised
from smc.sampler import SamplerConfig, sample
from smc.schedule import GaussianKernel, Steps, ddim_kernel, linear_alpha_bars, trailing_steps

N_STEPS = 100
KEEPS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
"""glibc is to keep what was freed: otherwise both loops spend a third of their time, more or less by chance, on getting
the same pages back from the kernel, and the ratio says nothing."""
ALPHA_BARS = linear_alpha_bars()


@dataclass(frozen=True)
class EpsPrior:
    """A prior whose network predicts eps; random weights cost what trained ones do."""

    predict: Callable[[Tensor, int], Tensor]
    event_shape: tuple[int, ...]
    n_steps: int = N_STEPS

    @property
    def design_shape(self) -> tuple[int, ...]:
        return self.event_shape

    @property
    def steps(self) -> Steps:
        return trailing_steps(len(ALPHA_BARS), self.n_steps)

    def init(self, n: int, generator: Generator) -> Float[Tensor, "n *event"]:
        return torch.randn((n, *self.event_shape), generator=generator)

    def denoise(self, x: Float[Tensor, "n *event"], t: int) -> Denoised:
        signal, noise = math.sqrt(ALPHA_BARS[t]), math.sqrt(1 - ALPHA_BARS[t])
        eps = self.predict(x, t)
        return Denoised((x - noise * eps) / signal, eps, signal, noise)

    def kernel(self, x: Float[Tensor, "n *event"], denoised: Denoised, t: int, s: int) -> GaussianKernel:  # noqa: ARG002
        return ddim_kernel(ALPHA_BARS, denoised, t, s, eta=1.0)

    def decode(self, x0: Float[Tensor, "n *event"]) -> Float[Tensor, "n *event"]:
        return x0

    def fingerprint(self) -> str:
        return "random"


def small_prior() -> EpsPrior:
    """Return a prior in the plane: three linear layers, 64 wide, with the time as a third input."""
    with torch.random.fork_rng():
        network = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    network.requires_grad_(False)

    def predict(x: Float[Tensor, "n 2"], t: int) -> Float[Tensor, "n 2"]:
        out: Tensor = network(torch.cat([x, x.new_full((len(x), 1), t / len(ALPHA_BARS))], dim=1))
        return out

    return EpsPrior(predict, (2,))


def unet_prior() -> EpsPrior:
    """Return a prior of small images, with diffusers' U-Net."""
    with torch.random.fork_rng():
        unet = UNet2DModel(
            sample_size=16,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(32, 64, 96),
            down_block_types=("DownBlock2D",) * 3,
            up_block_types=("UpBlock2D",) * 3,
            norm_num_groups=8,
        )
    unet.eval().requires_grad_(False)

    def predict(x: Float[Tensor, "n 1 16 16"], t: int) -> Float[Tensor, "n 1 16 16"]:
        out: Tensor = unet(x, t).sample
        return out

    return EpsPrior(predict, (1, 16, 16), n_steps=20)


@dataclass(frozen=True)
class Load:
    """What is sampled."""

    prior: Callable[[], EpsPrior]
    n_islands: int
    n_particles: int


LOADS = {
    "2500x4": Load(small_prior, 2500, 4),
    "300x100": Load(small_prior, 300, 100),
    "big_net": Load(unet_prior, 16, 4),
}


def reward(x0: Float[Tensor, "n *event"], island: Int[Tensor, " n"]) -> Float[Tensor, " n"]:  # noqa: ARG001
    """Return the reward of the first mixture, of the first two numbers: a few multiplications."""
    flat = x0.flatten(1)
    return -flat[:, 0].square() / 100 - flat[:, 1].square()


def bare_loop(prior: EpsPrior, load: Load) -> None:
    """Call the network, the reward and the gradient as often as the sampler calls the network."""
    x = prior.init(load.n_islands * load.n_particles, Generator().manual_seed(0))
    island = torch.zeros(len(x), dtype=torch.long)
    for t, _ in prior.steps:
        x = x.detach().requires_grad_()
        torch.autograd.grad(reward(prior.denoise(x, t).x0, island).sum(), x)


def full_sampler(prior: EpsPrior, load: Load) -> None:
    """Sample at the defaults."""
    config = SamplerConfig(load.n_islands, load.n_particles)
    sample(prior, reward, config, generator=Generator().manual_seed(0))


def cpu_ratio(load: Load, n_pairs: int) -> float:
    """Return the median ratio of CPU times over pairs of runs."""
    torch.set_num_threads(1)
    made = load.prior()
    ratios = []
    for _ in range(n_pairs + 1):  # the first pair warms up
        theirs, ours = _cpu_seconds(bare_loop, made, load), _cpu_seconds(full_sampler, made, load)
        ratios.append(ours / theirs)
    return float(np.median(ratios[1:]))


def _cpu_seconds(run: Callable[[EpsPrior, Load], None], made: EpsPrior, load: Load) -> float:
    began = time.process_time()
    run(made, load)
    return time.process_time() - began


def peak_memory(run: Callable[[EpsPrior, Load], None], load: Load) -> float:
    """Return how far one run raises this process's memory, in MB, after a tiny run of the same code. Linux only."""
    torch.set_num_threads(1)
    run(load.prior(), Load(load.prior, 2, 2))
    made = load.prior()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak that importing libraries left
    before = _status("VmRSS")
    run(made, load)
    return _status("VmHWM") - before


def _status(name: str) -> float:
    """Return a line of this process's memory account, in MB."""
    (line,) = [row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name)]
    return int(line.split()[1]) / 1024


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    n_pairs = 2 if options.is_quick else options.n_seeds
    context = multiprocessing.get_context("spawn")
    memory = []
    for run in (full_sampler, bare_loop):  # a process each, with the allocator as it is
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            memory.append(pool.submit(peak_memory, run, LOADS["300x100"]).result())
    print(f"peak memory: {memory[0]:.0f} MB, bare loop {memory[1]:.0f} MB")
    os.environ.update(KEEPS_MEMORY)  # processes read it when they start
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        ratios = {
            f"ratio_{name}": pool.submit(cpu_ratio, load, n_pairs).result() for name, load in LOADS.items()
        }
    return {**ratios, "memory_ratio": memory[0] / memory[1]}


if __name__ == "__main__":
    harness.run("sampler_speed", measure, n_seeds=7)
