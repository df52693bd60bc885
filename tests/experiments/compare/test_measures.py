"""What is measured of a comparison's designs: against closed forms, and kept beside the ledgers."""

import math
import shutil
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
import torch

from bbo.errors import CampaignError
from experiments.compare.measures import (
    MEASURES,
    N_TOP,
    OPINIONS,
    Measures,
    Yardstick,
    measured,
    opinion,
)
from experiments.compare.reading import designs_of, read
from experiments.compare.suite import Job
from tests.experiments.compare.small import line, run

NAN = math.nan


@dataclass(frozen=True)
class Recorder:
    """An oracle that notes what it was shown."""

    seen: list = field(default_factory=list)
    name: str = "recorder"
    design_shape: tuple[int, ...] | None = None
    n_per_call: int | None = None
    is_idempotent: bool = True

    def evaluate(self, designs):
        from oracles.evaluation import Evaluation

        self.seen.append(designs)
        return [Evaluation.of(2 * float(design[0])) for design in designs]


def test_the_yardstick_of_a_gaussian_is_its_closed_form():
    """Two draws of N(0, v·I) in the plane are √(πv) apart on average; twice as wide is twice as diverse."""
    yardstick = Yardstick.of(line(), n=512)
    _, std = line().prior.moments()
    assert float(torch.pdist(yardstick.draws).mean()) == pytest.approx(math.sqrt(math.pi) * std, rel=0.05)
    assert not torch.isin(yardstick.fresh, yardstick.draws).any()
    draws = std * torch.randn(400, 2, generator=torch.Generator().manual_seed(5))
    like, twice, away = (yardstick.measures(designs) for designs in (draws, 2 * draws, draws + 30))
    assert like["n_measured"] == 400
    assert like["diversity"] == pytest.approx(1, rel=0.08)
    assert twice["diversity"] == pytest.approx(2 * like["diversity"], rel=1e-5)
    assert like["distance"] == pytest.approx(1, rel=0.25)
    assert away["distance"] > 100
    assert away["diversity"] == pytest.approx(like["diversity"], rel=1e-4)
    one, none = yardstick.measures(draws[:1]), yardstick.measures(draws[:0])
    assert (one["n_measured"], math.isnan(one["diversity"]), math.isnan(one["distance"])) == (1, True, False)
    assert (none["n_measured"], math.isnan(none["distance"])) == (0, True)


@pytest.fixture(scope="module")
def copied(root, tmp_path_factory):
    """A comparison to measure, with a campaign that is not finished."""
    folder = shutil.copytree(root, tmp_path_factory.mktemp("measured") / "compare")
    run(folder, "line", "prior", 5, rounds=1)
    return folder


@pytest.fixture(scope="module")
def found(copied):
    return measured(read(copied), {"line": line()})


def test_every_finished_campaign_is_measured(copied, found):
    assert found.designs[["method", "seed", "n_measured"]].values.tolist() == [
        ["ours", 0, 24], ["ours", 1, 24], ["prior", 0, 24], ["prior", 1, 24]
    ]  # fmt: skip
    yardstick = Yardstick.of(line())
    last, told = found.designs.iloc[3], yardstick.measures(designs_of(Job(1, "line", "prior"), copied))
    assert last["diversity"] == pytest.approx(told["diversity"])
    assert last["distance"] == pytest.approx(told["distance"])
    assert found.designs["diversity"][2:].tolist() == pytest.approx([1, 1], rel=0.3)
    greedy, plain = found.designs.groupby("method", sort=True)["distance"].mean()
    assert greedy > 2 * plain


def test_the_best_of_each_campaign_are_shown_to_the_other_oracle(copied, found):
    queries = read(copied).queries
    for (method, seed), rows in found.opinions.groupby(["method", "seed"]):
        ours = queries[(queries["method"] == method) & (queries["seed"] == seed)]
        top = ours[ours["value"] > 0].nlargest(N_TOP, "value")
        assert rows["value"].tolist() == top["value"].tolist()
        designs = designs_of(Job(seed, "line", method), copied)[top["query"].to_numpy() - 1]
        is_back = designs[:, 1] >= 0
        assert rows["second"].notna().tolist() == is_back.tolist()
        np.testing.assert_allclose(rows["second"].dropna(), 0.9 * designs[is_back, 0], rtol=1e-6)
        assert (rows["reason"] == "").tolist() == is_back.tolist()
    heard = opinion(found.opinions)
    assert heard.median == pytest.approx(0.9)
    assert 0 < heard.n_returned == found.opinions["second"].notna().sum() < len(heard.first)


def test_outcomes_that_are_not_above_0_have_no_second_opinion_and_that_is_said(root, tmp_path):
    comparison = read(shutil.copytree(root, tmp_path / "compare"))
    below = comparison.queries.assign(value=-comparison.queries["value"].abs())
    witness, said = Recorder(), []
    found = measured(
        replace(comparison, queries=below), {"line": replace(line(), second_opinion=witness)}, said.append
    )
    assert (len(witness.seen), len(found.opinions)) == (0, 0)
    assert said[-1] == "line: no second opinion of campaigns without an outcome above 0"


def test_what_was_measured_is_not_measured_again(copied, found):
    witness = Recorder()
    problem = replace(line(), second_opinion=witness)
    said = []
    again = measured(read(copied), {"line": problem}, said.append)
    assert (said, witness.seen) == ([], [])
    pd.testing.assert_frame_equal(again.designs, found.designs, check_dtype=False)
    pd.testing.assert_frame_equal(again.opinions, found.opinions, check_dtype=False)
    without = measured(read(copied), {})
    pd.testing.assert_frame_equal(without.designs, found.designs, check_dtype=False)


def test_a_campaign_that_was_run_anew_is_measured_anew(copied, found, tmp_path):
    folder = shutil.copytree(copied, tmp_path / "compare")
    shutil.rmtree(folder / "line" / "prior" / "seed-1")
    run(folder, "line", "prior", 1)
    said = []
    again = measured(read(folder), {"line": line()}, said.append)
    assert said == [
        "measuring the designs of line/prior/seed-1",
        "asking for a second opinion of line/prior/seed-1",
    ]
    assert len(again.designs) == len(found.designs)
    assert len(pd.read_csv(folder / OPINIONS)) == len(found.opinions)


def test_designs_whose_features_are_not_finite_are_left_out_and_counted(root, tmp_path):
    folder = shutil.copytree(root, tmp_path / "compare")
    designs = designs_of(Job(0, "line", "prior"), folder)

    @dataclass(frozen=True)
    class Blind:
        def fit(self, draws):
            del draws
            return lambda rows: torch.where((rows == designs[3]).all(1, keepdim=True), NAN, rows)

    last = measured(read(folder), {"line": replace(line(), encoder=Blind())}).designs
    assert last["n_measured"].tolist() == [23, 24, 23, 24]  # both methods begin with it
    rest = designs[[row for row in range(24) if row != 3]]
    assert last["diversity"][2] == pytest.approx(Yardstick.of(line()).measures(rest)["diversity"])


def test_names_that_look_like_something_else_are_names(root, tmp_path):
    """A method called "nan", and a uid that reads as a number."""
    folder = shutil.copytree(root, tmp_path / "compare")
    (folder / "line" / "prior").rename(folder / "line" / "nan")
    found = read(folder)
    uids = [f"{row}e3" for row in range(len(found.campaigns))]
    found = replace(found, campaigns=found.campaigns.assign(uid=uids))
    told = measured(found, {"line": line()})
    again = Measures.kept(found)
    assert again.designs[["method", "uid"]].values.tolist() == told.designs[["method", "uid"]].values.tolist()
    assert set(again.opinions["method"]) == {"ours", "nan"}


def test_another_file_of_that_name_is_refused(root, tmp_path):
    folder = shutil.copytree(root, tmp_path / "compare")
    (folder / MEASURES).write_text("a,b\n1,2\n")
    with pytest.raises(CampaignError, match=r"measures.csv has the columns a, b, expected problem, method"):
        Measures.kept(read(folder))
