"""The README is true: its Python block runs and improves, its commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import TypeAdapter

from bbo.config.models import align_file_model, campaign_file_model
from experiments.compare.catalogue import METHODS
from experiments.compare.suite import load_suite
from smc.priors.training import TrainingSettings, train_denoiser

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
    assert commands == {
        "align",
        "check",
        "compare",
        "run",
        "budget",
        "prior",
        "oracle",
        *laboratory,
        *looking,
    }
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


def test_the_suite_that_is_shown_is_one(tmp_path):
    """What docs/compare.md shows, beside a prior and an oracle of these names."""
    block = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(), flags=re.DOTALL)[0]
    (tmp_path / "suite.yaml").write_text(block)
    (tmp_path / "my_oracle.py").write_text("def oracle(design):\n    return float(design[0])\n")
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    settings = TrainingSettings(n_iterations=2, batch_size=16, width=4, n_blocks=1)
    train_denoiser(points, settings=settings, seed=0).save(tmp_path / "prior.safetensors")
    suite = load_suite(tmp_path / "suite.yaml")
    assert len(suite.jobs) == 12


def test_every_method_of_the_comparison_is_described():
    page = (ROOT / "docs" / "compare.md").read_text()
    assert all(f"`{name}`" in page for name in METHODS)
