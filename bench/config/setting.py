"""How a run setting is declared: a dataclass field with its default, type and range, help and flags.

The option of the command line (`bench.cli.options`), the reading of a configuration file and the check of the value
all follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from attacks.plugins.ranges import TYPE_NAMES, accepted
from bench.core.values import parse_number
from bench.errors import UsageError


@dataclass(frozen=True)
class Setting:
    """One setting of a run.

    Attributes:
        help: text of the command line, with the default in brackets.
        flags: spellings on the command line; () is the name with dashes.
        metavar: how the command line calls the value.
        numeric: whether a file may hold a number for the text.
        check: returns a value in its normal form, or raises `UsageError`; it sees no None.
        name: of its field; this and the rest follow from the field.
        annotation: of the field, without None; see `attacks.plugins.ranges`.
        kind: int, str, bool, or float for a radius, which may be written as a fraction.
        many: whether it holds several values.
        choices: the values allowed; () for any.
    """

    help: str = ""
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    numeric: bool = False
    check: Callable[[Any], Any] | None = None
    name: str = ""
    annotation: Any = None
    kind: type = str
    many: bool = False
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """Its flag, as messages name it."""
        return f"--{self.name.replace('_', '-')}"

    def read(self, value: Any) -> Any:
        """A value from a configuration file in the type of the setting.

        Raises:
            ValueError, TypeError, ZeroDivisionError: if it has another type.
        """
        if isinstance(value, Mapping):
            raise ValueError("expected a value, not a table")
        if self.many:
            items = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
            if not any(str(item).strip() for item in items):
                raise ValueError("expected at least one value; leave the setting out for the default")
            return tuple(_whole_number(item) if self.kind is int else str(item).strip() for item in items)
        if self.choices and value not in self.choices:
            raise ValueError(f"expected one of {', '.join(self.choices)}")
        if self.kind is float and not isinstance(value, bool):
            return parse_number(value)
        if self.numeric and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, self.kind) or (isinstance(value, bool) and self.kind is not bool):
            raise ValueError(f"expected {TYPE_NAMES[self.kind]}")
        return value

    def checked(self, value: Any) -> Any:
        """A value in its normal form.

        Raises:
            UsageError: if it has another type, is out of range, or a name that is not known.
        """
        if value is None:
            return None
        if value == "":
            raise UsageError(f"{self.flag}: expected a value, got an empty text; leave it out for the default")
        try:
            value = accepted(value, self.annotation)
        except ValueError as error:
            raise UsageError(f"{self.flag}: {error}") from None
        return value if self.check is None else self.check(value)


def setting(default: Any, help: str = "", **stated: Any) -> Any:
    """A dataclass field that declares a setting: its default, and what `Setting` is given."""
    return field(default=default, metadata={"setting": Setting(help, **stated)})


def declared(owner: type) -> dict[str, Setting]:
    """The settings that the fields of a dataclass declare, by name."""
    hints = get_type_hints(owner, include_extras=True)
    stated = {f.name: f.metadata["setting"] for f in fields(owner) if "setting" in f.metadata}
    return {name: replace(setting, name=name, **_typed(hints[name])) for name, setting in stated.items()}


def _typed(hint: Any) -> dict[str, Any]:
    """Annotation, kind, many and choices of an annotation such as `tuple[int, ...] | None`."""
    if NoneType in get_args(hint):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    if get_origin(hint) is Literal:
        return {"annotation": hint, "choices": get_args(hint)}
    many = get_origin(hint) is tuple
    return {
        "annotation": hint,
        "kind": get_args(hint)[0] if many or get_origin(hint) is Annotated else hint,
        "many": many,
    }


def _whole_number(value: Any) -> int:
    if isinstance(value, (float, bool)):
        raise ValueError("expected whole numbers")
    return int(value)
