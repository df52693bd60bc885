"""`bbo oracle`: what a user's oracle is told, and the exit codes."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest

from bbo.cli import main
from bbo.oracle_check import subject
from tests.bbo.test_cli import ROOT, bbo

CODE = """
import numpy as np, torch
from oracles.evaluation import Evaluation

def good(x): return -float((x ** 2).sum())
def batch(X): return [-float((x ** 2).sum()) if np.isfinite(x).all() else Evaluation.failed("not finite") for x in X]
def fragile(X):
    if not np.isfinite(X).all(): raise ValueError("not finite")
    return (X ** 2).sum(1)
def noisy(x): return float(np.random.default_rng().normal())
def shuffled(X): return sorted(float(x.sum()) for x in X)
def short(X): return [1.0]
def dead(x): raise RuntimeError("no licence \\x1b[2J")
def text(x): return "5"

def valued(design):
    return Evaluation.of(design.sum().item()) if design.isfinite().all() else Evaluation.failed("not finite")

class Base:
    name, design_shape, n_per_call, is_idempotent = "mine", (2,), None, True
    def evaluate(self, designs): return [valued(d) for d in designs]
class Liar(Base):
    def evaluate(self, designs): return [Evaluation.of(float(torch.rand(()))) for d in designs]
class Rude(Base):
    def evaluate(self, designs):
        designs.zero_()
        return [Evaluation.of(1.0) for d in designs]
class Floats(Base):
    def evaluate(self, designs): return [1.0 for d in designs]
class Nameless:
    def evaluate(self, designs): return []
class Zero(Base):
    n_per_call = 0
class Names(Base):
    def evaluate(self, designs):
        return [Evaluation({"a" if d[0] > 0 else "b": 1.0}) for d in designs]
class Port(Base):
    def __init__(self, port: int): self.name = f"port {port}"
NUMBER = 5
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(CODE)
    np.save(tmp_path / "designs.npy", np.random.default_rng(0).normal(size=(6, 2)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def checked(home, monkeypatch, capsys):
    """Run `bbo oracle check`, in this process because importing takes seconds."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bbo", "oracle", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        done = Done(ended.value.code or 0, *capsys.readouterr())
        assert all(len(line) <= 80 for line in done.stdout.splitlines()), done.stdout
        return done

    return run


def words(done):
    """Return the output with its line breaks healed."""
    return " ".join(done.stdout.split())


def test_a_good_oracle_passes(checked):
    done = checked("mine.py:good", "--designs", "designs.npy", "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "good, tried with the first 4 designs of designs.npy" in words(done)
    assert done.stdout.splitlines()[-1] == "No fault was found."
    assert not any(line.startswith("fault") for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["mine.py:fragile", "--batched"],
            "a design of NaN loses the rest of the batch: evaluate raised ValueError: not finite",
        ),
        (["mine.py:shuffled", "--batched"], "they are given to the wrong designs"),
        (["mine.py:short", "--batched"], "got 4 designs and must answer as many, got 1"),
        (["mine.py:dead"], "all 4 designs failed; the first: RuntimeError: no licence"),
        (["mine.py:text"], "the oracle answered '5' for 'value', not a finite number"),
        (["mine.py:Liar"], "but is_idempotent promises the same"),
        (["mine.py:Rude"], "changed in place"),
        (["mine.py:Floats"], "expected evaluations, got a float among the answers"),
        (["mine.py:Zero"], "n_per_call must be 1 or more, got 0"),
        (["mine.py:Names"], "names differ from design to design: a | b"),
    ],
)
def test_faults_are_named_and_exit_1(checked, arguments, said):
    done = checked(*arguments, "--designs", "designs.npy", "--yes")
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in words(done)
    assert "not ready to be paid" in done.stdout
    assert "\x1b" not in done.stdout


def test_noise_is_measured(checked):
    done = checked("mine.py:noisy", "--designs", "designs.npy", "--yes", "-n", 6)
    assert done.returncode == 0, done.stdout
    assert "noise of std" in words(done)


def test_settings_and_shapes(checked):
    done = checked("mine.py:Port", "port=7")
    assert done.returncode == 0, done.stderr
    assert "port 7, tried with 4 random designs of std 1" in words(done)
    assert checked("airfoil", "alpha=3").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mine.py:good", "--designs", "designs.npy"], "add --yes to go on"),
        (["mine.py:good", "--yes"], "give some with --designs FILE.npy"),
        (["mine.py:Nameless"], "must make an oracle"),
        (["mine.py:NUMBER"], "must be an oracle, a class or a function, got 5"),
        (["mine.py:Port"], "missing 1 required positional argument: 'port'"),
        (["mine.py:good", "a=1"], "settings are for a class"),
        (["mine.py:nothing"], "has no 'nothing'"),
        (["nowhere.yaml"], "cannot read nowhere.yaml"),
        (["airfol"], "did you mean 'airfoil'?"),
        (["airfoil", "alfa=3"], "did you mean 'alpha'?"),
        (["airfoil", "alpha"], "written key.path=value"),
        (["mine.py:Base", "--designs", "mine.py"], "cannot read mine.py as a .npy array"),
        (["mine.py:Base", "--designs", "designs.npy", "-n", 7], "expected at least 7 designs"),
        (["mine.py:Base", "-n", 1], "-n"),
    ],
)
def test_a_users_mistake_exits_2(checked, arguments, said):
    done = checked(*arguments)
    assert done.returncode == 2, done.stdout
    assert said in " ".join(done.stderr.split())


def test_designs_of_another_shape_are_a_fault(home, checked):
    np.save(home / "wide.npy", np.zeros((4, 3)))
    done = checked("mine.py:Base", "--designs", "wide.npy")
    assert done.returncode == 1
    assert "design_shape is (2,), but the designs to try it with are (3,)" in words(done)


def test_a_campaign_file_is_tried_with_designs_of_its_prior():
    done = bbo("oracle", "check", "examples/airfoil.yaml")
    assert done.returncode == 0, done.stderr
    assert "tried with 4 designs drawn from the prior" in done.stdout
    assert "idempotent" in done.stdout


def test_the_limit_of_a_campaign_file_holds_for_its_prior():
    assert subject(str(ROOT / "examples" / "airfoil.yaml"), ["method.sampler.max_batch=3"]).max_batch == 3


def test_the_list_names_all_and_loads_no_plugin(tmp_path):
    info = tmp_path / "my_lab-1.2.dist-info"
    info.mkdir()
    (tmp_path / "my_lab.py").write_text("raise SystemExit('loaded')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[bbo.oracles]\nspectrometer = my_lab:Oracle\n")
    path = f"{ROOT}:{tmp_path}"
    done = bbo("oracle", "list", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert "spectrometer" in done.stdout
    assert "plug-in of my-lab 1.2: my_lab:Oracle" in done.stdout
    assert all(
        name in done.stdout for name in ("airfoil", "xfoil", "command", "http", "retried", "concurrent")
    )
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert bbo("--help", PYTHONPATH=path).returncode == 0
    assert bbo("oracle", "--help", PYTHONPATH=path).returncode == 0
