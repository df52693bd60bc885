"""Suite files, and the campaigns that they run."""

import re

import pytest
import yaml

from bbo.errors import ConfigError, ConfigMismatchError
from bbo.ledger import Ledger
from bbo.steering import SteeredPrior
from experiments.compare.catalogue import METHODS
from experiments.compare.metering import CPU_SECONDS, EVALUATIONS
from experiments.compare.reading import read
from experiments.compare.report.findings import ReportError
from experiments.compare.running import run_one, waiting
from experiments.compare.suite import Job, load_suite
from tests.experiments.small_suite import run, written


class TestFile:
    def test_every_combination_is_a_job_seed_by_seed(self, folder):
        jobs = load_suite(written(folder)).jobs
        assert [str(job) for job in jobs[:2]] == ["mine/prior/seed-0", "mine/few/seed-0"]
        assert len(jobs) == len(set(jobs)) == 4
        assert [job.seed for job in jobs] == [0, 0, 1, 1]

    def test_a_tilde_is_the_home_directory(self, folder, monkeypatch):
        monkeypatch.setenv("HOME", str(folder))
        assert load_suite(written(folder), ["suite.directory=~/mine"]).settings.directory == folder / "mine"

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
        assert (
            "gave up, and counted with what they had found: 4 campaigns; the page says why"
            in run("report", folder / "runs").output
        )

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

    def test_the_last_line_is_the_next_command(self, folder):
        path = written(folder)
        result = run("run", path, "suite.n_seeds=1", "suite.budget=4", "--processes", 1)
        assert (
            f"bbo compare report {path} suite.n_seeds=1 suite.budget=4   writes the report" in result.output
        )

    def test_the_report_says_how_many_campaigns_it_does_not_count(self, folder):
        path = written(folder)
        run("run", path, "suite.n_seeds=1", "--processes", 1)
        assert "not finished, and not counted: 2 campaigns" in run("report", path).output
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
        assert "not finished, and not counted: 1 campaign;" in result.output
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
