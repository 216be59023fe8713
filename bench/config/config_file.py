"""Run settings read from a TOML or YAML file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.config.setting import Setting
from bench.config.settings import SETTINGS
from bench.core.values import parse_value
from bench.errors import UsageError


def from_file(path: Path) -> dict[str, Any]:
    """Settings of a TOML or YAML file: the names of the flags, and a table per method for `--set`.

    Raises:
        UsageError: if the file cannot be read or holds an unknown name.
    """
    values = _parse(path)
    settings: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for raw, value in values.items():
        name = raw.replace("-", "_")
        if name in SETTINGS:
            settings[name] = _read(f"{path}: {raw}", SETTINGS[name], value)
        elif isinstance(value, Mapping):
            overrides.update(_flatten("" if name in ("set", "overrides") else f"{raw}.", value))
        else:
            close = difflib.get_close_matches(name, sorted(SETTINGS), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UsageError(f"{path}: unknown setting {raw!r}{hint}")
    if overrides:
        settings["overrides"] = overrides
    return settings


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: cannot be read: {error}") from None
    try:
        if path.suffix == ".toml":
            try:
                import tomllib
            except ModuleNotFoundError:
                import tomli as tomllib  # type: ignore[no-redef, unused-ignore]
            return dict(tomllib.loads(text))
        if path.suffix in (".yaml", ".yml"):
            import yaml

            _refuse_repetitions(yaml.compose(text, yaml.SafeLoader))
            loaded = yaml.safe_load(text) or {}
            if not isinstance(loaded, dict):
                raise ValueError(f"expected a mapping, got {type(loaded).__name__}")
            return loaded
    except Exception as error:  # every parser has its own errors; the sentence is the same
        raise UsageError(f"--config {path}: not valid {path.suffix[1:].upper()}: {error}") from None
    raise UsageError(f"--config {path}: expected a .toml, .yaml or .yml file")


def _refuse_repetitions(node: Any) -> None:
    """Raise ValueError for a name that a YAML mapping holds twice, of which the parser would take the last."""
    for pair in getattr(node, "value", ()) if hasattr(node, "flow_style") else ():
        _refuse_repetitions(pair[1] if isinstance(pair, tuple) else pair)
    names = [pair[0].value for pair in node.value if isinstance(pair, tuple)] if hasattr(node, "flow_style") else []
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} stands there twice; keep one")


def _read(where: str, setting: Setting, value: Any) -> Any:
    try:
        return setting.read(value)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UsageError(f"{where}: {error}, got {value!r}") from None


def _flatten(prefix: str, table: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(f"{prefix}{name}.", value))
        else:
            flat[f"{prefix}{name}"] = parse_value(value) if isinstance(value, str) else value
    return flat
