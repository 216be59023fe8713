"""Ranges of settings: what fits, what is converted, what is refused in which words, and that every number has one."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pytest

from attacks.plugins.ranges import (
    Count,
    Fraction,
    Index,
    NonNegative,
    Positive,
    accepted,
    at_least,
    between,
    expected,
    is_checked,
    problems,
)
from attacks.plugins.sketch import sketch_object
from attacks.registry import ATTACKS
from methods.registry import COMPOSITIONS, METHODS

PLUGINS = [(table, name) for table in (METHODS, COMPOSITIONS, ATTACKS) for name in table.builtin]
every_plugin = pytest.mark.parametrize(("table", "name"), PLUGINS, ids=[name for _, name in PLUGINS])


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        (1, Count, 1),
        (2, Positive, 2.0),
        (0, NonNegative, 0.0),
        (1, Fraction, 1.0),
        (None, Positive | None, None),
        (True, bool, True),
        ([1, 2], tuple[Index, ...], (1, 2)),
        (3, tuple[Index, ...], (3,)),
        ((), tuple[Index, ...], ()),
        (0.1, float | tuple[float, ...], 0.1),
        ([0.1, 1], float | tuple[float, ...], (0.1, 1.0)),
        ("at", Literal["at", "fat"], "at"),
        ({"anything": 1}, None, {"anything": 1}),
    ],
)
def test_what_fits_comes_back_in_the_type_of_the_setting(value: Any, kind: Any, wanted: Any) -> None:
    found = accepted(value, kind)
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (0, Count, "expected a whole number of at least 1, got 0"),
        (1.0, Count, "expected a whole number of at least 1, got 1.0"),
        (True, Count, "expected a whole number of at least 1, got True"),
        ("20", Count, "expected a whole number of at least 1, got '20'"),
        (0, Positive, "expected a number above 0, got 0"),
        (math.nan, Positive, "expected a number above 0, got nan"),
        (math.inf, NonNegative, "expected a number of at least 0, got inf"),
        (-math.inf, float, "expected a number, got -inf"),
        (1.5, Fraction, "expected a number from 0 to 1, got 1.5"),
        (1, Annotated[float, between(0, 1, open_high=True)], "expected a number from 0 to below 1, got 1"),
        (0, Annotated[float, between(0, 1, open_low=True)], "expected a number from above 0 to 1, got 0"),
        (-1, Positive | None, "expected a number above 0 or none, got -1"),
        (None, Positive, "expected a number above 0, got None"),
        (1, bool, "expected true or false, got 1"),
        ("bt", Literal["at", "trades", "fat"], "expected at, trades or fat, got 'bt'"),
        (1, Literal[True, "x"], "expected true or x, got 1"),
        (("[]",), tuple[Index, ...], "expected a list, each a whole number of at least 0, got ('[]',)"),
        ((3, -1), tuple[Index, ...], "expected a list, each a whole number of at least 0, got (3, -1)"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(value: Any, kind: Any, words: str) -> None:
    with pytest.raises(ValueError) as refused:
        accepted(value, kind)
    assert str(refused.value) == words


def test_all_settings_are_looked_at() -> None:
    kinds = {"steps": Count, "eps": Positive}
    assert problems({"steps": 0, "eps": 0.1, "other": -1}, kinds) == [
        "steps: expected a whole number of at least 1, got 0"
    ]


@pytest.mark.parametrize(
    ("kind", "checked"),
    [(Count, True), (float, False), (Positive | None, True), (int | None, False), (str, True),
     (tuple[int, ...], False), (tuple[Annotated[int, at_least(0)], ...], True)],
)  # fmt: skip
def test_a_number_without_a_range_is_known(kind: Any, checked: bool) -> None:
    assert is_checked(kind) is checked


@every_plugin
def test_every_setting_declares_its_range(table: Any, name: str) -> None:
    sketch = table.sketch(name)
    kinds = {key: sketch.kind(key) for key in sketch.settings if key != "threat"}
    open_ones = [key for key, kind in kinds.items() if not (expected(kind) and is_checked(kind))]
    assert open_ones == []


@every_plugin
def test_defaults_and_recipes_lie_in_their_ranges(table: Any, name: str) -> None:
    sketch = table.sketch(name)
    kinds = {key: sketch.kind(key) for key in sketch.settings}
    assert problems(sketch.settings, kinds) == []
    for recipe in sketch.fact("recipes", {}).values():
        assert problems(recipe.settings, kinds) == []


@every_plugin
def test_ranges_that_are_read_are_those_that_are_imported(table: Any, name: str) -> None:
    sketch = table.sketch(name)
    imported = sketch_object(name, table[name], {})
    assert {key: sketch.kind(key) for key in sketch.settings} == {key: imported.kind(key) for key in sketch.settings}


def test_a_setting_without_annotation_takes_values_like_its_default() -> None:
    def attack(*, steps=3, rate=0.5, name="x", milestones=(1, 2), fast=False, extra=None):  # type: ignore[no-untyped-def]
        return steps, rate, name, milestones, fast, extra

    sketch = sketch_object("mine", attack, {})
    kinds = [sketch.kind(name) for name in ("steps", "rate", "name", "milestones", "fast", "extra")]
    assert kinds == [int, float, str, tuple[int, ...], bool, None]
