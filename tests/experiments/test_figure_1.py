"""Figure 1 end to end at a tiny size, and the numbers in its table."""

import json
import struct
import sys

import pytest
import torch

from experiments.figures.figure_1 import __main__ as command
from experiments.figures.figure_1.measure import TARGET, Outcome, Scale, measure
from experiments.figures.figure_1.panels import COLUMNS
from experiments.figures.figure_1.table import LABELS, PAPER, flat, markdown, number, quantiles
from smc.priors.training import TrainingSettings

TINY = Scale(
    n=40,
    n_repeats=2,
    n_steps=6,
    n_particles=4,
    n_tuning=1,
    net=TrainingSettings(n_iterations=20, batch_size=128, width=8, n_blocks=1, ema_decay=0.9),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Everything the command writes and prints at the tiny size."""
    folder = tmp_path_factory.mktemp("figure_1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "QUICK", TINY)
        patch.setattr(
            sys, "argv", ["figure_1", "--quick", "--out", str(folder), "--json", str(folder / "figures.json")]
        )
        command.main()
    return folder


def test_one_command_writes_picture_table_and_figures(run):
    assert sorted(path.name for path in run.iterdir()) == [
        "figure_1.md",
        "figure_1.pdf",
        "figure_1.png",
        "figures.json",
    ]
    png = (run / "figure_1.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width > 1200
    assert height > 1000
    assert (run / "figure_1.pdf").read_bytes()[:5] == b"%PDF-"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "a_file"], "--out must be a folder, a_file is a file"),
        (["--json", "nowhere/figures.json"], "in a folder that exists, got nowhere/figures.json"),
    ],
)
def test_what_cannot_be_written_is_said_before_minutes_of_work(tmp_path, monkeypatch, capsys, flags, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    monkeypatch.setattr(sys, "argv", ["figure_1", *flags])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert said in capsys.readouterr().err


def test_the_json_is_flat_and_says_what_it_depends_on(run):
    figures = json.loads((run / "figures.json").read_text())
    assert all(isinstance(value, int | float | str) for value in figures.values())
    assert {"torch", "commit", "swiss_roll_ours_reward_median", "mixture_2_rl_emd_ratio"} <= figures.keys()
    assert figures["mixture_1_target_emd_ratio"] == 1


def test_the_table_has_every_method_and_the_papers_numbers(run):
    table = (run / "figure_1.md").read_text()
    for label in LABELS.values():
        assert table.count(f"| {label} |") == 4
    assert "| -10.40 |" in table
    assert "| -927 |" in table


def test_a_run_repeats_itself_and_its_repeats_differ(run):
    again = measure(TINY, lambda _: None)
    figures = json.loads((run / "figures.json").read_text())
    assert figures == {**figures, **flat(again)}
    target = again["mixture_1"][TARGET]
    assert not torch.equal(target.points[0], target.points[1])
    assert all(emd > 0 for emd in target.emds)  # the floor: the target against itself, drawn anew


def test_numbers_of_an_outcome_by_hand():
    points = torch.zeros(2, 2, 1)
    outcome = Outcome(points, torch.tensor([[-1.0, -3.0], [-5.0, -7.0]]), (1.0, 3.0), 2.0, 0.5)
    assert outcome.reward == -4
    assert outcome.emd == 2
    assert outcome.emd_error == pytest.approx(1.0)  # std √2 over √2
    assert quantiles(outcome)[2] == -4
    once = Outcome(points[:1], outcome.rewards[:1], (1.0,), 2.0, 0.5)
    assert once.emd_error == 0
    outcomes = {"swiss_roll": {TARGET: once, "ours": outcome}}
    assert flat(outcomes)["swiss_roll_ours_emd_ratio"] == 2
    assert "| ours: SMC | -4.00 | -0.50 | 2.000 ± 1.000 | 2.00 | 2 s | 0.5 s |" in markdown(outcomes, TINY)


def test_numbers_are_short():
    assert [number(x) for x in (-0.274, -99.4, -338.2, -186006.6)] == ["-0.27", "-99.40", "-338", "-186,007"]


def test_names_agree_everywhere():
    methods = set(Scale().methods())
    assert set(LABELS) == methods
    assert set(COLUMNS) <= methods
    for numbers in PAPER.values():
        assert set(numbers) <= methods
