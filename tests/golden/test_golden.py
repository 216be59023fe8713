"""Keys, help, catalogue and tables stay what they are, until someone accepts that they change."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from bench.config.settings import combined
from bench.plan.planner import make_plan
from tests.golden import texts

ACCEPT = "python -m tests.golden.texts DIR writes the texts to compare; --accept takes them"


@pytest.mark.parametrize("name", texts.REFERENCE_RUNS)
def test_the_keys_of_the_reference_results_are_planned_today(name: str) -> None:
    plans = [make_plan(combined(settings), "cpu") for settings in texts.REFERENCE_RUNS[name]]
    root = texts.REFERENCE.parent / "reference"
    stored = {str(path.parent.relative_to(root)) for path in (root / name).rglob("done")}
    assert {str(job.folder) for plan in plans for job in plan.jobs} == stored
    trained = {job.key for plan in plans for job in plan.train}
    evaluated = {job.id for plan in plans for job in plan.evaluate}
    assert (len(trained), len(evaluated)) == {"digits": (101, 404), "cifar10": (28, 112)}[name]


def test_help() -> None:
    """Word by word: where lines break is a matter of click's version."""
    assert texts.help_text().split() == texts.HELP.read_text(encoding="utf-8").split()


def assert_as_committed(found: Iterable[tuple[str, str]], prefix: tuple[str, ...]) -> None:
    """Check that texts are those committed under names with this prefix."""
    wanted = {name: digest for name, digest in texts.committed().items() if name.startswith(prefix)}
    assert {name: texts.digest(text) for name, text in found} == wanted, ACCEPT


def test_catalogue() -> None:
    assert_as_committed(texts.catalogue(), ("list ", "show "))


def test_planned_keys() -> None:
    assert_as_committed(texts.plans(), ("plan ",))


@pytest.mark.parametrize("form", texts.FORMATS)
@pytest.mark.parametrize("name", texts.REFERENCE_RUNS)
def test_reference_tables(name: str, form: str) -> None:
    found = dict(texts.tables(name, form))
    committed = texts.committed()
    assert {title: texts.digest(text) for title, text in found.items()} == {t: committed[t] for t in found}, ACCEPT


def test_long_decimals_are_compared_to_twelve_digits() -> None:
    same, other = "0.12345678901234567", "0.12345678901234999"
    assert texts.digest(same) == texts.digest(other) != texts.digest("0.12345678902")
    assert texts.digest("12.25 ± 0.50") != texts.digest("12.25 ± 0.51")
