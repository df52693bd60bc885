"""Killed with SIGKILL at every commit, fsync and rename, and resumed: nothing is paid twice, nothing lost.

Run as a program, this file is the driver that is killed: see `main`.
"""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from bbo.ledger import Counts, Ledger, Proposal, QueryState
from oracles.evaluation import Evaluation

ROOT = Path(__file__).resolve().parents[2]
N_ROUNDS, N_PER_ROUND, N_PER_CALL = 3, 4, 2
BUDGET = N_ROUNDS * N_PER_ROUND
BILL = "bill.txt"
"""What the oracle charged, kept by the oracle: one line a charge."""


# ---------------------------------------------------------------- the driver
def oracle_answer(round_number: int, slot: int) -> Evaluation:
    if slot == 3:
        return Evaluation.failed(f"infeasible in round {round_number}")
    return Evaluation.of(round_number + slot / 7)


def drive_to_the_end(directory: Path) -> None:
    """Take up what waits, then reserve the next round, until the budget is spent: as every campaign does."""
    if Ledger.exists(directory):
        ledger = Ledger.open(directory)
    else:
        ledger = Ledger.create(directory, name="crash", budget=BUDGET, config={})
    with ledger:
        ledger.drive()
        ledger.doubt_sent()
        for number in range(N_ROUNDS):
            if number == len(ledger.rounds()):
                artifact = ledger.blobs.put_bytes(f"designs of round {number}".encode())
                ledger.reserve(number, number, [Proposal(i) for i in range(N_PER_ROUND)], artifact, {})
            waiting = ledger.queries({QueryState.RESERVED}, {number})
            for start in range(0, len(waiting), N_PER_CALL):
                group = waiting[start : start + N_PER_CALL]
                ledger.send([query.id for query in group])
                for query in group:
                    charge(directory / BILL, query.key)
                ledger.tell({query.id: oracle_answer(query.round, query.slot) for query in group})


def charge(bill: Path, key: str) -> None:
    with bill.open("a") as file:
        file.write(key + "\n")
        file.flush()
        os.fsync(file.fileno())  # killed here, before and after, as well


def install_failpoints(reached: Callable[[str], None]) -> None:
    """Call `reached` before and after each commit, fsync and rename from here on."""
    from sqlalchemy.engine.default import DefaultDialect

    for owner, name in ((DefaultDialect, "do_commit"), (os, "fsync"), (os, "replace")):

        def wrapped(*args: object, _name: str = name, _original: Callable = getattr(owner, name)) -> object:
            reached(f"before {_name}")
            result = _original(*args)
            reached(f"after {_name}")
            return result

        setattr(owner, name, wrapped)


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


def drive_and_die(directory: Path, point: int) -> None:
    seen = 0

    def reached(_: str) -> None:
        nonlocal seen
        if seen == point:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    install_failpoints(reached)
    drive_to_the_end(directory)


def failpoints(directory: Path) -> list[str]:
    """Drive to the end and return every failpoint on the way."""
    names: list[str] = []
    install_failpoints(names.append)
    drive_to_the_end(directory)
    return names


def main(mode: str, directory: Path, *points: str) -> None:
    """Drive a campaign undisturbed (list), or one per point, killed there once (each) or always (again)."""
    if mode == "list":
        print("\n".join(failpoints(directory)))
    elif mode == "each":
        for point in points:
            assert in_a_process(lambda p=point: drive_and_die(directory / p, int(p))) == -signal.SIGKILL
            assert in_a_process(lambda p=point: drive_to_the_end(directory / p)) == 0
    else:
        for point in points:
            codes = [-signal.SIGKILL]
            while codes[-1] == -signal.SIGKILL:
                codes.append(in_a_process(lambda p=point: drive_and_die(directory / p, int(p))))
                assert len(codes) < 100, f"no progress when killed at point {point} of each life"
            assert codes[-1] == 0
            print(point, len(codes) - 1)


# ---------------------------------------------------------------- the proof
def run_driver(*arguments: object) -> str:
    """Run this file in a fresh process, without the threads of pytest and torch: forks dislike them."""
    command = [sys.executable, str(Path(__file__)), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def check_account(directory: Path, n_lost_at_most: int) -> Counts:
    """Hold the ledger against the oracle's own bill."""
    bill = (directory / BILL).read_text().split()
    with Ledger.open(directory) as ledger:
        queries, counts = ledger.queries(), ledger.counts()
        designs = [ledger.blobs.get_bytes(record.artifact) for record in ledger.rounds() if record.artifact]
    assert len(set(bill)) == len(bill), "a key was charged twice"
    answered = {query.key for query in queries if query.evaluation is not None}
    doubted = {query.key for query in queries if query.state is QueryState.IN_DOUBT}
    assert answered <= set(bill), "an answer that nobody paid for"
    assert set(bill) <= answered | doubted, "a charge that the ledger forgot"
    assert counts.n == counts.spent + counts.in_doubt == len(queries) == BUDGET
    assert counts.in_doubt <= n_lost_at_most
    assert designs == [f"designs of round {number}".encode() for number in range(N_ROUNDS)]
    assert [(q.round, q.slot, q.row) for q in queries] == [
        (number, slot, slot) for number in range(N_ROUNDS) for slot in range(N_PER_ROUND)
    ]
    for query in queries:
        assert query.evaluation == (None if query.key in doubted else oracle_answer(query.round, query.slot))
        assert query.n_sent == 1
    return counts


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("undisturbed")
    names = run_driver("list", directory).split("\n")[:-1]
    assert check_account(directory, 0).spent == BUDGET
    return names


def test_the_failpoints_cover_what_has_to_hold(points: list[str]) -> None:
    n_calls = BUDGET // N_PER_CALL
    # Create, drive and doubt; each reserve; each send and tell; and what only reads.
    assert points.count("before do_commit") > 3 + N_ROUNDS + 2 * n_calls
    # The database; each blob.
    assert points.count("before replace") == 1 + N_ROUNDS
    # The folders of database and blobs; each blob and its folder; each charge.
    assert points.count("before fsync") == 2 + 2 * N_ROUNDS + BUDGET
    assert len(points) % 2 == 0


def test_killed_at_every_point_and_resumed(tmp_path: Path, points: list[str]) -> None:
    run_driver("each", tmp_path, *range(len(points)))
    n_doubted = [check_account(tmp_path / str(point), N_PER_CALL).in_doubt for point in range(len(points))]
    assert set(n_doubted) == {0, N_PER_CALL}, "kills in the middle of a call, and kills beside one"


def test_killed_in_every_life(tmp_path: Path) -> None:
    lives = dict(map(int, line.split()) for line in run_driver("again", tmp_path, 26, 31, 38).splitlines())
    for point, n_lives in lives.items():
        assert n_lives > 2
        check_account(tmp_path / str(point), N_PER_CALL * (n_lives - 1))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
