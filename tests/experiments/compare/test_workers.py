"""Suites that are stopped by Ctrl-C, a second one, or a kill: what is paid for is kept, and nothing goes on."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest

from bbo.ledger import Ledger
from bbo.progress import INTERRUPTED, Progress
from experiments.compare.reading import read
from experiments.compare.running import run_all, run_one, waiting
from experiments.compare.suite import Job, load_suite
from experiments.compare.workers import stop_when_enough
from tests.experiments.small_suite import problem, run, written
from tests.interruptions import ctrl_c_allowed
from tests.oracles.test_command import has_died


@contextmanager
def begun(folder, path, *overrides):
    """Begin a suite by two processes, in a group of its own, which nothing of it outlives."""
    arguments = ["compare", "run", str(path), *overrides, "--processes", "2"]
    command = [sys.executable, "-c", "from bbo.cli import main; main()", *arguments]
    with (folder / "said").open("w") as output, ctrl_c_allowed():
        program = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, start_new_session=True)
        try:
            yield program
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()


def said(folder):
    """Return the lines that the suite has printed so far."""
    return (folder / "said").read_text().splitlines()


def asked(folder):
    """Return the processes in which a design was asked for that is never answered."""
    path = folder / "asked"
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def wait_until(is_so, seconds=120):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def n_queries(runs):
    return len(read(runs).queries) if list(runs.glob("*/*/*/ledger.sqlite")) else 0


def is_anybody_left(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class TestSuite:
    def test_closed_it_begins_no_other_campaign_and_ends_those_that_run(self, folder):
        """Closing is what an interruption of the consumer does."""
        path = written(folder, problems={"quick": problem("value"), "slow": problem("slow")})
        jobs = sorted(load_suite(path).jobs, key=lambda job: (job.method != "prior", job))
        going = run_all(path, ("suite.budget=200",), jobs, 2)
        first = next(going)
        slow = folder / "runs/slow/prior/seed-0"
        wait_until(lambda: Ledger.exists(slow))
        going.close()
        assert (str(first.job), first.refusal) == ("quick/prior/seed-0", None)
        found = read(folder / "runs").campaigns.set_index(["problem", "seed"])
        assert set(found["method"]) == {"prior"}
        assert len(found) <= 3
        assert found.loc[("slow", 0), "n_queries"] < 200

    def test_it_is_interrupted_and_goes_on(self, folder):
        """Killed in the middle with every process: what was paid for is kept, and the rest is run."""
        path = written(folder, problems={"mine": problem("slow")})
        with begun(folder, path) as program:
            wait_until(lambda: n_queries(folder / "runs") > 0)
            os.killpg(program.pid, signal.SIGKILL)
        assert waiting(load_suite(path))
        result = run("run", path, "--processes", 1)
        assert result.exit_code == 0, result.output
        assert waiting(load_suite(path)) == []

    def test_processes_end_when_the_one_that_began_them_is_killed(self, folder):
        path = written(folder, problems={"mine": problem("slow")})
        with begun(folder, path, "suite.budget=4000") as program:
            wait_until(lambda: n_queries(folder / "runs") > 0)
            program.kill()
            program.wait()
            wait_until(lambda: not is_anybody_left(program.pid), 60)
        found = read(folder / "runs").campaigns
        assert (found["n_queries"] % 4 == 0).all()
        assert found["n_in_doubt"].sum() == 0

    @pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to it alone", "to all, as a terminal does"])
    def test_ctrl_c_stops_when_what_is_paid_for_is_answered(self, folder, send):
        path = written(folder, problems={"mine": problem("slow")})
        with begun(folder, path, "suite.budget=4000") as program:
            wait_until(lambda: n_queries(folder / "runs") >= 12)
            send(program.pid, signal.SIGINT)
            assert program.wait(60) == 130
        assert said(folder)[-2:] == [
            "stops when what is being paid for is answered; Ctrl-C again stops at once",
            "stopped; run the same command again to continue",
        ]
        assert "Traceback" not in "".join(said(folder))
        found = read(folder / "runs").campaigns
        assert not found["is_finished"].any()
        assert (found["n_queries"] % 4 == 0).all()
        assert found["n_in_doubt"].sum() == 0

    @pytest.mark.parametrize(
        ("first", "second", "kind"),
        [
            (os.kill, os.kill, "function"),
            (os.kill, os.killpg, "command"),
            (os.killpg, os.kill, "command"),
            (os.killpg, os.killpg, "function"),
            (os.kill, os.kill, "deaf function"),
        ],
        ids=["alone, alone", "alone, all", "all, alone", "all, all", "deaf"],
    )
    def test_a_second_ctrl_c_stops_at_once_with_the_programs_of_oracles(self, folder, first, second, kind):
        (folder / "endless.sh").write_text(f"echo $$ >> {folder / 'asked'}; sleep 600")
        command = {"type": "command", "command": ["sh", str(folder / "endless.sh")]}
        mine = problem("deaf" if kind == "deaf function" else "endless")
        mine |= {"oracle": command} if kind == "command" else {}
        with begun(folder, written(folder, problems={"mine": mine})) as program:
            wait_until(lambda: len(asked(folder)) == 2)
            first(program.pid, signal.SIGINT)
            wait_until(lambda: "Ctrl-C again" in "".join(said(folder)))
            second(program.pid, signal.SIGINT)
            assert program.wait(30) == 130
            wait_until(lambda: not is_anybody_left(program.pid), 30)
            wait_until(lambda: all(has_died(pid) for pid in asked(folder)), 30)
        assert "Traceback" not in "".join(said(folder))

    def test_ctrl_c_while_processes_are_started(self, folder):
        with begun(folder, written(folder, problems={"mine": problem("slow")})) as program:
            wait_until(lambda: "0 of them finished" in "".join(said(folder)))
            time.sleep(0.5)  # they import
            os.killpg(program.pid, signal.SIGINT)
            assert program.wait(60) == 130
        assert "Traceback" not in "".join(said(folder))

    def test_one_that_gave_up_and_is_interrupted_when_tried_again_has_still_given_up(
        self, folder, monkeypatch
    ):
        path, job = written(folder, problems={"mine": problem("picky")}), Job(0, "mine", "prior")
        run_one(path, (), job)
        monkeypatch.setattr("experiments.compare.workers._is_enough", True)
        with pytest.raises(KeyboardInterrupt):
            run_one(path, (), job)
        assert (
            read(folder / "runs").campaigns["gave_up"].item().startswith("all 4 queries so far have failed")
        )

    @pytest.mark.parametrize("is_idempotent", [True, False])
    def test_a_query_that_was_under_way_is_asked_again_where_that_costs_nothing(self, folder, is_idempotent):
        mine = problem("stopped")
        mine["oracle"]["is_idempotent"] = is_idempotent
        path, job = written(folder, problems={"mine": mine}), Job(0, "mine", "prior")
        (folder / "stop").touch()
        with pytest.raises(KeyboardInterrupt):
            run_one(path, (), job)
        (folder / "stop").unlink()
        assert run_one(path, (), job).refusal is None
        found = read(folder / "runs")
        assert found.campaigns["n_in_doubt"].tolist() == [0 if is_idempotent else 1]
        assert found.queries["value"].notna().sum() == (8 if is_idempotent else 7)


class TestListener:
    def listen(self, *stages):
        """Return at which of these stages, one after the other, a campaign would be stopped."""
        listener, stopped = stop_when_enough(), []
        for stage in stages:
            try:
                listener(Progress(8, stage=stage))
            except KeyboardInterrupt:
                stopped.append(stage)
        return stopped

    def test_it_stops_where_a_stage_begins_and_not_while_answers_come(self, monkeypatch):
        assert self.listen(None, "oracle", "oracle", None, "fit") == []
        monkeypatch.setattr("experiments.compare.workers._is_enough", True)
        assert self.listen(None, "oracle", "oracle", None, "fit") == ["oracle", "fit"]
        assert self.listen(None, INTERRUPTED) == []
