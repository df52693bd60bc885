"""Command groups of other packages, found under the entry point group `bbo.commands`.

    [project.entry-points."bbo.commands"]
    compare = "experiments.compare.cli:app"      →      bbo compare …

An entry point names a `typer.Typer`, in a module that costs little to import: `bbo --help` shows what it is for. One
that cannot be loaded says so there and when it is called, and breaks no other command.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from bbo.errors import ConfigError

GROUP = "bbo.commands"


class WithPlugins(TyperGroup):
    """The command line with what is installed besides; built-in names stay built in."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        own = super().list_commands(ctx)
        return [*own, *sorted(_installed().keys() - set(own))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name; None where there is none."""
        own = super().get_command(ctx, cmd_name)
        if own is not None or (point := _installed().get(cmd_name)) is None:
            return own
        try:
            command = typer.main.get_command(point.load())
        except Exception as error:  # somebody else's code, or no Typer at all
            command = typer.main.get_command(_broken(point, error))
        command.name = cmd_name
        return command


def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _broken(point: EntryPoint, error: Exception) -> typer.Typer:
    """Return a command that says why it cannot be loaded, whatever it is given."""
    reason = f"the command {point.name!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
    app = typer.Typer()

    @app.command(help=reason, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    def refuse() -> None:
        raise ConfigError(reason)

    return app
