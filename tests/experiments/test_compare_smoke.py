"""Every method on every problem, through the command line, and the report of it (`make compare-smoke`)."""

from dataclasses import replace

import pytest

from bbo.ledger import Ledger
from experiments.compare.catalogue import METHODS, PROBLEMS
from experiments.compare.report import write_report
from experiments.compare.running import run_one
from experiments.compare.suite import load_suite
from experiments.problems.problem import Problem
from tests.test_readme import ROOT

SUITE = ROOT / "experiments" / "suites" / "smoke.yaml"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The suite's folder, with every campaign run in this process."""
    folder = tmp_path_factory.mktemp("smoke")
    settings = (f"suite.directory={folder}",)
    for job in load_suite(SUITE, settings).jobs:
        done = run_one(SUITE, settings, job)
        assert done.refusal is None, f"{job}: {done.refusal}"
    return folder


def outcomes(job, directory):
    ledger = Ledger.open(job.directory(directory))
    try:
        return [q.evaluation.outcomes.get("value") for q in ledger.queries() if q.evaluation is not None]
    finally:
        ledger.close()


@pytest.mark.slow
def test_every_method_spends_its_budget_on_every_problem_and_no_more(directory):
    suite = load_suite(SUITE)
    assert set(suite.method_names) == set(METHODS)
    assert {"own", *suite.problem_names} == set(PROBLEMS)
    assert all(isinstance(problem, Problem) for problem in suite.problems.values())
    first = {}
    for job in suite.jobs:
        values = outcomes(job, directory)
        assert len(values) == suite.settings.budget
        first.setdefault(job.problem, []).append(values[: suite.settings.batch_size])
    for batches in first.values():
        assert all(batch == batches[0] for batch in batches), "all methods pay for the same first batch"


@pytest.mark.slow
def test_the_report_shows_every_method_and_problem(directory, tmp_path):
    suite = load_suite(SUITE)
    # without XFOIL, which takes a minute for them and has tests of its own
    problems = {name: replace(problem, second_opinion=None) for name, problem in suite.problems.items()}
    written = write_report(directory, tmp_path, problems=problems, jobs=suite.jobs, say=lambda said: None)
    page = written.page.read_text()
    assert all(name in page for name in (*METHODS, *suite.problem_names))
    table = (tmp_path / "table.md").read_text()
    assert all(f"`{name}`" in table for name in METHODS)
