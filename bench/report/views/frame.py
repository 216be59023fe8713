"""Frame of the reports beside the main table: titles, closing notes, and printed differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.metrics import Difference
from bench.report.formats.text_table import (
    DASH,
    STATISTIC_TITLES,
    Header,
    TextCell,
    TextTable,
    interval_text,
    nan_to_none,
    statistic_text,
)
from bench.report.tables.columns import Column, column_titles
from bench.report.tables.model import Row, Table
from bench.report.tables.notes import closing_notes


def framed(
    table: Table,
    title: str,
    *,
    heads: Sequence[Header],
    lines: Iterable[Sequence[TextCell]],
    records: Iterable[Mapping[str, Any]],
    notes: Sequence[str],
    rows: Sequence[Row],
    columns: Sequence[Column],
) -> TextTable:
    """A report on some rows and columns of a table, whose notes it ends with."""
    return TextTable(
        title=f"{table.title}: {title}",
        heads=tuple(heads),
        rows=tuple(map(tuple, lines)),
        notes=(*notes, *closing_notes(rows, columns, column_titles(table.columns))),
        records=tuple(records),
    )


def statistic_heads(table: Table, group: str = "") -> list[Header]:
    """A head for each statistic."""
    return [Header(STATISTIC_TITLES[statistic], group) for statistic in table.statistics]


def signed_text(value: float | None, statistic: str) -> str:
    """A difference as tables print it, with its sign."""
    text = DASH if value is None else statistic_text(value, statistic)
    return text if text == DASH or text.startswith("-") else f"+{text}"


def difference_cell(difference: Difference, statistic: str, *, bold: bool, underline: bool = False) -> TextCell:
    """A difference with its sign and interval."""
    text = signed_text(difference.estimate, statistic)
    return TextCell(text, interval_text(difference.interval, statistic), bold, underline)


def difference_record(difference: Difference) -> dict[str, Any]:
    """What a record says of a difference."""
    return {
        "difference": nan_to_none(difference.estimate),
        "low": nan_to_none(difference.interval.low),
        "high": nan_to_none(difference.interval.high),
        "settled": difference.settled,
    }
