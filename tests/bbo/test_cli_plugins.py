"""Command groups that other packages bring."""

from importlib.metadata import EntryPoint

import pytest
from typer.testing import CliRunner

from bbo import cli_plugins
from bbo.cli import app
from bbo.errors import ConfigError


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def broken(monkeypatch):
    """A plug-in whose package is gone, and one under a built-in name."""
    points = {
        "gone": EntryPoint("gone", "no_such_package.cli:app", cli_plugins.GROUP),
        "strange": EntryPoint("strange", "os:path", cli_plugins.GROUP),
        "status": EntryPoint("status", "no_such_package.cli:app", cli_plugins.GROUP),
    }
    monkeypatch.setattr(cli_plugins, "_installed", lambda: points)


def test_an_installed_group_is_a_command():
    assert "compare" in run("--help").output
    assert "run" in run("compare", "--help").output


def test_a_broken_one_says_so_when_it_is_called_and_breaks_nothing_else(broken):
    assert run("--help").exit_code == 0
    with pytest.raises(ConfigError, match=r"'gone' \(no_such_package.cli:app\) cannot be loaded: ModuleNot"):
        raise run("gone", "do", "--this").exception


def test_what_is_no_command_line_says_so(broken):
    assert "strange" in run("--help").output
    with pytest.raises(ConfigError, match=r"'strange' \(os:path\) cannot be loaded: AttributeError"):
        raise run("strange").exception


def test_built_in_names_stay_built_in(broken):
    assert "how far a campaign is" in run("status", "--help").output


def test_an_unknown_command_is_refused():
    assert run("compair").exit_code == 2
