"""Helpers that commands share: settings from file and flags, plug-ins, notes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.errors import UsageError

if TYPE_CHECKING:
    from bench.config.settings import RunSettings
    from bench.launch.scheduler import Workspace


def note(sentence: str) -> None:
    """Print a note to the error stream."""
    click.echo(f"note: {sentence}", err=True)


def load_plugins(plugins: Iterable[str]) -> None:
    """Import plug-ins, so that their names are known."""
    from bench.core.plugins import load_plugins

    load_plugins(plugins)


def settings_from(flags: dict[str, Any]) -> RunSettings:
    """The settings of a run: defaults, then the file, then the flags that were given."""
    from bench.config.config_file import from_file
    from bench.config.settings import combined
    from bench.core.values import parse_value

    config, sets = flags.pop("config"), flags.pop("sets")
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    overrides = {}
    for item in sets:
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item}: expected NAME.FIELD=VALUE")
        overrides[name.strip()] = parse_value(value)
    given["overrides"] = overrides
    layers = [] if config is None else [from_file(Path(config))]
    plugins = tuple(layers[0].get("plugins", ())) if layers else ()
    load_plugins((*plugins, *given.get("plugins", ())))
    return combined(*layers, given)


def workspace_of(settings: RunSettings) -> Workspace:
    """Where a run reads and writes."""
    from bench.launch.scheduler import Workspace

    return Workspace(Path(settings.out), Path(settings.data_dir), settings.download, settings.plugins)
