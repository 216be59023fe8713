"""Every `>>>` example in attacks, methods and bench runs and prints what it shows."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import structure
from tests.helpers.jobs import isolated_registries

ROOT = Path(__file__).parents[2]
EXAMPLES = {
    name: tests
    for name, path in structure.modules().items()
    if ">>> " in path.read_text(encoding="utf-8")
    and (tests := [test for test in doctest.DocTestFinder().find(importlib.import_module(name)) if test.examples])
}
CASES = [test for tests in EXAMPLES.values() for test in tests]
# What a notebook calls; each has an example.
SHOWN = (
    *("bench.load_results", "bench.report.render", "bench.data.load", "bench.data.to_float", "bench.models.build"),
    *("bench.models.Normalized", "bench.metrics.class_accuracy", "bench.metrics.worst", "bench.metrics.nsd"),
    *("bench.evaluate", "bench.examine", "bench.Outcomes", "methods.register"),
    *(
        "attacks.ThreatModel",
        "attacks.ascend",
        "attacks.Passes",
        "attacks.pgd.PGD.__call__",
        "attacks.objectives.margin",
    ),
)


def found(path: str) -> Any:
    """What a public path leads to."""
    thing: Any = importlib.import_module(path.partition(".")[0])
    for name in path.split(".")[1:]:
        thing = getattr(thing, name)
    return thing


@pytest.mark.parametrize("example", CASES, ids=lambda example: example.name)
def test_an_example_prints_what_it_shows(example: doctest.DocTest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    printed: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with isolated_registries(monkeypatch):
        failed = runner.run(example, out=printed.append).failed
    assert not failed, "".join(printed)


@pytest.mark.parametrize("path", SHOWN)
def test_what_a_notebook_calls_has_an_example(path: str) -> None:
    thing = found(path)
    assert f"{thing.__module__}.{thing.__qualname__}" in {example.name for example in CASES}
