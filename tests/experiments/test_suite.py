"""Suite files, and the campaigns that they run."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest
import yaml
from typer.testing import CliRunner

from bbo.cli import app
from bbo.errors import ConfigError, ConfigMismatchError
from bbo.ledger import Ledger
from bbo.progress import INTERRUPTED, Progress
from bbo.steering import SteeredPrior
from experiments.compare.catalogue import METHODS
from experiments.compare.metering import CPU_SECONDS, EVALUATIONS
from experiments.compare.reading import read
from experiments.compare.report.findings import ReportError
from experiments.compare.running import run_all, run_one, waiting
from experiments.compare.suite import Job, load_suite
from experiments.compare.workers import stop_when_enough
from smc.priors.training import TrainingSettings, train_denoiser
from tests.interruptions import ctrl_c_allowed
from tests.oracles.test_command import has_died

ORACLE = """
def value(design):
    return float(design[0])

def picky(design):
    if design[0] < 100:
        raise ValueError("too small")
    return 1.0

def slow(design):
    import time
    time.sleep(0.05)
    return float(design[0])

def endless(design):
    import os, pathlib, time
    with pathlib.Path(__file__).with_name("asked").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(600)

def deaf(design):
    import os, pathlib, re
    with pathlib.Path(__file__).with_name("asked").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    re.match("(a+)+$", "a" * 60 + "b")  # for years, without letting another thread of this process run

def stopped(design):
    import pathlib
    if design[0] > 0 and pathlib.Path(__file__).with_name("stop").exists():
        raise KeyboardInterrupt
    return float(design[0])
"""


@pytest.fixture(scope="session")
def trained():
    import torch

    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    settings = TrainingSettings(n_iterations=50, batch_size=64, width=8, n_blocks=1)
    return train_denoiser(points, settings=settings, seed=0)


@pytest.fixture
def folder(tmp_path, trained):
    trained.save(tmp_path / "prior.safetensors")
    (tmp_path / "lab.py").write_text(ORACLE)
    return tmp_path


def written(folder, **changes):
    """Write a suite of one problem and two quick methods, with some sections changed."""
    suite = {
        "suite": {"directory": str(folder / "runs"), "budget": 8, "batch_size": 4, "n_seeds": 2},
        "problems": {
            "mine": {
                "prior": {"type": "denoiser", "path": "prior.safetensors"},
                "oracle": {"type": "function", "function": "lab.py:value"},
            }
        },
        "methods": {"prior": {"type": "prior"}, "few": {"type": "best_of_n", "n_samples": 16}},
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite | changes, sort_keys=False))
    return path


def problem(function):
    """Return a problem with an oracle of `lab.py`."""
    prior = {"type": "denoiser", "path": "prior.safetensors"}
    return {"prior": prior, "oracle": {"type": "function", "function": f"lab.py:{function}"}}


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


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


class TestFile:
    def test_every_combination_is_a_job_seed_by_seed(self, folder):
        jobs = load_suite(written(folder)).jobs
        assert [str(job) for job in jobs[:2]] == ["mine/prior/seed-0", "mine/few/seed-0"]
        assert len(jobs) == len(set(jobs)) == 4
        assert [job.seed for job in jobs] == [0, 0, 1, 1]

    def test_without_methods_all_run_at_their_defaults(self, folder):
        path = written(folder)
        raw = yaml.safe_load(path.read_text())
        del raw["methods"]
        path.write_text(yaml.safe_dump(raw))
        suite = load_suite(path)
        assert suite.method_names == tuple(METHODS)
        assert suite.methods["ours"] == SteeredPrior()

    def test_every_mistake_is_told_with_its_place(self, folder):
        path = written(
            folder,
            suite={"directory": "x", "budgt": 3},
            problems={"a b": {}, "mine": {"prior": {"type": "denoiser"}, "oracle": {"type": "airfil"}}},
            methods={"ours": {"type": "our"}, "few": {"type": "best_of_n", "n_samples": 0}},
            more=1,
        )
        with pytest.raises(ConfigError) as told:
            load_suite(path)
        assert str(told.value).splitlines()[1:] == [
            "  suite.budgt: unknown key; did you mean 'budget'?",
            "  more: unknown key; known are methods, problems, suite",
            "  problems.a b: a name has letters, digits and underscores and begins with a letter",
            "  problems.mine.oracle: unknown type 'airfil'; did you mean 'airfoil'?",
            "  problems.mine.prior.path: is missing",
            "  methods.ours: unknown type 'our'; did you mean 'ours'?",
            "  methods.few: n_samples must be at least 1, got 0",
        ]

    @pytest.mark.parametrize(
        ("key", "hint"),
        [
            ("method", "did you mean 'methods'?"),
            ("budget", "it belongs into 'suite'"),
            ("x", "known are methods, problems, suite"),
        ],
    )
    def test_unknown_sections_are_told_with_what_was_meant(self, folder, key, hint):
        with pytest.raises(ConfigError, match=re.escape(f"  {key}: unknown key; {hint}")):
            load_suite(written(folder, **{key: 1}))

    def test_a_key_methods_with_nothing_under_it(self, folder):
        with pytest.raises(
            ConfigError, match="methods: expected named sections, one for each, got None; leave the key out"
        ):
            load_suite(written(folder, methods=None))

    @pytest.mark.parametrize("problems", [None, [], {}, "airfoil"])
    def test_problems_are_named_sections(self, folder, problems):
        with pytest.raises(ConfigError, match="problems: expected named sections"):
            load_suite(written(folder, problems=problems))

    def test_a_misfit_of_prior_and_oracle_is_found_before_anything_runs(self, folder):
        prior = {"type": "denoiser", "path": "prior.safetensors"}
        with pytest.raises(ConfigError, match=r"problems.mine: the oracle .* takes designs of shape \(18,\)"):
            load_suite(written(folder, problems={"mine": {"prior": prior, "oracle": {"type": "airfoil"}}}))

    @pytest.mark.parametrize(("key", "value"), [("n_seeds", 0), ("budget", 0), ("batch_size", -1)])
    def test_settings_are_checked(self, folder, key, value):
        with pytest.raises(ConfigError, match=f"{key} must be"):
            load_suite(written(folder), [f"suite.{key}={value}"])


class TestRunning:
    def test_every_campaign_is_a_ledger_with_its_cost_and_is_never_run_again(self, folder):
        path = written(folder)
        first = run("run", path, "--processes", 1)
        assert first.exit_code == 0, first.output
        assert "4 campaigns of 8 queries, 0 of them finished" in first.output
        assert all(len(line) <= 80 for line in first.output.splitlines() if "seed-" in line)
        for job in load_suite(path).jobs:
            ledger = Ledger.open(job.directory(folder / "runs"))
            assert ledger.counts().done == 8
            rounds = ledger.rounds()
            assert all(past.summary[CPU_SECONDS] >= 0 for past in rounds)
            n_samples = 16 if job.method == "few" else 4
            assert rounds[1].summary[EVALUATIONS] == n_samples * len(
                load_suite(path).problems["mine"].prior.steps
            )
            ledger.close()
        again = run("run", path)
        assert "4 of them finished" in again.output
        assert "seed-" not in again.output

    def test_methods_share_the_first_batch_of_a_seed(self, folder):
        path = written(folder)
        run("run", path, "--processes", 1)
        first = {}
        for job in load_suite(path).jobs:
            ledger = Ledger.open(job.directory(folder / "runs"))
            first.setdefault(job.seed, []).append(
                [q.evaluation.outcomes["value"] for q in ledger.queries()][:4]
            )
            ledger.close()
        assert first[0][0] == first[0][1]
        assert first[1][0] == first[1][1]
        assert first[0][0] != first[1][0]

    def test_a_larger_budget_goes_on_from_where_it_ended(self, folder):
        path, job = written(folder), Job(0, "mine", "few")
        run_one(path, (), job)
        ledger = Ledger.open(job.directory(folder / "runs"))
        before = [q.id for q in ledger.queries()]
        ledger.close()
        assert job in waiting(load_suite(path, ["suite.budget=12"]))
        done = run_one(path, ("suite.budget=12",), job)
        assert done.refusal is None
        ledger = Ledger.open(job.directory(folder / "runs"))
        assert [q.id for q in ledger.queries()][:8] == before
        assert ledger.counts().done == 12
        ledger.close()

    def test_a_campaign_that_cannot_be_finished_stops_no_other(self, folder):
        problems = yaml.safe_load(written(folder).read_text())["problems"]
        problems["broken"] = {**problems["mine"], "oracle": {"type": "function", "function": "lab.py:picky"}}
        result = run("run", written(folder, problems=problems), "--processes", 1)
        assert result.exit_code == 1
        assert result.output.count("not finished  ") == 4
        assert result.output.count(" best ") == 4
        said = " ".join(result.output.split())
        names = ", ".join(f"broken/{method}/seed-{seed}" for seed in range(2) for method in ("prior", "few"))
        assert f"{names} were not finished: all 4 queries so far have failed" in said
        assert "gave up: 4 campaigns, which count; the page says why" in run("report", folder / "runs").output

    def test_an_error_that_nobody_meant_is_told_with_its_place(self, folder, monkeypatch):
        def broken(*arguments, **settings):
            raise ZeroDivisionError("by nought\nand more")

        monkeypatch.setattr("experiments.methods.prior.from_prior", broken)
        done = run_one(written(folder), (), Job(0, "mine", "prior"))
        assert done.refusal.startswith("ZeroDivisionError: by nought (test_suite.py, line ")

    def test_other_settings_are_refused_before_anything_is_paid(self, folder):
        run("run", written(folder), "--processes", 1)
        methods = {"prior": {"type": "prior"}, "few": {"type": "best_of_n", "n_samples": 32}}
        result = run("run", written(folder, methods=methods), "suite.budget=12", "--processes", 1)
        assert isinstance(result.exception, ConfigMismatchError)
        assert "methods.few.n_samples is 16 there and 32 here" in str(result.exception)
        assert "few/seed-1" in str(result.exception)

    def test_finished_campaigns_of_other_settings_are_refused(self, folder):
        run("run", written(folder), "--processes", 1)
        methods = {"prior": {"type": "prior"}, "few": {"type": "prior"}}
        result = run("run", written(folder, methods=methods))
        assert isinstance(result.exception, ConfigMismatchError)
        assert "few/seed-0 was started with other settings: methods.few" in str(result.exception)

    def test_one_that_gave_up_counts_with_what_it_had_found(self, folder):
        problems = yaml.safe_load(written(folder).read_text())["problems"]
        problems["mine"]["oracle"]["function"] = "lab.py:picky"
        path = written(folder, problems=problems)
        run_one(path, (), Job(0, "mine", "prior"))
        comparison = read(folder / "runs")
        (row,) = comparison.campaigns.to_dict("records")
        assert (row["n_queries"], row["is_finished"], row["n_feasible"]) == (8, True, 0)
        assert row["gave_up"].startswith("all 4 queries so far have failed")
        assert comparison.queries["query"].tolist() == list(range(1, 9))
        assert comparison.queries["value"].isna().all()
        assert len(comparison.only([Job(1, "mine", "prior")]).campaigns) == 0

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
        problems = yaml.safe_load(written(folder).read_text())["problems"]
        problems["mine"]["oracle"] = {
            "type": "function", "function": "lab.py:stopped", "is_idempotent": is_idempotent,
        }  # fmt: skip
        path, job = written(folder, problems=problems), Job(0, "mine", "prior")
        (folder / "stop").touch()
        with pytest.raises(KeyboardInterrupt):
            run_one(path, (), job)
        (folder / "stop").unlink()
        assert run_one(path, (), job).refusal is None
        found = read(folder / "runs")
        assert found.campaigns["n_in_doubt"].tolist() == [0 if is_idempotent else 1]
        assert found.queries["value"].notna().sum() == (8 if is_idempotent else 7)

    def test_the_last_line_is_the_next_command(self, folder):
        path = written(folder)
        result = run("run", path, "suite.n_seeds=1", "suite.budget=4", "--processes", 1)
        assert (
            f"bbo compare report {path} suite.n_seeds=1 suite.budget=4   writes the report" in result.output
        )

    def test_the_report_says_how_many_campaigns_it_does_not_count(self, folder):
        path = written(folder)
        run("run", path, "suite.n_seeds=1", "--processes", 1)
        assert "not counted: 2 campaigns that are not finished" in run("report", path).output
        assert "not counted" not in run("report", path, "suite.n_seeds=1").output

    def test_the_report_counts_no_campaign_that_is_too_short_for_the_suite(self, folder):
        path = written(folder)
        run("run", path, "suite.n_seeds=1", "--processes", 1)
        run(
            "run",
            path,
            "suite.n_seeds=1",
            "suite.budget=12",
            "methods={few: {type: best_of_n, n_samples: 16}}",
        )
        result = run("report", path, "suite.n_seeds=1", "suite.budget=12")
        assert "not counted: 1 campaigns that are not finished" in result.output
        page = (folder / "runs/report/report.html").read_text()
        assert "mine/prior/seed-0 (8 of 12 queries)" in page

    def test_the_report_is_of_the_suite_s_own_settings_and_methods(self, folder):
        path = written(folder)
        run("run", path, "suite.n_seeds=1", "--processes", 1)
        result = run("report", path, "suite.n_seeds=1", "suite.batch_size=2")
        assert isinstance(result.exception, ConfigMismatchError)
        assert "suite.batch_size is 4 there and 2 here" in str(result.exception)
        result = run("report", path, "suite.n_seeds=1", "--ours", "fewer")
        assert isinstance(result.exception, ReportError)
        assert str(result.exception) == "no method 'fewer' is finished here; did you mean 'few'?"


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


class TestCheck:
    def test_tells_what_would_be_paid_and_where(self, folder):
        result = run("check", written(folder))
        assert "32 in all" in result.output
        assert "4, 2 of each method on each problem; 0 finished" in result.output
        assert str(folder / "runs") in result.output.replace("\n             ", "")
        assert result.exit_code == 0
        assert not (folder / "runs").exists()

    def test_holds_finished_campaigns_against_the_suite(self, folder):
        run("run", written(folder), "--processes", 1)
        assert "; 4 finished" in run("check", written(folder)).output
        result = run("check", written(folder), "methods.few.n_samples=32")
        assert isinstance(result.exception, ConfigMismatchError)

    def test_warns_of_a_budget_that_compares_nothing(self, folder):
        assert "the same for every method" in run("check", written(folder), "suite.budget=4").output
        assert "the same for every method" not in run("check", written(folder)).output
        assert "the same for every method" in run("run", written(folder), "suite.budget=4").output

    def test_fits_into_80_columns(self, folder):
        methods = {name: {"type": name} for name in METHODS}
        result = run("check", written(folder, methods=methods))
        assert max(map(len, result.output.splitlines()[1:])) <= 80
