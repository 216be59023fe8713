"""Class accuracies by name: one table per attack, classes down, methods across."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.metrics import Floats
from bench.report.formats.sheet import DASH, STATISTIC_TITLES, Entry, Head, Sheet, figure_text, reporter, spread_text
from bench.report.tables.build import Filters, build_tables
from bench.report.tables.cells import Row, Table
from bench.report.tables.columns import Column, titles
from bench.report.tables.main import checkpoint_text, row_record, table_title
from bench.report.tables.notes import by_row, older_notes
from bench.report.tables.sanity import marked, sanity_notes
from bench.results.tree import Roots

if TYPE_CHECKING:
    from typing_extensions import Unpack


def by_class(
    results: Roots,
    *,
    format: str = "markdown",
    **filters: Unpack[Filters],
) -> str:
    """Accuracy of every class under every attack, with the names of the classes.

    Arguments and errors are those of `bench.report.render`.
    """
    write = reporter(format)
    tables = build_tables(results, **filters)
    return write([_sheet(table, column) for table in tables for column in table.columns])


def _sheet(table: Table, column: Column) -> Sheet:
    rows = [row for row in table.rows if column in row.cells]
    accuracy = [row.cells[column].class_accuracy for row in rows]
    names = class_titles(table.class_names)
    sizes = rows[0].cells[column].counts
    body = [(Entry(name), Entry(str(sizes[k])), *_class_entries(accuracy, k)) for k, name in enumerate(names)]
    body += [(Entry(STATISTIC_TITLES[s]), Entry(DASH), *_summary(rows, column, s)) for s in table.statistics]
    heads = [Head("Class", is_number=False), Head("n"), *(Head(name) for name in headings(rows))]
    seeds = by_row(rows, lambda row: ", ".join(map(str, row.cells[column].seeds)))
    notes = ["Class accuracies in percent; bold: the worst class of the method.", f"Seeds: {seeds}."]
    if any(len(row.cells[column].seeds) > 1 for row in rows):
        notes.append("Mean ± standard deviation over seeds (ddof 1).")
    notes += [*older_notes(rows, [column], titles(table.columns)), *sanity_notes(rows)]
    title = f"{table_title(table)}: {titles(table.columns)[column]}, n = {column.n:,}"
    return Sheet(title, tuple(heads), tuple(body), tuple(notes), tuple(_records(table, column, rows)))


def class_titles(names: Sequence[str]) -> list[str]:
    """Names of the classes with their numbers, unless the names are the numbers."""
    return [name if name == str(k) else f"{k} {name}" for k, name in enumerate(names)]


def headings(rows: Sequence[Row]) -> list[str]:
    """Row names as column heads, with the checkpoint where there are several."""
    several = len({row.checkpoint for row in rows}) > 1
    return [f"{marked(row)}, {checkpoint_text(row)}" if several else marked(row) for row in rows]


def _class_entries(accuracy: Sequence[Floats], k: int) -> Iterator[Entry]:
    for values in accuracy:
        mean = values.mean(axis=0)
        sd = float(values[:, k].std(ddof=1)) if len(values) > 1 else None
        is_worst = bool(np.isclose(mean[k], mean.min())) and not np.isclose(np.ptp(mean), 0)
        yield Entry(spread_text(float(mean[k]), sd, "average"), bold=is_worst)


def _summary(rows: Sequence[Row], column: Column, statistic: str) -> Iterator[Entry]:
    for row in rows:
        yield Entry(figure_text(row.cells[column].mean(statistic), statistic))


def _records(table: Table, column: Column, rows: Sequence[Row]) -> Iterator[dict[str, object]]:
    for row in rows:
        cell = row.cells[column]
        common = row_record(table, row) | {"attack": column.attack, "column": titles(table.columns)[column]}
        for k, name in enumerate(table.class_names):
            for seed, value in zip(cell.seeds, cell.class_accuracy[:, k], strict=True):
                figure = {"class": k, "class_name": name, "n": int(cell.counts[k]), "accuracy": float(value)}
                yield common | {"seed": seed} | figure
