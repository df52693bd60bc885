"""What is measured of a comparison's designs: against closed forms, and kept beside the ledgers."""

import math
import shutil
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
import torch

from bbo.errors import CampaignError
from experiments.compare.measured import (
    MEASURES,
    N_TOP,
    OPINIONS,
    Measures,
    Yardstick,
    mean_nearest_distance,
    measured,
    opinion_ratio,
    second_opinion,
)
from experiments.compare.reading import read, tensors
from experiments.compare.suite import Job
from oracles.calls import Incomplete
from oracles.errors import NotAccepted
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


def test_nearest_distances_by_hand():
    draws = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    assert mean_nearest_distance(torch.tensor([[3.0, 4.0], [10.0, 1.0]]), draws) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="got 0 and 2"):
        mean_nearest_distance(draws[:0], draws)


def test_the_yardstick_of_a_gaussian_is_its_closed_form():
    """Two draws of N(0, v·I) in the plane are √(πv) apart on average; twice as wide is twice as diverse."""
    yardstick = Yardstick.of(line(), n=512)
    _, std = line().prior.moments()
    assert yardstick.pairwise == pytest.approx(math.sqrt(math.pi) * std, rel=0.05)
    assert 0 < yardstick.nearest < 0.1
    fresh = std * torch.randn(400, 2, generator=torch.Generator().manual_seed(5))
    assert yardstick.diversity(fresh) == pytest.approx(1, rel=0.08)
    assert yardstick.diversity(2 * fresh) == pytest.approx(2, rel=0.08)
    assert yardstick.distance(fresh) == pytest.approx(1, rel=0.25)
    assert yardstick.distance(fresh + 30) > 100
    assert math.isnan(yardstick.diversity(fresh[:1]))
    assert math.isnan(yardstick.distance(fresh[:0]))


def test_a_second_opinion_is_nan_where_there_is_none_and_an_error_where_it_could_not_be_asked():
    designs = torch.tensor([[1.0, 0.5], [2.0, -0.5]])
    said = second_opinion(line().second_opinion, designs, "value")
    np.testing.assert_allclose(said, [0.9, NAN])
    assert np.isnan(second_opinion(Recorder(), designs, "another")).all()
    assert second_opinion(Recorder(), designs[:0], "value").shape == (0,)

    class Away(Recorder):
        def evaluate(self, designs):
            raise NotAccepted("nobody is there")

    with pytest.raises(Incomplete, match="nobody is there"):
        second_opinion(Away(), designs, "value")


@pytest.mark.parametrize(
    ("value", "second", "expected"),
    [
        ([1, 2, 4], [1, 1, 1], (0.5, 3, 3)),
        ([1, 2, 4], [NAN, 1, 1], (0.375, 2, 3)),
        ([0, 2], [1, 3], (1.5, 2, 2)),  # nothing is a multiple of 0
        ([1], [NAN], (NAN, 0, 1)),
        ([], [], (NAN, 0, 0)),
    ],
)
def test_the_ratio_is_the_median_over_those_that_returned(value, second, expected):
    found = opinion_ratio(np.array(value, dtype=float), np.array(second, dtype=float))
    assert found == pytest.approx(expected, nan_ok=True)


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
    X = tensors(Job(1, "line", "prior"), copied)
    last = found.designs.iloc[3]
    assert last["diversity"] == pytest.approx(yardstick.diversity(X))
    assert last["distance"] == pytest.approx(yardstick.distance(X))
    assert found.designs["diversity"][2:].tolist() == pytest.approx([1, 1], rel=0.3)
    greedy, plain = found.designs.groupby("method", sort=True)["distance"].mean()
    assert greedy > 2 * plain


def test_the_best_of_each_campaign_are_shown_to_the_other_oracle(copied, found):
    queries = read(copied).queries
    for (method, seed), rows in found.opinions.groupby(["method", "seed"]):
        ours = queries[(queries["method"] == method) & (queries["seed"] == seed)]
        top = ours.dropna(subset="value").nlargest(N_TOP, "value")
        assert rows["value"].tolist() == top["value"].tolist()
        designs = tensors(Job(seed, "line", method), copied)[top["query"].to_numpy() - 1]
        is_back = designs[:, 1] >= 0
        assert rows["second"].notna().tolist() == is_back.tolist()
        np.testing.assert_allclose(rows["second"].dropna(), 0.9 * designs[is_back, 0], rtol=1e-6)


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
    designs = tensors(Job(0, "line", "prior"), folder)

    @dataclass(frozen=True)
    class Blind:
        def fit(self, draws):
            del draws
            return lambda rows: torch.where((rows == designs[3]).all(1, keepdim=True), NAN, rows)

    last = measured(read(folder), {"line": replace(line(), encoder=Blind())}).designs
    assert last["n_measured"].tolist() == [23, 24, 23, 24]  # both methods begin with it
    rest = designs[[row for row in range(24) if row != 3]]
    assert last["diversity"][2] == pytest.approx(Yardstick.of(line()).diversity(rest))


def test_another_file_of_that_name_is_refused(root, tmp_path):
    folder = shutil.copytree(root, tmp_path / "compare")
    (folder / MEASURES).write_text("a,b\n1,2\n")
    with pytest.raises(CampaignError, match=r"measures.csv has the columns a, b, expected problem, method"):
        Measures.kept(read(folder))
