"""Ranges of settings: which values a setting takes, declared in its annotation and checked wherever it is given.

    steps: Count = 20
    step_size: Positive | None = None
    temperature: Annotated[float, between(0.5, 5)] = 1.0
    bn: Literal["train", "eval"] = "train"

Numbers are finite unless a range says otherwise. What an annotation does not say is not checked: a type that is not
a number, a text, true or false, a tuple of such, or `Literal`. Imports no torch, since plans check settings of plug-ins
that were read and not imported (`attacks.plugins.sketch`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

NUMBERS = {int: "a whole number", float: "a number"}
TYPE_NAMES = {**NUMBERS, bool: "true or false", str: "a text", NoneType: "none"}


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Attributes:
        low, high: its ends.
        open_low, open_high: whether an end is left out.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return "" if self.low == -math.inf else f"{'above' if self.open_low else 'of at least'} {self.low:g}"
        if self.low == -math.inf:
            return f"{'below' if self.open_high else 'of at most'} {self.high:g}"
        return f"from {'above ' * self.open_low}{self.low:g} to {'below ' * self.open_high}{self.high:g}"


def at_least(low: float) -> Range:
    """Numbers from `low` on."""
    return Range(low)


def above(low: float) -> Range:
    """Numbers greater than `low`."""
    return Range(low, open_low=True)


def between(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Range:
    """Numbers from `low` to `high`, without an end that is open."""
    return Range(low, high, open_low, open_high)


Count = Annotated[int, at_least(1)]
Index = Annotated[int, at_least(0)]  # of an epoch or a step, counted from 0
Positive = Annotated[float, above(0)]
NonNegative = Annotated[float, at_least(0)]
Fraction = Annotated[float, between(0, 1)]
Decay = Annotated[float, between(0, 1, open_high=True)]  # of a moving average


def accepted(value: Any, kind: Any) -> Any:
    """A value in the type of its setting: whole numbers become floats, lists and single values tuples, where asked.

    Args:
        value: as it was given.
        kind: the annotation of the setting, evaluated; None where it has none.

    Raises:
        ValueError: if it is not of that type or out of range; the text says what was expected.
    """
    found = _match(value, kind)
    if found is _NO:
        raise ValueError(f"expected {expected(kind)}, got {value!r}")
    return found


def expected(kind: Any) -> str:
    """What a setting takes, in words: `a whole number of at least 1`; empty where its annotation says nothing."""
    base, limits = _stripped(kind)
    limit = " and ".join(filter(None, map(str, limits)))
    if base in TYPE_NAMES:
        return f"{TYPE_NAMES[base]} {limit}".rstrip()
    if get_origin(base) is Literal:
        return _listed([_word(choice) for choice in get_args(base)])
    members = _members(base)
    if members:
        words = [expected(member) for member in members]
        return _listed(words) if all(words) else ""
    item = _item(base)
    words_of_item = "" if item is None else expected(item)
    return f"a list, each {words_of_item}" if words_of_item else ""


def is_checked(kind: Any) -> bool:
    """Whether an annotation limits every number that it lets through."""
    base, limits = _stripped(kind)
    inner = [*_members(base), *([item] if (item := _item(base)) is not None else [])]
    return bool(limits) if base in NUMBERS else all(map(is_checked, inner))


def problems(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> list[str]:
    """A sentence for every setting whose value is not what its annotation says: `steps: expected ..., got 0`."""
    found = []
    for name, value in values.items():
        try:
            accepted(value, kinds.get(name))
        except ValueError as error:
            found.append(f"{name}: {error}")
    return found


_NO = object()


def _match(value: Any, kind: Any) -> Any:
    """The value in the type of its setting, or `_NO`."""
    base, limits = _stripped(kind)
    if base in NUMBERS:
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = whole or (base is float and isinstance(value, float) and math.isfinite(value))
        return base(value) if fits and all(value in limit for limit in limits) else _NO
    if base in (bool, str):
        return value if isinstance(value, base) else _NO
    if base in (None, NoneType):
        return value if kind is None or value is None else _NO
    if get_origin(base) is Literal:
        return value if any(value == choice and type(value) is type(choice) for choice in get_args(base)) else _NO
    if members := _members(base):
        return next((found for member in members if (found := _match(value, member)) is not _NO), _NO)
    if (item := _item(base)) is not None:
        items = value if isinstance(value, (tuple, list)) else (value,)
        matched = tuple(_match(one, item) for one in items)
        return _NO if _NO in matched else matched
    return value


def _stripped(kind: Any) -> tuple[Any, list[Range]]:
    """An annotation without its ranges, and these."""
    if get_origin(kind) is not Annotated:
        return kind, []
    base, *extras = get_args(kind)
    return base, [extra for extra in extras if isinstance(extra, Range)]


def _members(base: Any) -> tuple[Any, ...]:
    return get_args(base) if get_origin(base) in (Union, UnionType) else ()


def _item(base: Any) -> Any:
    """The type of the items of `tuple[item, ...]`."""
    return get_args(base)[0] if get_origin(base) is tuple and len(get_args(base)) == 2 else None


def _word(choice: Any) -> str:
    return "none" if choice is None else str(choice).lower() if isinstance(choice, bool) else str(choice)


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
