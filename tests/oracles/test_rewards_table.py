"""The table in docs/rewards.md, held against the classes."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import oracles.images
from oracles.images.function import FunctionReward
from oracles.images.reward import Reward, RewardOracle, WeightedSum

DOCS = Path(__file__).parents[2] / "docs" / "rewards.md"
SAYS = {True: "yes", False: "no"}


def rewards():
    """Return every class of the package that is a reward of its own, and not made of what others bring."""
    found = set()
    for module in pkgutil.iter_modules(oracles.images.__path__, "oracles.images."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if (
                kind.__module__ == module.name
                and hasattr(kind, "is_differentiable")
                and "__call__" in vars(kind)
            ):
                found.add(kind)
    return sorted(found - {Reward, WeightedSum, RewardOracle, FunctionReward}, key=lambda kind: kind.__name__)


def rows():
    """Return the table: class → its cells by the head of their column."""
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[1].strip("`"): dict(zip(head, row, strict=True)) for row in body}


def test_every_reward_has_a_row_and_every_row_a_reward():
    assert len(rewards()) == 7
    assert set(rows()) == {kind.__name__ for kind in rewards()}


@pytest.mark.parametrize("kind", rewards(), ids=lambda kind: kind.__name__)
def test_a_row_says_what_the_class_does(kind):
    row = rows()[kind.__name__]
    assert row["name"] == f"`{kind.name}`"
    assert row["differentiable"] == SAYS[kind.is_differentiable]
    assert row["reads the prompt"] == SAYS[kind.reads_prompt]
    assert row["scale and range"]
    has_weights = any(part in inspect.signature(kind).parameters for part in ("clip", "network"))
    assert (row["weights"] != "none") == has_weights
    assert (row["licence of the weights"] != "–") == has_weights


def test_a_users_function_is_told_of():
    settings = inspect.signature(FunctionReward).parameters
    (call,) = re.findall(r"`FunctionReward\((.*)\)`", DOCS.read_text())
    assert {part.strip().partition("=")[0] for part in call.split(",")} == set(settings)


def test_commands_of_the_page_are_those_of_the_converter():
    from oracles.images import convert

    page = DOCS.read_text()
    for command in re.findall(r"^ +(python -m oracles\.images\.convert .*)$", convert.__doc__, re.MULTILINE):
        assert command.split()[3] in {"head", "hpsv2", "image_reward"}
        assert f"python -m oracles.images.convert {command.split()[3]}" in page
