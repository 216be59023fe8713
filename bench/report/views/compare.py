"""Two rows side by side on the same samples: exact McNemar test and paired bootstrap, attack by attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from bench import metrics
from bench.errors import UsageError
from bench.metrics import Difference, McNemar
from bench.report.formats.text_table import DASH, Header, TextCell, TextTable, nan_to_none, statistic_text
from bench.report.tables.build import find_rows
from bench.report.tables.columns import Column, column_titles
from bench.report.tables.model import Cell, Row, Table
from bench.report.tables.ranking import SEED
from bench.report.views.frame import difference_cell, difference_record, framed, statistic_heads

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
        column: the attack.
        seed: "seed 0", "all seeds", or empty if each row has a single one.
        a: outcomes of the first row.
        b: outcomes of the second.
    """

    column: Column
    seed: str
    a: Cell
    b: Cell

    @cached_property
    def test(self) -> McNemar | None:
        """McNemar's test, for a single seed on either side."""
        alone = len(self.a.seeds) == len(self.b.seeds) == 1
        return metrics.mcnemar(self.a.correct[0], self.b.correct[0]) if alone else None

    @cached_property
    def differences(self) -> Mapping[str, Difference]:
        """A - B by statistic."""
        a, generator = self.a, np.random.default_rng(SEED)
        return metrics.paired_bootstrap(a.correct, self.b.correct, a.labels, a.num_classes, generator=generator)


def comparison_tables(tables: Sequence[Table], a: str, b: str) -> list[TextTable]:
    """Two rows by name (see `find_rows`), at every checkpoint that both have, or at the named ones.

    Raises:
        UsageError: if a row does not exist, is ambiguous, or the two never meet in one table.
    """
    kinds = [f"{row.name}@{kind}" for table in tables for row in table.rows for kind in row.checkpoints]
    listed = ", ".join(dict.fromkeys(kinds))
    for name in (a, b):
        if not any(find_rows(table, name, "compare") for table in tables):
            raise UsageError(f"compare: no row {name!r}; there are: {listed}")
    found = [_comparison_table(table, *rows) for table in tables for rows in _row_pairs(table, a, b)]
    if not found:
        raise UsageError(f"compare: {a!r} and {b!r} share no table, checkpoint and attack; there are: {listed}")
    return found


def _row_pairs(table: Table, a: str, b: str) -> Iterator[tuple[Row, Row]]:
    is_named = "@" in a or "@" in b
    for first in find_rows(table, a, "compare"):
        for second in find_rows(table, b, "compare"):
            meet = first is not second and first.cells.keys() & second.cells.keys()
            if meet and (is_named or first.shares_checkpoint(second)):
                yield first, second


def _comparisons(column: Column, a: Cell, b: Cell) -> list[Comparison]:
    """One comparison for every common seed, and one over all seeds if there are several."""
    if len(a.seeds) == len(b.seeds) == 1:
        return [Comparison(column, "", a, b)]
    common = [seed for seed in a.seeds if seed in b.seeds]
    single = [Comparison(column, f"seed {seed}", _one_seed(a, seed), _one_seed(b, seed)) for seed in common]
    return [*single, Comparison(column, "all seeds", a, b)]


def _one_seed(cell: Cell, seed: int) -> Cell:
    place = cell.seeds.index(seed)
    return Cell((seed,), cell.correct[place : place + 1], cell.labels, cell.num_classes)


def _comparison_table(table: Table, first: Row, second: Row) -> TextTable:
    names = column_titles(table.columns)
    shared = [column for column in table.columns if column in first.cells and column in second.cells]
    found = [each for column in shared for each in _comparisons(column, first.cells[column], second.cells[column])]
    seeds = " and over seeds" if any(each.seed for each in found) else ""
    missing = [names[column] for column in table.columns if column not in shared]
    notes = [note.format(a=first.title, b=second.title, seeds=seeds) for note in NOTES]
    heads = [Header("Attack", is_number=False), Header("n"), Header("A", "Average"), Header("B", "Average")]
    heads += [Header(name, "McNemar") for name in ("only A", "only B", "p")]
    return framed(
        table,
        f"{first.title} against {second.title}",
        heads=[*heads, *statistic_heads(table, "A - B")],
        lines=[[*_cells(table, names[each.column], each)] for each in found],
        records=[record for each in found for record in _records(table, first, second, names[each.column], each)],
        notes=notes + ([f"Not measured alike on both: {', '.join(missing)}."] if missing else []),
        rows=[first, second],
        columns=shared,
    )


def _cells(table: Table, name: str, each: Comparison) -> Iterator[TextCell]:
    yield from (TextCell(f"{name}, {each.seed}" if each.seed else name), TextCell(f"{each.column.n:,}"))
    yield from (TextCell(statistic_text(cell.mean("average"), "average")) for cell in (each.a, each.b))
    test = each.test
    yield from map(TextCell, [str(test.only_a), str(test.only_b), p_value_text(test.p_value)] if test else [DASH] * 3)
    for statistic in table.statistics:
        difference = each.differences[statistic]
        yield difference_cell(difference, statistic, bold=difference.settled)


def p_value_text(p: float) -> str:
    """A p-value with three decimals, or as a bound below that."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _records(table: Table, first: Row, second: Row, name: str, each: Comparison) -> Iterator[dict[str, Any]]:
    common: dict[str, Any] = {"dataset": table.dataset, "norm": table.norm or None, "eps": table.eps}
    for side, row in (("a", first), ("b", second)):
        common |= {f"{side}_{fact}": table.row_record(row)[fact] for fact in ("row", "model", "checkpoint")}
    common |= {"column": name, "what": each.seed or "one seed", "n": len(each.a.labels)}
    test = each.test
    for statistic in table.statistics:
        yield common | {
            "statistic": statistic,
            "a": nan_to_none(each.a.mean(statistic)),
            "b": nan_to_none(each.b.mean(statistic)),
            **difference_record(each.differences[statistic]),
            "only_a": test.only_a if test else None,
            "only_b": test.only_b if test else None,
            "mcnemar_p": test.p_value if test else None,
        }
