"""Names: spelling, suggestions, duplicates, entry points, plug-ins."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from attacks.plugins.registry import Registry, UnknownName

SOURCE = '''"""Two things.

More about them.
"""
from tests_registry_table import TABLE


@TABLE.register("thing-one", colour="red")
class One:
    """The first."""

    size = 3

    def __init__(self, *, weight: float = 0.5) -> None:
        self.weight = weight
'''


@pytest.fixture
def table() -> Registry[type]:
    return Registry(kind="thing", group="bench.no_such_group")


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry[type]:
    """A table whose built-in thing is a file that is not imported yet."""
    (tmp_path / "tests_registry_table.py").write_text(
        "from attacks.plugins.registry import Registry\n"
        "TABLE = Registry(kind='thing', group='bench.no_such_group', builtin={'thing-one': 'tests_registry_thing'})\n"
    )
    (tmp_path / "tests_registry_thing.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("tests_registry_table", "tests_registry_thing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import tests_registry_table  # type: ignore[import-not-found]

    registry: Registry[type] = tests_registry_table.TABLE
    return registry


def test_a_decorated_thing_is_found_in_any_spelling(table: Registry[type]) -> None:
    @table.register("my_Thing")
    class Mine:
        pass

    for spelling in ("my_Thing", "MY-THING", " my-thing "):
        assert table[spelling] is Mine
        assert spelling in table
        assert table.resolve(spelling) == "my_Thing"
    assert list(table) == table.names() == ["my_Thing"]
    assert 3 not in table


def test_a_name_is_given_once(table: Registry[type]) -> None:
    table.register("pgd-20")(int)
    for taken in ("pgd-20", "PGD_20"):
        with pytest.raises(ValueError, match="is already registered by builtins; choose another name"):
            table.register(taken)(str)


def test_a_built_in_name_cannot_be_taken_before_it_is_imported(on_disk: Registry[type]) -> None:
    with pytest.raises(ValueError, match="'thing_one' is already registered by tests_registry_thing"):
        on_disk.register("thing_one")(int)
    assert on_disk["thing-one"].__name__ == "One"


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../up", "a.b"])
def test_a_name_is_one_plain_word(table: Registry[type], name: str) -> None:
    with pytest.raises(ValueError, match="expected letters, digits"):
        table.register(name)


def test_an_unknown_name_gets_a_suggestion_and_the_list(table: Registry[type]) -> None:
    table.register("absld")(int)
    table.register("rslad")(str)
    with pytest.raises(UnknownName) as caught:
        table["absdl"]
    assert str(caught.value) == "unknown thing 'absdl'; did you mean 'absld'? available: absld, rslad"
    with pytest.raises(UnknownName, match="unknown thing 'zzz'; available: absld, rslad"):
        table.resolve("zzz")
    assert "zzz" not in table


def test_a_built_in_is_imported_on_demand_and_sketched_without(on_disk: Registry[type]) -> None:
    sketch = on_disk.sketch("thing-one")
    assert "tests_registry_thing" not in sys.modules
    assert sketch.summary == "Two things"
    assert sketch.settings == {"weight": 0.5}
    assert (sketch.fact("size"), sketch.fact("colour"), sketch.fact("none", 7)) == (3, "red", 7)
    thing = on_disk["thing_one"]
    assert "tests_registry_thing" in sys.modules
    again = on_disk.sketch("thing-one")
    assert thing().weight == 0.5 and (again.settings, again.fact("colour")) == (sketch.settings, "red")


def test_a_module_that_does_not_register_its_name_is_named(on_disk: Registry[type]) -> None:
    lost: Registry[type] = Registry(
        kind="thing", group="x", builtin={"other": "tests_registry_thing", "gone": "no_mod"}
    )
    with pytest.raises(LookupError, match="was expected to register 'other' and does not"):
        lost.sketch("other")
    with pytest.raises(LookupError, match="'gone' is declared in no_mod, which is not installed"):
        lost.sketch("gone")


def test_entry_points_are_listed_last_and_loaded_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    class Point(metadata.EntryPoint):
        def load(self) -> type:
            loaded.append(self.name)
            return Path

    def entry_points(*, group: str) -> tuple[metadata.EntryPoint, ...]:
        return (Point("theirs", "pathlib:Path", group), Point("Own", "pathlib:Path", group))

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    table: Registry[type] = Registry(kind="thing", group="bench.things")
    table.register("own")(int)
    assert table.names() == ["own", "theirs"] and "THEIRS" in table and loaded == []
    assert table["Theirs"] is Path and table["theirs"] is Path and loaded == ["theirs"]
    assert table["own"] is int
    assert table.sketch("theirs").name == "theirs"
