"""A laboratory's week at the command line: started from old data, asked, told, changed, looked at."""

import csv
import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import pytest

from bbo.cli import main
from bbo.ledger import Counts, Ledger

ROOT = Path(__file__).parents[2]

YAML = """
campaign: {directory: run, budget: 12, batch_size: 4, objective: strength}
prior: {type: denoiser, path: PRIOR, n_steps: 6}
"""


def fill(path, out, cells):
    """Copy a table with `cells` (column → text) filled in for the rows that are named, by query."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update(cells.get(int(row["query"]), {}))
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def said(*arguments, cwd, code=0):
    """Run `bbo` in this process, which spares an import a command, and return what it says."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "argv", ["bbo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert (ended.value.code or 0) == code, err.getvalue()
    return out.getvalue() if code == 0 else err.getvalue()


def counts(home):
    with Ledger.open(home / "run") as ledger:
        return ledger.counts()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("laboratory")
    prior = ROOT / "experiments" / "problems" / "airfoil_prior.safetensors"
    (home / "lab.yaml").write_text(YAML.replace("PRIOR", str(prior)))
    columns = ",".join(f"x{i}" for i in range(18))
    rows = [",".join([f"0.{n}"] * 18) for n in (1, 2, 3)]
    (home / "history.csv").write_text(
        f"{columns},strength,error\n{rows[0]},1.5,\n{rows[0]},1.7,\n{rows[1]},,cracked\n{rows[2]},2.5,\n"
    )
    assert "3 measured designs taken in" in said("init", "lab.yaml", "--data", "history.csv", cwd=home)
    return home


def test_a_week(home):
    again = said("init", "lab.yaml", "--data", "history.csv", cwd=home)
    assert "0 measured designs taken in, at no cost to the budget; 3 were given before" in again
    assert counts(home) == Counts(given=3)

    asked = said("ask", "lab.yaml", "-n", 4, "--out", "plate.csv", cwd=home)
    assert "bbo tell run plate.csv" in asked
    assert "is there already" in said("ask", "lab.yaml", "--out", "plate.csv", cwd=home, code=2)
    assert counts(home) == Counts(sent=4, given=3)
    ids = pd.read_csv(home / "plate.csv")["query"].tolist()

    fill(
        home / "plate.csv", home / "monday.csv", {ids[0]: {"strength": "3.5"}, ids[1]: {"error": "=burnt()"}}
    )
    told = said("tell", "run", "monday.csv", cwd=home)
    assert "told: 1 values, 1 failures" in told
    assert "still awaited: 2; rows not filled in: 2" in told
    assert f"told before, left as they are: {ids[0]}, {ids[1]}" in said(
        "tell", "lab.yaml", "monday.csv", cwd=home
    )
    fill(home / "plate.csv", home / "wrong.csv", {ids[0]: {"strength": "9"}, 99: {}})
    assert "was told strength 3.5 before" in said("tell", "run", "wrong.csv", cwd=home, code=2)

    fill(home / "plate.csv", home / "edited.csv", {ids[2]: {"x0": "0.25"}})
    assert f"query {ids[2]} is now query" in said("edit", "run", "edited.csv", "--out", "new.csv", cwd=home)
    assert pd.read_csv(home / "new.csv")["x0"].tolist() == [0.25]
    assert "1 rejected; 3 of 12 queries are taken" in said(
        "reject", "run", ids[3], "--why", "too thin", cwd=home
    )
    assert len(said("pending", "run", cwd=home).splitlines()) == 1
    assert counts(home) == Counts(sent=1, done=1, failed=1, rejected=2, given=3)

    status = said("status", "run", cwd=home)
    assert "3 measured elsewhere, not from this budget" in status
    assert max(map(len, status.splitlines())) <= 80
    assert "3.5" in said("best", "run", "-n", 1, cwd=home)
    story = said("show", "run", ids[0], cwd=home)
    assert "strength  3.5" in story
    assert max(map(len, story.splitlines())) <= 80
    assert "is whole" in said("verify", "run", cwd=home)
    said("export", "run", "--out", "all.csv", cwd=home)
    table = pd.read_csv(home / "all.csv")
    assert len(table) == 3 + 4 + 1
    assert "'=burnt()" in table["error"].tolist()
    assert (home / "run" / "report.html").exists() is False
    said("report", "run", cwd=home)
    assert "3 measured elsewhere" in (home / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "run", "--out", "x.csv"], "ask needs the campaign file"),
        (["ask", "lab.yaml", "--out", "nowhere/x.csv"], "there is no directory nowhere"),
        (["ask", "lab.yaml", "--out", "foils"], "have no file format here"),
        (["ask", "lab.yaml", "-n", 50, "--out", "x.csv"], "9 of 12 queries are left, so 50 do not fit"),
        (["run", "lab.yaml"], "has no oracle to run; use ask and tell"),
        (["tell", "run", "nowhere.csv"], "cannot read nowhere.csv: No such file"),
        (["tell", "nowhere", "history.csv"], "expected a campaign in nowhere"),
        (["tell", "run", "history.csv"], "no query number"),
        (["reject", "run", 99], "query 99 cannot be rejected: there is no such query"),
        (["resolve", "run", 1], "say one of --retry, --spent"),
        (["resolve", "run", 1, "--retry"], "query 1 cannot be retried: expected in_doubt, got done"),
        (["show", "run", 99], "expected a query of run, got 99"),
    ],
)
def test_mistakes(home, arguments, message):
    before = counts(home)
    assert message in " ".join(said(*arguments, cwd=home, code=2).split())
    assert counts(home) == before
    assert not (home / "foils").exists()


def test_files_of_designs_go_through_the_problems_own_writer(home):
    yaml = (home / "lab.yaml").read_text().replace("run,", "foils_run,") + "oracle: {type: airfoil}\n"
    (home / "foils.yaml").write_text(yaml.replace("objective: strength", "objective: value"))
    said("ask", "foils.yaml", "-n", 2, "--out", "foils", cwd=home)
    assert sorted(os.listdir(home / "foils")) == ["answers.csv", "query-1.dat", "query-2.dat"]
    points = [line.split() for line in (home / "foils" / "query-1.dat").read_text().splitlines()[1:]]
    assert all(len(point) == 2 and -0.1 <= float(point[0]) <= 1.1 for point in points)
    (home / "foils").joinpath("query-1.dat").unlink()
    fill(home / "foils" / "answers.csv", home / "filled.csv", {1: {"value": "120"}})
    assert "told: 1 values" in said("tell", "foils_run", "filled.csv", cwd=home)
    for path in (home / "foils").iterdir():
        path.unlink()
    (home / "foils").rmdir()
