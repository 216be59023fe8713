"""Class accuracies by name: one table per attack, classes down, methods across."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.metrics import Floats
from bench.report.formats.text_table import (
    DASH,
    STATISTIC_TITLES,
    Header,
    TextCell,
    TextTable,
    mean_sd_text,
    reporter,
    statistic_text,
)
from bench.report.tables.build import Filters, build_tables
from bench.report.tables.columns import Column, column_titles
from bench.report.tables.model import Row, Table
from bench.report.tables.notes import old_revision_notes, summarize_by_row
from bench.report.tables.sanity import marked, sanity_notes
from bench.report.views.main import checkpoint_text, row_record, table_title
from bench.results.tree import ResultsFolders

if TYPE_CHECKING:
    from typing_extensions import Unpack


def by_class(
    results: ResultsFolders,
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


def _sheet(table: Table, column: Column) -> TextTable:
    rows = [row for row in table.rows if column in row.cells]
    accuracy = [row.cells[column].class_accuracy for row in rows]
    names = class_titles(table.class_names)
    sizes = rows[0].cells[column].counts
    body = [(TextCell(name), TextCell(str(sizes[k])), *_class_entries(accuracy, k)) for k, name in enumerate(names)]
    body += [(TextCell(STATISTIC_TITLES[s]), TextCell(DASH), *_summary(rows, column, s)) for s in table.statistics]
    heads = [Header("Class", is_number=False), Header("n"), *(Header(name) for name in headings(rows))]
    seeds = summarize_by_row(rows, lambda row: ", ".join(map(str, row.cells[column].seeds)))
    notes = ["Class accuracies in percent; bold: the worst class of the method.", f"Seeds: {seeds}."]
    if any(len(row.cells[column].seeds) > 1 for row in rows):
        notes.append("Mean ± standard deviation over seeds (ddof 1).")
    notes += [*old_revision_notes(rows, [column], column_titles(table.columns)), *sanity_notes(rows)]
    title = f"{table_title(table)}: {column_titles(table.columns)[column]}, n = {column.n:,}"
    return TextTable(title, tuple(heads), tuple(body), tuple(notes), tuple(_records(table, column, rows)))


def class_titles(names: Sequence[str]) -> list[str]:
    """Names of the classes with their numbers, unless the names are the numbers."""
    return [name if name == str(k) else f"{k} {name}" for k, name in enumerate(names)]


def headings(rows: Sequence[Row]) -> list[str]:
    """Row names as column heads, with the checkpoint where there are several."""
    several = len({row.checkpoint for row in rows}) > 1
    return [f"{marked(row)}, {checkpoint_text(row)}" if several else marked(row) for row in rows]


def _class_entries(accuracy: Sequence[Floats], k: int) -> Iterator[TextCell]:
    for values in accuracy:
        mean = values.mean(axis=0)
        sd = float(values[:, k].std(ddof=1)) if len(values) > 1 else None
        is_worst = bool(np.isclose(mean[k], mean.min())) and not np.isclose(np.ptp(mean), 0)
        yield TextCell(mean_sd_text(float(mean[k]), sd, "average"), bold=is_worst)


def _summary(rows: Sequence[Row], column: Column, statistic: str) -> Iterator[TextCell]:
    for row in rows:
        yield TextCell(statistic_text(row.cells[column].mean(statistic), statistic))


def _records(table: Table, column: Column, rows: Sequence[Row]) -> Iterator[dict[str, object]]:
    for row in rows:
        cell = row.cells[column]
        common = row_record(table, row) | {"attack": column.attack, "column": column_titles(table.columns)[column]}
        for k, name in enumerate(table.class_names):
            for seed, value in zip(cell.seeds, cell.class_accuracy[:, k], strict=True):
                figure = {"class": k, "class_name": name, "n": int(cell.counts[k]), "accuracy": float(value)}
                yield common | {"seed": seed} | figure
