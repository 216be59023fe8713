"""Two rows side by side on the same samples: exact McNemar test and paired bootstrap, attack by attack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attacks.plugins.registry import canonical
from bench import metrics
from bench.errors import UsageError
from bench.metrics import Difference, McNemar
from bench.report.formats.text_table import (
    DASH,
    STATISTIC_TITLES,
    Header,
    TextCell,
    TextTable,
    interval_text,
    nan_to_none,
    reporter,
    statistic_text,
)
from bench.report.tables.build import Filters, build_tables
from bench.report.tables.columns import Column, column_titles
from bench.report.tables.model import Cell, Row, Table
from bench.report.tables.notes import old_revision_notes
from bench.report.tables.ranking import SEED
from bench.report.tables.sanity import sanity_notes
from bench.report.views.main import checkpoint_text, row_record, table_title
from bench.results.tree import ResultsFolders

if TYPE_CHECKING:
    from typing_extensions import Unpack

NOTES = (
    "A is {a}, B is {b}; both on the same test samples.",
    "McNemar: exact two-sided test of the average, from the samples that only one of the two gets right; one line per "
    "seed, since outcomes of several seeds on one sample are not independent.",
    "Differences A - B in percent points (NSD: plain), with 95 % intervals from a paired bootstrap of "
    f"{metrics.DRAWS:,} draws over the samples within classes{{seeds}}; bold where zero lies outside. A higher NSD is "
    "less fair. No correction for the number of comparisons.",
)


@dataclass(frozen=True)
class Comparison:
    """Two rows under one attack, on one seed or on all.

    Attributes:
        what: what the line prints in front: the seed, or nothing.
        a: outcomes of the first row.
        b: outcomes of the second.
        test: McNemar's, for a single seed on either side.
        differences: by statistic.
    """

    what: str
    a: Cell
    b: Cell
    test: McNemar | None
    differences: dict[str, Difference]


def compare(
    results: ResultsFolders,
    a: str,
    b: str,
    *,
    format: str = "markdown",
    **filters: Unpack[Filters],
) -> str:
    """Compare two rows of the tables, attack by attack.

    Args:
        results: a results folder, or several.
        a: name, label or method of the first row, optionally with its checkpoint: `absld@last`.
        b: the second. Without checkpoints, every one that both have is compared.
        format: a name in `REPORTERS`.
        filters: what to restrict it to, see `bench.report.tables.build.build_tables`.

    Raises:
        UsageError: if a row does not exist, is ambiguous, or the two never meet in one table.
    """
    write = reporter(format)
    tables = build_tables(results, **filters)
    for name in (a, b):
        if not any(find_rows(table, name) for table in tables):
            raise UsageError(f"compare: no row {name!r}; there are: {_listed(tables)}")
    pairs = [(table, first, second) for table in tables for first, second in _pairs(table, a, b)]
    if not pairs:
        raise UsageError(
            f"compare: {a!r} and {b!r} share no table, checkpoint and attack; there are: {_listed(tables)}"
        )
    return write([_sheet(*pair) for pair in pairs])


def find_rows(table: Table, wanted: str, where: str = "compare") -> list[Row]:
    """Rows of a table that a name means: by row name, else by label, else by method.

    Args:
        table: the table.
        wanted: the name, optionally with a checkpoint: `absld@last`.
        where: what the sentence of an error begins with.

    Raises:
        UsageError: if it means several rows that differ in more than the checkpoint.
    """
    name, _, checkpoint = wanted.partition("@")
    rows = [row for row in table.rows if not checkpoint or canonical(checkpoint) in row.checkpoint.split(" = ")]
    for spellings in (
        [row.name for row in rows],
        [row.run.label for row in rows],
        [row.run.text("method") for row in rows],
    ):
        found = [row for row, text in zip(rows, spellings, strict=True) if canonical(text) == canonical(name)]
        students = [row for row in found if not row.is_teacher] or found
        if len({row.name for row in students}) > 1:
            listed = ", ".join(sorted({repr(row.name) for row in students}))
            raise UsageError(f"{where}: {wanted!r} means several rows; name one of {listed}")
        if students:
            return students
    return []


def _pairs(table: Table, a: str, b: str) -> Iterator[tuple[Row, Row]]:
    free = "@" not in a and "@" not in b
    for first in find_rows(table, a):
        for second in find_rows(table, b):
            same = set(first.checkpoint.split(" = ")) & set(second.checkpoint.split(" = "))
            if first is not second and (same or not free) and first.cells.keys() & second.cells.keys():
                yield first, second


def _listed(tables: Sequence[Table]) -> str:
    names = dict.fromkeys(
        f"{row.name}@{kind}" for table in tables for row in table.rows for kind in row.checkpoint.split(" = ")
    )
    return ", ".join(names)


def comparisons(a: Cell, b: Cell) -> list[Comparison]:
    """One comparison for every common seed, and one over all seeds if there are several."""
    common = [seed for seed in a.seeds if seed in b.seeds]
    if len(a.seeds) == len(b.seeds) == 1:
        return [_compare("", a, b)]
    single = [_compare(f"seed {seed}", _one(a, seed), _one(b, seed)) for seed in common]
    return [*single, _compare("all seeds", a, b)]


def _one(cell: Cell, seed: int) -> Cell:
    place = cell.seeds.index(seed)
    return Cell((seed,), cell.correct[place : place + 1], cell.labels, cell.num_classes)


def _compare(what: str, a: Cell, b: Cell) -> Comparison:
    alone = len(a.seeds) == len(b.seeds) == 1
    test = metrics.mcnemar(a.correct[0], b.correct[0]) if alone else None
    generator = np.random.default_rng(SEED)
    return Comparison(
        what,
        a,
        b,
        test,
        metrics.paired_bootstrap(a.correct, b.correct, a.labels, a.num_classes, generator=generator),
    )


def _sheet(table: Table, first: Row, second: Row) -> TextTable:
    names = column_titles(table.columns)
    shared = [column for column in table.columns if column in first.cells and column in second.cells]
    found = [(column, each) for column in shared for each in comparisons(first.cells[column], second.cells[column])]
    shown = table.statistics
    called = [f"{row.name} ({checkpoint_text(row)})" for row in (first, second)]
    heads = [
        Header("Attack", is_number=False),
        Header("n"),
        Header("A", "Average"),
        Header("B", "Average"),
    ]
    heads += [Header("only A", "McNemar"), Header("only B", "McNemar"), Header("p", "McNemar")]
    heads += [Header(STATISTIC_TITLES[statistic], "A - B") for statistic in shown]
    seeds = " and over seeds" if any(each.what for _, each in found) else ""
    missing = [names[column] for column in table.columns if column not in shared]
    notes = [note.format(a=called[0], b=called[1], seeds=seeds) for note in NOTES]
    notes += [f"Not measured alike on both: {', '.join(missing)}."] if missing else []
    notes += [*old_revision_notes([first, second], shared, names), *sanity_notes([first, second])]
    return TextTable(
        title=f"{table_title(table)}: {called[0]} against {called[1]}",
        heads=tuple(heads),
        rows=tuple(_entries(names[column], column, each, shown) for column, each in found),
        notes=tuple(notes),
        records=tuple(
            record for column, each in found for record in _records(table, (first, second), names[column], each, shown)
        ),
    )


def _entries(name: str, column: Column, each: Comparison, shown: Sequence[str]) -> tuple[TextCell, ...]:
    test = (
        [DASH] * 3
        if each.test is None
        else [str(each.test.only_a), str(each.test.only_b), p_value_text(each.test.p_value)]
    )
    averages = [statistic_text(cell.mean("average"), "average") for cell in (each.a, each.b)]
    front = [f"{name}, {each.what}" if each.what else name, f"{column.n:,}", *averages, *test]
    return (
        *map(TextCell, front),
        *(difference_entry(each.differences[statistic], statistic) for statistic in shown),
    )


def difference_entry(
    difference: Difference, statistic: str, *, bold: bool | None = None, underline: bool = False
) -> TextCell:  # fmt: skip
    """A difference with its sign and interval; bold where it is settled, unless `bold` says otherwise."""
    text = statistic_text(difference.estimate, statistic)
    return TextCell(
        text if text == DASH or text.startswith("-") else f"+{text}",
        interval_text(difference.interval, statistic),
        bold=difference.settled if bold is None else bold,
        underline=underline,
    )


def p_value_text(p: float) -> str:
    """A p-value with three decimals, or as a bound below that."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _records(
    table: Table, rows: tuple[Row, Row], column: str, each: Comparison, shown: Sequence[str]
) -> Iterator[dict[str, Any]]:
    sides = {f"{side}_{fact}": value for side, row in zip("ab", rows, strict=True) for fact, value in _side(table, row)}
    for statistic in shown:
        difference, test = each.differences[statistic], each.test
        yield {
            **{"dataset": table.dataset, "norm": table.norm or None, "eps": table.eps},
            **sides,
            **{"column": column, "what": each.what or "one seed", "n": len(each.a.labels), "statistic": statistic},
            **{"a": nan_to_none(each.a.mean(statistic)), "b": nan_to_none(each.b.mean(statistic))},
            **{"difference": nan_to_none(difference.estimate), "low": nan_to_none(difference.interval.low)},
            **{"high": nan_to_none(difference.interval.high), "settled": difference.settled},
            "only_a": None if test is None else test.only_a,
            "only_b": None if test is None else test.only_b,
            "mcnemar_p": None if test is None else test.p_value,
        }


def _side(table: Table, row: Row) -> Iterator[tuple[str, Any]]:
    facts = row_record(table, row)
    return ((name, facts[name]) for name in ("row", "model", "checkpoint"))
