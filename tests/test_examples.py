"""The examples of alignment, run as people run them, offline."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(("name", "n_images"), [("align_sd15", 3), ("align_sdxl", 1), ("align_lcm", 2)])
def test_an_example_runs_without_weights(name, n_images, tmp_path):
    command = [sys.executable, EXAMPLES / f"{name}.py", "--tiny", "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=EXAMPLES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == n_images
    assert len(list((tmp_path / "out" / "drawn").glob("*.png"))) == n_images


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("align_*.py")), ids=lambda path: path.stem)
def test_an_example_fits_on_a_screen(path):
    assert len(path.read_text().splitlines()) <= 40


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("align_*.py")), ids=lambda path: path.stem)
def test_an_example_says_what_it_needs(path):
    done = subprocess.run(
        [sys.executable, path], cwd=path.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "the following arguments are required: --prior" in done.stderr
