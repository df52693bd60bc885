"""A suite of quick methods on problems of one's own, and the oracles that they name."""

import yaml
from typer.testing import CliRunner

from bbo.cli import app

ORACLE = """
def value(design):
    return float(design[0])

def picky(design):
    if design[0] < 100:
        raise ValueError("too small")
    return 1.0

def slow(design):
    import time
    time.sleep(0.05)
    return float(design[0])

def endless(design):
    import os, pathlib, time
    with pathlib.Path(__file__).with_name("asked").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(600)

def deaf(design):
    import os, pathlib, re
    with pathlib.Path(__file__).with_name("asked").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    re.match("(a+)+$", "a" * 60 + "b")  # for years, without letting another thread of this process run

def stopped(design):
    import pathlib
    if design[0] > 0 and pathlib.Path(__file__).with_name("stop").exists():
        raise KeyboardInterrupt
    return float(design[0])
"""


def written(folder, **changes):
    """Write a suite of one problem and two quick methods, with some sections changed."""
    suite = {
        "suite": {"directory": str(folder / "runs"), "budget": 8, "batch_size": 4, "n_seeds": 2},
        "problems": {
            "mine": {
                "prior": {"type": "denoiser", "path": "prior.safetensors"},
                "oracle": {"type": "function", "function": "lab.py:value"},
            }
        },
        "methods": {"prior": {"type": "prior"}, "few": {"type": "best_of_n", "n_samples": 16}},
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite | changes, sort_keys=False))
    return path


def problem(function):
    """Return a problem with an oracle of `lab.py`."""
    prior = {"type": "denoiser", "path": "prior.safetensors"}
    return {"prior": prior, "oracle": {"type": "function", "function": f"lab.py:{function}"}}


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])
