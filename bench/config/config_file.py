"""Run settings read from a TOML or YAML file."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from bench.config.settings import RunSettings
from bench.core.values import parse_number, parse_value
from bench.errors import UsageError


def from_file(path: Path) -> dict[str, Any]:
    """Settings of a TOML or YAML file: the names of the flags, and a table per method for `--set`.

    Raises:
        UsageError: if the file cannot be read or holds an unknown name.
    """
    values = _parse(path)
    known = {f.name for f in fields(RunSettings)}
    settings: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for raw, value in values.items():
        name = raw.replace("-", "_")
        if isinstance(value, Mapping):
            overrides.update(_flatten("" if name in ("set", "overrides") else f"{raw}.", value))
        elif name in known:
            settings[name] = _typed(f"{path}: {raw}", name, value)
        else:
            close = difflib.get_close_matches(name, sorted(known), n=1)
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

            loaded = yaml.safe_load(text) or {}
            if not isinstance(loaded, dict):
                raise ValueError(f"expected a mapping, got {type(loaded).__name__}")
            return loaded
    except Exception as error:  # every parser has its own errors; the sentence is the same
        raise UsageError(f"--config {path}: not valid {path.suffix[1:].upper()}: {error}") from None
    raise UsageError(f"--config {path}: expected a .toml, .yaml or .yml file")


def _typed(where: str, name: str, value: Any) -> Any:
    """A value from a file in the type of its setting."""
    hint = typing.get_type_hints(RunSettings)[name]
    try:
        if name == "eps":
            return parse_number(value)
        if name == "gpus" and not isinstance(value, bool):
            return str(value)
        if any(typing.get_origin(kind) is tuple for kind in (hint, *typing.get_args(hint))):
            items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
            return tuple(_whole(item) if name == "seeds" else str(item).strip() for item in items)
        wanted = [t for t in typing.get_args(hint) if t is not type(None)] or [hint]
        if typing.get_origin(hint) is Literal or typing.get_origin(wanted[0]) is Literal:
            allowed = [
                a for t in ([hint] if typing.get_origin(hint) is Literal else wanted) for a in typing.get_args(t)
            ]
            if value not in allowed:
                raise ValueError(f"expected one of {', '.join(allowed)}")
            return value
        if not isinstance(value, wanted[0]) or (isinstance(value, bool) and wanted[0] is not bool):
            raise ValueError(f"expected {wanted[0].__name__}")
        return value
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UsageError(f"{where}: {error}, got {value!r}") from None


def _whole(value: Any) -> int:
    if isinstance(value, (float, bool)):
        raise ValueError("expected whole numbers")
    return int(value)


def _flatten(prefix: str, table: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(f"{prefix}{name}.", value))
        else:
            flat[f"{prefix}{name}"] = parse_value(value) if isinstance(value, str) else value
    return flat
