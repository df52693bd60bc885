"""What the account of a campaign costs: the driver's time a query, and the time to open and look at a large one.

fsyncs_per_query   driver time a query at batch 16, every commit synced to disk, over the time of a bare fsync of a
                   small file on the same disk: median over rounds, fsyncs timed between them. Driver time is all
                   that a campaign does for a batch besides sampling and the oracle: blob, reserve, send, tell
driver_ms          the same in milliseconds a query
fsync_ms           the bare fsync
open_100k_s        seconds to open a campaign of 100,000 queries as its driver, prior and features included
status_100k_s      seconds that the command `bbo status` takes on it, the interpreter's start included
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from experiments.benchmarks import harness

import torch  # isort: skip  (after the harness, which sets the number of threads)

from bbo.campaign import Campaign
from bbo.ledger import Ledger, Proposal
from bbo.proposals import Candidates
from oracles.callables import BatchFunctionOracle
from oracles.evaluation import Evaluation
from smc.priors.gaussian import GaussianPrior
from surrogate.base import Posterior

BATCH = 16
PRIOR = GaussianPrior(torch.zeros(18), n_steps=8)


def opened(directory: Path, budget: int) -> Campaign:
    """Create or open a campaign that asks an oracle for whole batches."""
    oracle = BatchFunctionOracle(lambda designs: [0.0] * len(designs))
    return Campaign.open(directory, prior=PRIOR, oracle=oracle, budget=budget, batch_size=BATCH)


def candidates(seed: int) -> Candidates:
    """Return a batch as the sampler would leave it, traces included."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(BATCH, 18, generator=generator)
    belief = Posterior(torch.randn(BATCH, generator=generator).double(), torch.ones(BATCH).double())
    traces = {name: torch.rand(50, 64, generator=generator) for name in ("ess_share", "lam")}
    provenance = [{"from": "target", "shard": 0, "island": i, "row": i} for i in range(BATCH)]
    return Candidates(x0, x0, provenance, belief, {"ess_share": 0.5}, traces)


def driver_and_fsync(folder: Path, n_rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each round's account, and of bare fsyncs timed between them."""
    rounds, fsyncs = [], []
    with (folder / "bare").open("wb") as file, opened(folder / "run", n_rounds * BATCH) as campaign:
        for number in range(n_rounds):
            batch = candidates(number)
            began = time.perf_counter()
            queries = campaign.reserve(batch)
            campaign.send(queries)
            campaign.tell_group(queries, [Evaluation.of(float(i)) for i in range(BATCH)])
            rounds.append(time.perf_counter() - began)
            file.write(b"x" * 100)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            fsyncs.append(time.perf_counter() - began)
    return rounds, fsyncs


def fill(directory: Path, n: int, n_per_round: int = 1000) -> None:
    """Write a campaign of n answered queries, in large rounds so that it takes seconds."""
    opened(directory, n).close()
    with Ledger.open(directory).drive() as ledger:
        blob = ledger.blobs.put_tensors({"design": torch.zeros(n_per_round, 18)})
        for number in range(n // n_per_round):
            proposals = [Proposal(row, 0.0, 1.0, {"from": "target"}) for row in range(n_per_round)]
            ids = [query.id for query in ledger.reserve(number, number, proposals, blob, {})]
            ledger.send(ids)
            ledger.tell({id_: Evaluation.of(float(id_)) for id_ in ids})


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    n_rounds, n_large = (60, 20_000) if options.is_quick else (300, 100_000)
    with tempfile.TemporaryDirectory(
        dir=Path.cwd()
    ) as name:  # the disk that campaigns are on, not one in memory
        folder = Path(name)
        rounds, fsyncs = driver_and_fsync(folder, n_rounds)
        large = folder / "large"
        fill(large, n_large)
        began = time.perf_counter()
        opened(large, n_large).close()
        seconds_to_open = time.perf_counter() - began
        command = [sys.executable, "-c", "from bbo.cli import main; main()", "status", str(large)]
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
    size = f"{n_large // 1000}k"
    return {
        "fsyncs_per_query": median(rounds) / BATCH / median(fsyncs),
        "driver_ms": 1e3 * median(rounds) / BATCH,
        "fsync_ms": 1e3 * median(fsyncs),
        f"open_{size}_s": seconds_to_open,
        f"status_{size}_s": min(seconds),
    }


if __name__ == "__main__":
    harness.run("ledger", measure, n_seeds=1)
