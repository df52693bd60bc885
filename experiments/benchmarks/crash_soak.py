"""A campaign of 2,000 queries whose driver is killed with SIGKILL again and again, at random moments.

Its oracle bills in a file of its own, forced to disk: one line a charge, with the query's key and the answer. The
campaign may look an answer up there (`in_doubt: lookup`), as with any service that knows idempotency keys. What it
ends with is held against that bill, and against the same campaign run undisturbed.

kills            how often the driver was killed before it could finish
queries          how many queries the campaign ended with
lost             charges that the ledger does not know the answer of, and answers that nobody charged for
double_paid      keys that were charged more than once
identical        whether every design and every value is that of the undisturbed run, bit for bit
integrity_ok     whether the database and every blob are whole
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.benchmarks import harness

import torch  # isort: skip  (after the harness, which sets the number of threads)
from jaxtyping import Float
from torch import Tensor

from bbo.campaign import Campaign
from bbo.ledger import Ledger
from bbo.ledger.audit import faults
from bbo.steering import SteeredPrior
from oracles.evaluation import Evaluation
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from surrogate.ensemble import DeepEnsemble

BILL = "bill.txt"
BATCH = 16


@dataclass(frozen=True)
class BilledOracle:
    """A paraboloid that forgets nothing: what it charged is on disk before it answers."""

    bill: Path
    name: str = "billed"
    design_shape: tuple[int, ...] | None = (3,)
    n_per_call: int | None = 4
    is_idempotent: bool = False

    def evaluate(self, designs: Float[Tensor, "n 3"]) -> Sequence[Evaluation]:
        """Refuse: without a key nothing can be looked up later."""
        raise NotImplementedError("this oracle needs keys")

    def evaluate_keyed(self, designs: Float[Tensor, "n 3"], keys: Sequence[str]) -> Sequence[Evaluation]:
        """Return an evaluation a design; each is charged, however often its key comes."""
        return [self._charged(design, key) for design, key in zip(designs, keys, strict=True)]

    def lookup(self, key: str) -> Evaluation | None:
        """Return what was answered under this key, None where nothing was charged for it."""
        answers = read_bill(self.bill).get(key)
        return None if answers is None else _evaluation(answers[0])

    def _charged(self, design: Float[Tensor, " 3"], key: str) -> Evaluation:
        value = -float((design.double() - 1.5).square().sum())
        answer = "failed" if design[0] > 3 else repr(value)
        with self.bill.open("a") as file:
            file.write(f"{key} {answer}\n")
            file.flush()
            os.fsync(file.fileno())
        return _evaluation(answer)


def _evaluation(answer: str) -> Evaluation:
    return Evaluation.failed("too long") if answer == "failed" else Evaluation.of(float(answer))


def read_bill(bill: Path) -> dict[str, list[str]]:
    """Return the answers that were charged for, by key; a line that a kill cut short was never answered."""
    charged: dict[str, list[str]] = {}
    text = bill.read_text() if bill.exists() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            key, answer = line.split()
            charged.setdefault(key, []).append(answer)
    return charged


def drive(directory: Path, bill: Path, n_queries: int, seed: int) -> None:
    """Create or continue the campaign and spend its budget."""
    method = SteeredPrior(
        surrogate=DeepEnsemble(n_iterations=60),
        feasibility=None,
        kl_coef=0.1,
        sampler=SamplerConfig(n_islands=BATCH, n_particles=8),
    )
    prior = GaussianPrior(torch.zeros(3), n_steps=8)
    with Campaign.open(
        directory,
        prior=prior,
        oracle=BilledOracle(bill),
        method=method,
        budget=n_queries,
        batch_size=BATCH,
        seed=seed,
        in_doubt="lookup",
    ) as campaign:
        campaign.run()


def live(directory: Path, bill: Path, n_queries: int, seed: int, seconds: float | None) -> int:
    """Drive in a process of its own, killed after `seconds`; return how it ended (0: it finished)."""
    pid = os.fork()  # importing everything anew would take longer than a life
    if pid == 0:
        try:
            drive(directory, bill, n_queries, seed)
        except BaseException as error:
            print(f"a driver failed: {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def account(directory: Path) -> list[tuple[bytes, object]]:
    """Return design and answer of every query, in order."""
    with Ledger.open(directory) as ledger:
        queries = ledger.queries()
        designs = [ledger.blobs.get_tensors(q.artifact)["design"][q.row].numpy().tobytes() for q in queries]
        return [(design, query.evaluation) for design, query in zip(designs, queries, strict=True)]


def measure(options: harness.Options) -> harness.Figures:
    """Return the figures of this benchmark."""
    n_queries, n_kills = (96, 12) if options.is_quick else (2000, 240)
    totals = {"kills": 0, "queries": 0, "lost": 0, "double_paid": 0}
    is_identical, is_whole = True, True
    for seed in range(options.n_seeds):
        with tempfile.TemporaryDirectory() as folder:
            whole, killed = Path(folder) / "whole", Path(folder) / "killed"
            # What is imported at first use is in every fork then, and lives are spent on the campaign.
            drive(Path(folder) / "warm", Path(folder) / "warm.bill", 2 * BATCH, seed)
            assert_finished(live(whole, Path(folder) / "whole.bill", n_queries, seed, None))
            bill = Path(folder) / BILL
            totals["kills"] += soak(killed, bill, n_queries, seed, n_kills)
            charged = read_bill(bill)
            with Ledger.open(killed) as ledger:
                answered = {q.key for q in ledger.queries() if q.evaluation is not None}
                is_whole = is_whole and not list(faults(ledger))
            totals["queries"] += len(answered)
            totals["lost"] += len(answered ^ charged.keys())
            totals["double_paid"] += sum(len(answers) > 1 for answers in charged.values())
            is_identical = is_identical and account(whole) == account(killed)
    return {**totals, "identical": is_identical, "integrity_ok": is_whole}


def soak(directory: Path, bill: Path, n_queries: int, seed: int, n_kills: int) -> int:
    """Kill the driver n_kills times at random moments, or more where that leaves it unfinished; return how often."""
    chance = random.Random(seed)
    kills, alive = 0, 0.0
    while True:
        n_answered = taken(directory)
        # The kills that are left are spread over the queries that are left, at the pace so far.
        pace = max(n_answered, BATCH) / max(alive, 0.5)
        mean_life = (n_queries - n_answered) / (n_kills - kills + 1) / pace
        seconds = chance.expovariate(1 / mean_life) if kills < n_kills and n_answered < n_queries else None
        began = time.monotonic()
        code = live(directory, bill, n_queries, seed, seconds)
        alive += time.monotonic() - began
        if code == 0:
            return kills
        if code != -signal.SIGKILL:
            raise RuntimeError(f"a driver ended with {code}; expected to finish or to be killed")
        kills += 1


def taken(directory: Path) -> int:
    """Return how many queries were answered so far."""
    if not Ledger.exists(directory):
        return 0
    with Ledger.open(directory) as ledger:
        return ledger.counts().spent


def assert_finished(code: int) -> None:
    """Raise RuntimeError when the undisturbed campaign did not finish."""
    if code != 0:
        raise RuntimeError(f"the undisturbed campaign ended with {code}")


if __name__ == "__main__":
    harness.run("crash_soak", measure, n_seeds=1)
