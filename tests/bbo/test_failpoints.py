"""A whole campaign, killed with SIGKILL before and after every commit, fsync, rename and call of the oracle.

Resumed, it has to be the campaign that nobody killed: designs and values bit for bit, no key charged twice on the
oracle's own bill, the same spend. Run as a program, this file is the driver that is killed: see `main`.
"""

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, where this file is the program

import pytest
import torch

from bbo.campaign import Campaign
from bbo.ledger import Ledger, QueryState
from bbo.ledger.audit import faults
from bbo.steering import SteeredPrior
from experiments.benchmarks.crash_soak import BilledOracle, read_bill
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from surrogate.ensemble import DeepEnsemble

ROOT = Path(__file__).resolve().parents[2]
BUDGET, BATCH, N_PER_CALL = 5, 3, 2
SEEDS = (0, 1, 2)


LISTENERS: list[Callable[[str], None]] = [lambda name: None]
"""Beside the oracle, not in it: its fields are part of what the campaign remembers."""


# ---------------------------------------------------------------- the driver
@dataclass(frozen=True)
class Watched(BilledOracle):
    """The billed oracle; the last of LISTENERS hears before and after each call."""

    n_per_call: int | None = N_PER_CALL

    def evaluate_keyed(self, designs, keys):
        LISTENERS[-1]("before send")
        evaluations = super().evaluate_keyed(designs, keys)
        LISTENERS[-1]("after send")
        return evaluations


def drive(home: Path, seed: int, policy: str) -> None:
    sampler = SamplerConfig(n_islands=3, n_particles=4)
    method = SteeredPrior(
        surrogate=DeepEnsemble(n_members=2, n_iterations=5), feasibility=None, sampler=sampler, n_shards=2
    )
    prior = GaussianPrior(torch.zeros(3), n_steps=4)
    settings = {"budget": BUDGET, "batch_size": BATCH, "seed": seed, "in_doubt": policy}
    oracle = Watched(home / "bill.txt")
    with Campaign.open(home / "run", prior=prior, oracle=oracle, method=method, **settings) as campaign:
        campaign.run()


def install_failpoints(reached: Callable[[str], None]) -> None:
    """Call `reached` before and after each commit that changes something, each fsync, rename and send."""
    LISTENERS.append(reached)
    from sqlalchemy.engine.default import DefaultDialect

    n_changes: dict[int, int] = {}
    commit = DefaultDialect.do_commit

    def watched_commit(dialect, connection):
        own = connection.dbapi_connection
        is_change = n_changes.get(id(own), 0) != own.total_changes
        n_changes[id(own)] = own.total_changes
        if is_change:
            reached("before commit")
        commit(dialect, connection)
        if is_change:
            reached("after commit")

    DefaultDialect.do_commit = watched_commit
    for name in ("fsync", "replace"):

        def watched(*args, _name=name, _original=getattr(os, name)):
            reached(f"before {_name}")
            _original(*args)
            reached(f"after {_name}")

        setattr(os, name, watched)


def in_a_process(act: Callable[[], None]) -> int:
    """Run `act` in a fork, which saves importing everything again, and return how it ended."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def drive_and_die(home: Path, seed: int, policy: str, point: int) -> None:
    seen = 0

    def reached(_: str) -> None:
        nonlocal seen
        if seen == point:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    install_failpoints(reached)
    drive(home, seed, policy)


def main(policy: str, home: Path, seed: int, step: int) -> None:
    """Drive once undisturbed, then once for every `step`th failpoint on that way, killed there and resumed."""
    names: list[str] = []

    def listed() -> None:
        install_failpoints(names.append)
        drive(home / "whole", seed, policy)
        (home / "points.txt").write_text("\n".join(names))

    for name in ("whole", "warm"):
        (home / name).mkdir()
    drive(home / "warm", seed, policy)  # what is imported at first use is in every fork then
    assert in_a_process(listed) == 0
    n_points = len((home / "points.txt").read_text().splitlines())
    for point in range(0, n_points, step):
        place = home / str(point)
        place.mkdir()
        died = in_a_process(lambda place=place, point=point: drive_and_die(place, seed, policy, point))
        assert died == -signal.SIGKILL, f"point {point}: {died}"
        assert in_a_process(lambda place=place: drive(place, seed, policy)) == 0, f"point {point}"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))


# ---------------------------------------------------------------- the proof
@pytest.fixture
def home():
    """A folder in memory, where there is one: a SIGKILL loses nothing of it, and an fsync takes no time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def killed_everywhere(home: Path, seed: int, policy: str, step: int = 1) -> list[str]:
    """Run this file as a program, without the threads of pytest, which forks dislike; return the failpoints."""
    command = [sys.executable, str(Path(__file__)), policy, str(home), str(seed), str(step)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return (home / "points.txt").read_text().splitlines()


def account(home: Path) -> list[tuple[bytes, object, str]]:
    """Return design, answer and key (without the campaign's own part) of every query, in order."""
    with Ledger.open(home / "run") as ledger:
        assert list(faults(ledger)) == []
        queries = ledger.queries()
        tensors = [ledger.blobs.get_tensors(q.artifact)["design"][q.row] for q in queries]
        return [
            (tensor.numpy().tobytes(), query.evaluation, query.key.removeprefix(ledger.uid))
            for tensor, query in zip(tensors, queries, strict=True)
        ]


@pytest.mark.parametrize("seed", SEEDS)
def test_with_lookup_it_is_the_campaign_that_nobody_killed(home: Path, seed: int) -> None:
    points = killed_everywhere(home, seed, "lookup")
    found = Counter(points)
    n_rounds, n_calls = 2, 3
    # create, drive; each round: reserve, and send and tell for each call
    assert found["before commit"] == 2 + n_rounds + 2 * n_calls
    assert found["before send"] == n_calls
    # the folder and the database; each round: two shards and a blob, and their folders
    assert found["before replace"] >= 1 + 3 * n_rounds - 1
    assert found["before fsync"] >= 2 + BUDGET + 2 * (3 * n_rounds - 1)
    assert {name.split()[1] for name in points} == {"commit", "fsync", "replace", "send"}
    assert all(
        found[f"before {what}"] == found[f"after {what}"] for what in ("commit", "fsync", "replace", "send")
    )
    whole = account(home / "whole")
    assert len(whole) == BUDGET
    n_looked_up = 0
    for point, name in enumerate(points):
        place = home / str(point)
        assert account(place) == whole, f"killed at point {point}, {name}"
        charged = read_bill(place / "bill.txt")
        assert [len(answers) for answers in charged.values()] == [1] * BUDGET, f"point {point}, {name}"
        with Ledger.open(place / "run") as ledger:
            assert ledger.counts().n == BUDGET
            assert {query.key for query in ledger.queries()} == charged.keys()
            n_looked_up += any(event.kind == "in_doubt" for event in ledger.events())
        assert not list((place / "run" / "stages").glob("*"))
    assert n_looked_up >= n_calls * 4, "kills in the middle of a call"


def test_without_lookup_nothing_is_charged_twice_and_every_doubt_is_shown(home: Path) -> None:
    points = killed_everywhere(home, 3, "count_as_spent", step=3)
    whole = account(home / "whole")
    n_doubted = 0
    for point in range(0, len(points), 3):
        place = home / str(point)
        charged = read_bill(place / "bill.txt")
        assert all(len(answers) == 1 for answers in charged.values())
        with Ledger.open(place / "run") as ledger:
            queries, counts = ledger.queries(), ledger.counts()
        assert counts.n == counts.spent + counts.in_doubt == BUDGET
        answered = {query.key for query in queries if query.evaluation is not None}
        doubted = {query.key for query in queries if query.state is QueryState.IN_DOUBT}
        assert answered <= charged.keys() <= answered | doubted
        n_doubted += bool(doubted)
        if not doubted:
            assert account(place) == whole, f"killed at point {point}, {points[point]}"
    assert n_doubted > 3
