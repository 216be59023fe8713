"""Class accuracies by name: one table per attack, classes down, methods across."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bench.metrics import Floats
from bench.report.formats.text_table import (
    DASH,
    STATISTIC_TITLES,
    Header,
    TextCell,
    TextTable,
    mean_sd_text,
    statistic_text,
)
from bench.report.tables.columns import Column, column_titles
from bench.report.tables.model import Row, Table
from bench.report.tables.notes import summarize_by_row
from bench.report.views.frame import framed


def class_table(table: Table, column: Column) -> TextTable:
    """Accuracy of every class under one attack."""
    rows = [row for row in table.rows if column in row.cells]
    cells = [row.cells[column] for row in rows]
    accuracy, sizes = [cell.class_accuracy for cell in cells], cells[0].counts
    lines = [
        [TextCell(name), TextCell(str(sizes[k])), *_class_cells(accuracy, k)]
        for k, name in enumerate(class_titles(table.class_names))
    ]
    lines += [
        [TextCell(STATISTIC_TITLES[s]), TextCell(DASH), *(TextCell(statistic_text(cell.mean(s), s)) for cell in cells)]
        for s in table.statistics
    ]
    seeds = summarize_by_row(rows, lambda row: ", ".join(map(str, row.cells[column].seeds)))
    notes = ["Class accuracies in percent; bold: the worst class of the method.", f"Seeds: {seeds}."]
    if any(len(cell.seeds) > 1 for cell in cells):
        notes.append("Mean ± standard deviation over seeds (ddof 1).")
    name = column_titles(table.columns)[column]
    return framed(
        table,
        f"{name}, n = {column.n:,}",
        heads=[Header("Class", is_number=False), Header("n"), *map(Header, _row_heads(rows))],
        lines=lines,
        records=(record for row in rows for record in _records(table, column, name, row)),
        notes=notes,
        rows=rows,
        columns=[column],
    )


def class_titles(names: Sequence[str]) -> list[str]:
    """Names of the classes with their numbers, unless the names are the numbers."""
    return [name if name == str(k) else f"{k} {name}" for k, name in enumerate(names)]


def _row_heads(rows: Sequence[Row]) -> list[str]:
    """Row names as column heads, with the checkpoint where there are several."""
    several = len({row.checkpoint for row in rows}) > 1
    return [f"{row.flagged_name}, {row.checkpoint_text}" if several else row.flagged_name for row in rows]


def _class_cells(accuracy: Sequence[Floats], k: int) -> Iterator[TextCell]:
    for values in accuracy:
        mean = values.mean(axis=0)
        sd = float(values[:, k].std(ddof=1)) if len(values) > 1 else None
        is_worst = bool(np.isclose(mean[k], mean.min())) and not np.isclose(np.ptp(mean), 0)
        yield TextCell(mean_sd_text(float(mean[k]), sd, "average"), bold=is_worst)


def _records(table: Table, column: Column, name: str, row: Row) -> Iterator[dict[str, Any]]:
    cell = row.cells[column]
    common = table.row_record(row) | {"attack": column.attack, "column": name}
    for k, class_name in enumerate(table.class_names):
        for seed, value in zip(cell.seeds, cell.class_accuracy[:, k], strict=True):
            figure = {"class": k, "class_name": class_name, "n": int(cell.counts[k]), "accuracy": float(value)}
            yield common | {"seed": seed} | figure
