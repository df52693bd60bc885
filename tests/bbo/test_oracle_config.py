"""Oracles in campaign files: inside each other, of the user's own, of plug-ins; and what is never loaded."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from bbo.config import plugins
from bbo.config.describe import describe_oracle
from bbo.config.plan import load_oracle, load_plan
from bbo.config.user_code import load_attribute
from bbo.errors import ConfigError
from bbo.ledger import Ledger
from oracles.airfoil import AirfoilOracle
from oracles.callables import ByHand, FunctionOracle
from oracles.command import CommandOracle
from oracles.concurrency import Concurrent
from oracles.http import HttpOracle
from oracles.time_limit import TimeLimited
from oracles.wrappers import Negated, Noisy, Retried

ROOT = Path(__file__).parents[2]
MINE = """
from dataclasses import dataclass
from oracles.evaluation import Evaluation

def bowl(design):
    return -float((design ** 2).sum())

@dataclass(frozen=True)
class Spectrometer:
    port: int
    gain: float = 1.0
    name: str = "spectrometer"
    design_shape: tuple | None = None
    n_per_call: int | None = None
    is_idempotent: bool = True

    def evaluate(self, designs):
        return [Evaluation.of(self.gain * self.port) for _ in designs]

def make_plain(port: int, *rest, **more):
    return Spectrometer(port)

class Untyped(Spectrometer):
    def __init__(self, port, gain=2.0):
        super().__init__(port, gain)

def make_nothing():
    return 5

ready = Spectrometer(7)
"""


@pytest.fixture
def home(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package with plug-ins, one of them broken."""
    site = tmp_path / "site"
    info = site / "my_lab-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "my_lab_oracles.py").write_text(MINE)
    (site / "my_lab_broken.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nimport no_such_library\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[bbo.oracles]\nspectrometer = my_lab_oracles:Spectrometer\nplain = my_lab_oracles:make_plain\n"
        "untyped = my_lab_oracles:Untyped\nnothing = my_lab_oracles:make_nothing\n"
        "broken = my_lab_broken:Oracle\nairfoil = my_lab_broken:Oracle\n"
    )
    monkeypatch.syspath_prepend(str(site))
    plugins.load.cache_clear()
    yield tmp_path
    plugins.load.cache_clear()
    sys.modules.pop("my_lab_oracles", None)


def mistakes(name, *settings, folder=Path()):
    with pytest.raises(ConfigError) as refused:
        load_oracle(name, settings, folder)
    return str(refused.value).splitlines()[1:]


# ------------------------------------------------------------------- oracles inside oracles
def test_wrappers_nest_in_any_order(monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", "s3cret")
    http = '{type: http, url: "http://localhost/x", headers: {X-Token: "${env:LAB_TOKEN}"}}'
    nested = f"{{type: retried, n_retries: 5, oracle: {{type: noisy, std: 0.5, oracle: {http}}}}}"
    oracle = load_oracle("negated", [f"oracle={nested}", "outcome=drag"])
    inside = HttpOracle("http://localhost/x", headers={"X-Token": "${env:LAB_TOKEN}"})
    assert oracle == Negated(Retried(Noisy(inside, 0.5), n_retries=5), "drag")
    told = json.dumps(describe_oracle(oracle))
    assert "${env:LAB_TOKEN}" in told
    assert "s3cret" not in told
    assert [part in told for part in ('"negated"', '"retried"', '"noisy"', '"http"')] == [True] * 4


def test_a_command_runs_from_the_folder_of_the_file(home):
    (home / "oracle.sh").write_text("#!/bin/sh\n")
    (home / "oracle.sh").chmod(0o755)
    inside = "{type: command, command: [./oracle.sh, -x], directory: ., n_per_call: null}"
    oracle = load_oracle("concurrent", [f"oracle={inside}", "n_workers=2"], home)
    expected = CommandOracle(("./oracle.sh", "-x"), directory=home, n_per_call=None)
    assert oracle == Concurrent(expected, 2)
    here, there = (
        describe_oracle(oracle),
        describe_oracle(Concurrent(CommandOracle(("./oracle.sh", "-x"), home, n_per_call=None), 2)),
    )
    assert here == there


def test_by_hand_and_functions_inside(home):
    assert load_oracle("by_hand") == ByHand()
    oracle = load_oracle(
        "time_limited", ["seconds=3", "oracle={type: function, function: 'mine.py:bowl'}"], home
    )
    assert isinstance(oracle, TimeLimited)
    assert isinstance(oracle.oracle, FunctionOracle)
    assert oracle.name == "bowl"


def test_every_mistake_has_its_path():
    nested = "{type: retried, n_retris: 5, oracle: {type: noisy, std: much, oracle: {type: htp}}}"
    assert mistakes("negated", f"oracle={nested}", "outcom=drag") == [
        "  oracle.oracle.n_retris: unknown key; did you mean 'n_retries'?",
        "  oracle.oracle.oracle.oracle: unknown type 'htp'; did you mean 'http'?",
        "  oracle.oracle.oracle.std: input should be a number, got 'much'",
        "  oracle.outcom: unknown key; did you mean 'outcome'?",
    ]
    assert mistakes("negated") == ["  oracle.oracle: is missing"]
    assert mistakes("negated", "oracle=airfoil") == [
        "  oracle.oracle: expected a section with keys, got 'airfoil'"
    ]
    assert mistakes("command", "command=[awk, 3]") == [
        "  oracle.command.1: input should be a valid string, got 3"
    ]
    (line,) = mistakes("negated", "oracle={type: noisy, std: -1, oracle: {type: airfoil}}")
    assert line == "  oracle: std of the noise must be 0 or more, got -1.0"


def test_secrets_are_refused_in_the_open():
    (line,) = mistakes("http", "url=http://localhost/", "headers={Authorization: Bearer abc}")
    assert "Authorization holds a secret" in line
    assert "abc" not in line


# ------------------------------------------------------------------- the user's own
def test_an_oracle_of_the_users_own_class(home):
    oracle = load_oracle("custom", ["source=mine.py:Spectrometer", "settings={port: 5, gain: 2}"], home)
    assert (oracle.name, oracle.port, oracle.gain) == ("spectrometer", 5, 2)
    assert load_oracle("custom", ["source=mine.py:ready"], home).port == 7
    assert "'port'" in mistakes("custom", "source=mine.py:Spectrometer", folder=home)[0]
    assert "must make an oracle" in mistakes("custom", "source=mine.py:make_nothing", folder=home)[0]
    assert (
        "is an oracle already"
        in mistakes("custom", "source=mine.py:ready", "settings={port: 5}", folder=home)[0]
    )
    assert "input should be a valid string" in mistakes("custom", "source={type: airfoil}", folder=home)[0]


@pytest.mark.parametrize("target", ["evil.py:oracle", "evil:oracle", "sub/evil.py:oracle"])
def test_no_code_is_loaded_from_the_directory_of_a_campaign(tmp_path, target):
    sent = tmp_path / "sent"
    Ledger.create(sent, name="x", budget=1, config={}).close()
    (sent / "sub").mkdir()
    for file in (sent / "evil.py", sent / "sub" / "evil.py"):
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\noracle = print\n")
    with pytest.raises(ConfigError, match="is the directory of a campaign, from which no code is loaded"):
        load_attribute(target, sent)
    with pytest.raises(ConfigError, match="from which no code is loaded"):
        load_attribute("sent/evil.py:oracle", tmp_path)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------- plug-ins
def test_plugins_are_listed_and_not_loaded(installed):
    assert plugins.installed().keys() >= {"spectrometer", "plain", "untyped", "nothing", "broken"}
    assert "airfoil" not in plugins.installed()  # a built-in name stays built in
    assert "my_lab_oracles" not in sys.modules
    assert not (installed / "ran").exists()


def test_a_plugin_is_a_type_of_oracle_like_any_other(installed):
    oracle = load_oracle("spectrometer", ["port=5", "gain=1e1"])
    assert (oracle.name, oracle.port, oracle.gain) == ("spectrometer", 5, 10.0)
    inside = load_oracle("negated", ["oracle={type: noisy, std: 0.1, oracle: {type: plain, port: 4}}"])
    assert inside.oracle.oracle.port == 4
    assert load_oracle("untyped", ["port=3"]).gain == 2.0
    assert load_oracle("airfoil") == AirfoilOracle()
    assert not (installed / "ran").exists()


def test_mistakes_in_a_plugins_settings_have_their_path(installed):
    assert mistakes("spectrometer", "prot=5") == [
        "  oracle.port: is missing",
        "  oracle.prot: unknown key; did you mean 'port'?",
    ]
    assert mistakes("spectromete") == ["  oracle: unknown type 'spectromete'; did you mean 'spectrometer'?"]
    assert "must make an oracle" in mistakes("nothing")[0]


def test_a_broken_plugin_breaks_only_itself(installed):
    (line,) = mistakes("broken")
    assert "the plug-in 'broken' (my_lab_broken:Oracle, of my-lab) cannot be loaded" in line
    assert "No module named 'no_such_library'" in line
    (line,) = mistakes("negated", "oracle={type: broken}")
    assert "cannot be loaded" in line
    assert load_oracle("plain", ["port=1"]).port == 1


def test_a_broken_plugin_hides_no_mistake_elsewhere(installed):
    path = installed / "campaign.yaml"
    path.write_text(
        "campaign: {directory: x, budgt: 5}\nprior: {type: denoiser, path: x}\noracle: {type: broken}\n"
    )
    with pytest.raises(ConfigError) as refused:
        load_plan(path)
    assert "did you mean 'budget'?" in str(refused.value)
    assert "cannot be loaded" in str(refused.value)


# ------------------------------------------------------------------- examples
def test_the_example_in_another_language_runs(tmp_path):
    plan = load_plan(
        ROOT / "examples" / "area.yaml", [f"campaign.directory={tmp_path / 'run'}", "campaign.budget=20"]
    )
    with plan.open() as campaign:
        campaign.run()
        assert len(campaign.history()) == 20
        assert 0 < campaign.best().value.item() <= 0.12


@pytest.mark.skipif(
    shutil.which("xfoil") is None, reason="xfoil is not installed (Debian: apt-get install xfoil)"
)
def test_the_example_with_xfoil_runs(tmp_path):
    overrides = [f"campaign.directory={tmp_path / 'run'}", "campaign.budget=20"]
    with load_plan(ROOT / "examples" / "xfoil.yaml", overrides).open() as campaign:
        campaign.run()
        assert len(campaign.history()) == 20
        assert campaign.best().value.item() > 50
