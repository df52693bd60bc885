"""The command line as a user meets it: in a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
MINE = """
NUMBER = 5
def bowl(design):
    if design[0] > 2:
        raise ValueError("too long")
    return -float((design ** 2).sum())
"""


def bbo(*arguments, cwd=ROOT, **environment):
    """Run `bbo` and return the finished process."""
    command = [sys.executable, "-c", "from bbo.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **environment}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which a user trained a prior and ran a campaign, by the command line alone."""
    home = tmp_path_factory.mktemp("home")
    np.save(home / "data.npy", np.random.default_rng(0).normal(size=(64, 2)))
    (home / "mine.py").write_text(MINE)
    (home / "mine.yaml").write_text(
        "campaign: {directory: run, budget: 10, batch_size: 5}\n"
        "prior: {type: denoiser, path: prior.safetensors, n_steps: 8}\n"
        "oracle: {type: function, function: 'mine.py:bowl'}\n"
    )
    (home / "empty.npy").touch()
    (home / "latin.yaml").write_bytes("# Flügel".encode("latin-1"))
    trained = bbo("prior", "train", "data.npy", "--iterations", 20, cwd=home)
    assert trained.returncode == 0, trained.stderr
    assert "prior written to prior.safetensors" in trained.stdout
    done = bbo("run", "mine.yaml", cwd=home)
    assert done.returncode == 0, done.stderr
    (home / "run.out").write_text(done.stdout)
    return home


def test_help_is_quick_and_loads_nothing_heavy():
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = bbo("--help")
        seconds.append(time.perf_counter() - began)
        assert done.returncode == 0
    for command in ("run", "check", "status", "best", "report", "prior"):
        assert command in done.stdout
    assert min(seconds) < 0.7


def test_run_prints_plain_lines_without_a_terminal_and_the_best_at_the_end(home):
    lines = (home / "run.out").read_text().splitlines()
    assert [line.split("best")[0].split() for line in lines if line.startswith("round")][-1][2:4] == [
        "10",
        "of",
    ]
    assert any("predicted before" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_running_again_spends_nothing(home):
    done = bbo("run", "mine.yaml", cwd=home)
    assert done.returncode == 0
    assert "round" not in done.stdout.split("value")[0]


def test_status_best_and_export(home):
    status = bbo("status", "run", cwd=home).stdout
    assert "10 spent of 10" in status
    best = bbo("best", "run", "-n", 3, cwd=home).stdout
    assert len(best.strip().splitlines()) == 4
    exported = bbo("best", "run", "-n", 3, "--export", "best.csv", cwd=home)
    assert "3 designs written to best.csv" in exported.stdout
    table = pd.read_csv(home / "best.csv")
    assert (-(table.x0**2 + table.x1**2)).to_numpy() == pytest.approx(table.value.to_numpy(), rel=1e-5)


def test_report(home):
    done = bbo("report", "run", cwd=home)
    assert done.returncode == 0, done.stderr
    assert (home / "run" / "report.html").stat().st_size > 10_000


def test_check_builds_and_writes_nothing(home):
    done = bbo("check", "mine.yaml", "campaign.directory=elsewhere", cwd=home)
    assert done.returncode == 0
    assert "mine.yaml is fine" in done.stdout
    assert not (home / "elsewhere").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "mine.yaml", "campaign.sed=3"], "campaign.sed: unknown key; did you mean 'seed'?"),
        (["run", "mine.yaml", "campaign.seed=3"], "campaign.seed is 0 there and 3 here"),
        (["run", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (
            ["run", "mine.yaml", "campaign.budget=0", "campaign.directory=x"],
            "at least 1 query, got 0",
        ),
        (["status", "nowhere"], "expected a campaign in nowhere"),
        (["best", "nowhere"], "expected a campaign in nowhere"),
        (["report", "nowhere"], "expected a campaign in nowhere"),
        (["prior", "train", "mine.py"], "cannot read mine.py as a .npy array"),
        (["prior", "train", "empty.npy"], "cannot read empty.npy as a .npy array"),
        (
            ["prior", "train", "data.npy"],
            "prior.safetensors is there already, and campaigns may belong to it",
        ),
        (["check", "mine.yaml", "oracle.function=mine.py:NUMBER"], "needs a function of a design, got 5"),
        (["check", "latin.yaml"], "is not UTF-8"),
        (["run", "mine.yaml", "campaign.budget=99999999999999999999"], "budget must be a whole number"),
        (["run", "mine.yaml", "campaign.directory=mine.yaml/run"], "mine.yaml/run"),
        (["best", "run", "--export", "nowhere/x.csv"], "nowhere"),
        (["budget", "run", "5"], "a budget is never lowered"),
    ],
)
def test_a_users_mistake_is_a_message_and_exit_code_2(home, arguments, said):
    done = bbo(*arguments, cwd=home)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_commands_and_missing_arguments_exit_2():
    assert bbo("rnu").returncode == 2
    assert bbo("run").returncode == 2


def test_a_raised_budget_is_spent(home):
    assert bbo("run", "mine.yaml", "campaign.directory=more", cwd=home).returncode == 0
    assert bbo("run", "mine.yaml", "campaign.directory=more", "campaign.budget=12", cwd=home).returncode == 2
    assert "may spend 12 queries" in bbo("budget", "more", 12, cwd=home).stdout
    assert bbo("run", "mine.yaml", "campaign.directory=more", "campaign.budget=12", cwd=home).returncode == 0
    assert "12 spent of 12" in bbo("status", "more", cwd=home).stdout


def test_exporting_csv_writes_into_the_campaign(home):
    assert bbo("best", "run", "--export", "csv", cwd=home).returncode == 0
    assert len(pd.read_csv(home / "run" / "best.csv")) == 10
