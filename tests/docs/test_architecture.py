"""ARCHITECTURE.md draws the rooms and floors that the imports are held against, and names files that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.helpers import structure

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_the_drawing_has_every_room_on_its_floor() -> None:
    drawn = re.findall(r"^ ?(\d+)  ([a-z_.]+) +\S.*$", TEXT, re.M)
    faces = {name.removesuffix(".__init__"): floor for name, floor in structure.FLOORS.items() if "__init__" in name}
    rooms = [(name, floor) for name, floor in structure.FLOORS.items() if "__init__" not in name]
    assert sorted((name, int(floor)) for floor, name in drawn) == sorted([*faces.items(), *rooms])
    assert [int(floor) for floor, _ in drawn] == sorted((int(floor) for floor, _ in drawn), reverse=True)


def test_every_place_that_is_named_is_there() -> None:
    named = re.findall(r"`((?:attacks|methods|bench|tests|docs|results|benchmarks)/[\w/.]*)`", TEXT)
    assert len(named) > 15
    assert [place for place in named if not (ROOT / place).exists()] == []


def test_the_command_that_measures_the_structure_prints_every_room() -> None:
    assert "`python -m tests.helpers.structure`" in TEXT
    printed = structure.report(ROOT)
    assert all(re.search(rf"^{re.escape(name)} +\d+ files", printed, re.M) for name in structure.FLOORS)


def test_decisions_are_short_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (folder / "README.md").read_text(encoding="utf-8"))
    pages = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md") if path.name != "README.md"}
    assert sorted(listed) == sorted(pages)
    for name, text in pages.items():
        heads = re.findall(r"^## (.*)$", text, re.M)
        assert heads == ["Context", "Decision", "Consequences"] and len(text.splitlines()) <= 30, name
