"""The README is true: its Python block runs and improves, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from bbo.config.models import align_file_model, campaign_file_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_block_runs_and_can_be_run_again(tmp_path):
    block = BLOCKS[0]
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) <= 20
    shown = []
    for _ in range(2):  # the second time finds the campaign finished and spends nothing
        done = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout)
    assert shown[0] == shown[1]
    best = float(shown[0].splitlines()[1].split()[3])
    assert -4.0 < best <= -1.0  # designs that fit the mould reach -1 at best


def test_the_block_of_the_sampler_samples_its_target():
    """The reward is a Gaussian factor of variance 1/2, centred at (3, 1): it moves each mode and weighs it."""
    shown = "print(len(designs), designs.mean(0).tolist(), log_z, error)"
    done = subprocess.run(
        [sys.executable, "-c", f"{BLOCKS[1]}\n{shown}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    n, x, y, log_z, error = (float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", done.stdout))
    assert n == 100
    assert 3.0 < x < 4.0  # the mode at 4, pulled towards 3
    assert 0.1 < y < 0.6
    assert error < 0.1
    assert -4.0 < log_z < -2.5  # a third of the prior, exp(-2/1.5) of it, and the factor's own width


def test_every_command_of_the_readme_exists():
    commands = set(re.findall(r"^bbo (\w+)", README, flags=re.MULTILINE))
    laboratory = {"init", "ask", "tell", "pending", "edit", "reject", "abandon", "resolve"}
    looking = {"status", "best", "report", "show", "verify", "export"}
    assert commands == {"align", "check", "run", "budget", "prior", "oracle", *laboratory, *looking}
    assert {"demo:", "test:"} <= set(
        re.findall(r"^\w+:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    )


def test_every_file_that_the_readme_names_is_there():
    for name in re.findall(r"`(\w+/[\w/]*\w\.(?:py|md|yaml))`", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\((\S+)\)", README):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", ["README.md", "docs/images.md"])
def test_every_section_of_a_campaign_file_that_a_page_shows_is_one(page):
    """Against the models of real files: names, types and required keys, without building anything."""
    fields = {**campaign_file_model().model_fields, **align_file_model().model_fields}
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    sections = [(name, part) for block in blocks for name, part in yaml.safe_load(block).items()]
    assert len(sections) >= 5
    for name, part in sections:
        if isinstance(part, dict):
            part.pop("parallel", None)  # oracle.parallel is taken out before the models see it
        if name == "campaign":
            part = {"directory": "runs/x", "budget": 1, **part}
        TypeAdapter(fields[name].annotation).validate_python(part)
