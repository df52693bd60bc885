"""What Ray costs and gains on this machine, and that nothing of a result depends on it.

speedup_2               speed of sampling with two one-thread workers over that with one, same round
overhead                (time of the round on one worker - time in this process) / time in this process
round_s                 seconds of that round in this process
traffic_ratio           bytes that cross the (loopback) network in a round on two nodes with a worker each, over the
                        bytes of the belief and the results, pickled; what an idle cluster says meanwhile is taken off
node_loss_same_designs  whether a campaign on four nodes, one of which is removed in the middle of each of ten rounds,
                        has the designs of a campaign in this process, bit for bit
n_nodes_lost            how many were
job_ms                  milliseconds of the driver for each shard, besides its sampling
overlap_gain            time of a campaign whose oracle sleeps about as long as a batch takes to sample, over that of
                        the same with max_pending of two batches
parallel_gain           time of such a campaign with one call at a time over that with oracle.parallel = 4

The round: the airfoil prior, the default surrogate fitted to 256 outcomes. Repeats run in turn; ratios are medians.
"""

from __future__ import annotations

import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from experiments.benchmarks import harness

import torch  # isort: skip  (after the harness, which sets the number of threads)
from jaxtyping import Float
from torch import Tensor

from bbo.campaign import Campaign
from bbo.executor import Executor, Sampled, SampleRequest
from bbo.features import with_features
from bbo.places import Local, Place, Ray
from bbo.potential import Potential
from bbo.progress import Progress
from bbo.steering import SteeredPrior
from experiments.problems.airfoil import airfoil_prior, prior_designs, values
from oracles.callables import FunctionOracle
from smc.sampler import SamplerConfig
from smc.tempering import Exponential
from surrogate.acquisition import DecayingUCB
from surrogate.auto import Auto
from surrogate.base import Dataset
from surrogate.features import Standardizer
from surrogate.gp import ExactGP

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
"""Settings with which Ray misses a node within two seconds instead of half a minute."""


# ------------------------------------------------------------------- a round
def belief(executor: Executor, n: int) -> Potential:
    """Return the default surrogate of n airfoils, as a campaign would have it at a kl_coef of 0.05."""
    designs = prior_designs(n + n // 5, seed=0)
    y = torch.from_numpy(values(designs))
    X, y = executor.encode(designs[~y.isnan()])[:n], y[~y.isnan()][:n]
    data = Dataset(X, (y - y.mean()) / y.std(), covariance=executor.covariance)
    surrogate = Auto().fit(data, generator=torch.Generator().manual_seed(0))
    return Potential(surrogate, DecayingUCB().given(data), kl_coef=0.05)


def shards(n: int, n_islands: int) -> list[SampleRequest]:
    """Return n shards of islands of 16 particles."""
    config = SamplerConfig(n_islands, 16, tempering=Exponential())
    return [SampleRequest(config, seed=k, first_island=k * n_islands) for k in range(n)]


def equal(some: list[Sampled], others: list[Sampled]) -> bool:
    """Return whether two rounds have the same designs, bit for bit."""
    return all(torch.equal(a.result.x0, b.result.x0) for a, b in zip(some, others, strict=True))


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def speed(n_repeats: int, n_shards: int, n_islands: int) -> dict[str, float | bool]:
    """Return what two workers gain and what Ray costs."""
    prior, requests = airfoil_prior(), shards(n_shards, n_islands)
    places: dict[int, Place] = {0: Local(), 1: Ray(n_workers=1), 2: Ray(n_workers=2)}
    running = {n: with_features(place.start(prior), Standardizer(), seed=0) for n, place in places.items()}
    try:
        potential = belief(running[0], 256)
        found = {n: executor.sample(potential, requests[:2]) for n, executor in running.items()}  # warm
        seconds: dict[int, list[float]] = {n: [] for n in running}
        for _ in range(n_repeats):
            for n, executor in running.items():
                seconds[n].append(timed(partial(executor.sample, potential, requests)))
    finally:
        for executor in running.values():
            executor.close()
    for here, one, two in zip(*seconds.values(), strict=True):
        print(f"seconds of a round: here {here:.1f}, on one worker {one:.1f}, on two {two:.1f}")
    return {
        "speedup_2": _median_ratio(seconds[1], seconds[2]),
        "overhead": _median_ratio(seconds[1], seconds[0]) - 1,
        "round_s": statistics.median(seconds[0]),
        "workers_same_designs": equal(found[0], found[1]) and equal(found[0], found[2]),
    }


def _median_ratio(some: list[float], others: list[float]) -> float:
    """Return the median of ratios of neighbours in time: the machine is not the same a minute later."""
    return statistics.median(a / b for a, b in zip(some, others, strict=True))


# ------------------------------------------------------------------- several nodes
@contextmanager
def cluster(n_nodes: int) -> Iterator[Any]:
    """A cluster on this machine whose head samples nothing, with n_nodes of one CPU."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(n_nodes):
            made.add_node(num_cpus=1)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def network_bytes() -> int:
    """Return how many bytes the loopback device has carried: all that nodes on one machine say to each other."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith("lo:"))


def traffic(n_shards: int, n_islands: int) -> float:
    """Return the bytes of a round on two nodes, over those that have to travel."""
    from ray import cloudpickle

    requests = shards(n_shards, n_islands)
    with cluster(2):
        executor = with_features(Ray(n_workers=2).start(airfoil_prior()), Standardizer(), seed=0)
        try:
            potential = belief(executor, 256)
            while executor.n_workers < 2:
                executor.sample(potential, requests[:2])
            before = network_bytes()
            began = time.perf_counter()
            found = executor.sample(potential, requests)
            seconds, carried = time.perf_counter() - began, network_bytes() - before
            before = network_bytes()
            time.sleep(seconds)
            idle = network_bytes() - before
        finally:
            executor.close()
    needed = len(cloudpickle.dumps(potential)) + sum(len(cloudpickle.dumps(shard)) for shard in found)
    print(
        f"traffic of a round of {seconds:.1f} s: {carried} bytes, {idle} when idle; {needed} have to travel"
    )
    return (carried - idle) / needed


def node_losses(n_rounds: int) -> dict[str, float | bool]:
    """Return whether a campaign that loses a node in the middle of every round ends like one that loses none."""
    method = SteeredPrior(n_shards=8, sampler=SamplerConfig(16, 16, tempering=Exponential()))
    lost: list[int] = []

    def run(executor: Local | Ray, listener: Callable[[Progress], None] | None) -> Float[Tensor, "n 18"]:
        with tempfile.TemporaryDirectory() as folder:
            oracle = FunctionOracle(_lift_over_drag, is_idempotent=True, n_per_call=None)
            with Campaign.open(
                Path(folder) / "run", prior=airfoil_prior(), oracle=oracle, method=method, executor=executor,
                budget=16 * (n_rounds + 1), batch_size=16, in_doubt="retry", listener=listener,
            ) as campaign:  # fmt: skip
                campaign.run()
                return campaign.archive.designs(campaign.ledger.queries())

    with cluster(4) as nodes:

        def lose(progress: Progress) -> None:
            """Remove a node once the first of a round's eight shards is there; put another in its place later."""
            sampling = progress.sampling
            if progress.stage == "fit" and len(nodes.worker_nodes) < 4:
                nodes.add_node(num_cpus=1)
            is_begun = progress.stage == "sample" and sampling is not None and sampling.n_shards == 8
            if is_begun and sampling is not None and sampling.n_done == 1 and progress.spent not in lost:
                lost.append(progress.spent)
                node = min(nodes.worker_nodes, key=lambda node: node.node_id)
                nodes.remove_node(node, allow_graceful=False)

        there = run(Ray(n_workers=4), lose)
    here = run(Local(), None)
    return {"node_loss_same_designs": bool(torch.equal(here, there)), "n_nodes_lost": len(lost)}


def job_ms(n_jobs: int) -> float:
    """Return the milliseconds that the driver takes for a job which is nothing but itself."""
    executor = Ray(n_workers=2).start(airfoil_prior())
    try:
        tiny = SampleRequest(SamplerConfig(1, 1, guidance=None), seed=0)
        executor.sample(None, [tiny] * 2)
        seconds: list[float] = []
        wall = timed(lambda: executor.sample(None, [tiny] * n_jobs, lambda *heard: seconds.append(heard[2])))
    finally:
        executor.close()
    return 1000 * (wall - sum(seconds) / 2) / n_jobs


def _lift_over_drag(design: Any) -> float:
    value = float(values(torch.from_numpy(design)[None])[0])
    if value != value:
        raise ValueError("not feasible")
    return value


# ------------------------------------------------------------------- waiting for the oracle
def overlaps(n_rounds: int) -> dict[str, float]:
    """Return what is gained where the oracle sleeps: by sampling meanwhile, and by several calls at a time."""
    method = SteeredPrior(surrogate=ExactGP(), sampler=SamplerConfig(16, 16, tempering=Exponential()))

    def run(sleep_s: float, **settings: Any) -> float:
        def sleepy(design: Any) -> float:
            time.sleep(sleep_s)
            return -float((design**2).sum())

        with tempfile.TemporaryDirectory() as folder, Campaign.open(
            Path(folder) / "run", prior=airfoil_prior(), oracle=sleepy, method=method,
            budget=8 * n_rounds, batch_size=8, **settings,
        ) as campaign:  # fmt: skip
            return timed(campaign.run)

    sampling_s = run(0.0) / n_rounds
    print(f"a round takes {sampling_s:.2f} s without the oracle")
    alone, ahead = run(sampling_s / 8), run(sampling_s / 8, max_pending=16)
    one, four = (run(0.2, executor=Ray(n_workers=1), parallel=n) for n in (1, 4))
    print(
        f"campaigns: {alone:.1f} s, {ahead:.1f} s ahead; on Ray {one:.1f} s, {four:.1f} s with four calls at a time"
    )
    return {"overlap_gain": alone / ahead, "parallel_gain": one / four}


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    # Before Ray is imported; one token for all clusters of this process.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if options.is_quick:
        return {**speed(1, 4, 8), **node_losses(1)}
    return {
        **speed(options.n_seeds, 64, 16),
        "traffic_ratio": traffic(32, 16),
        "job_ms": job_ms(500),
        **node_losses(10),
        **overlaps(6),
    }


if __name__ == "__main__":
    harness.run("ray_scaling", measure, n_seeds=5)
