"""The main table: clean and robust accuracy, worst class and NSD of every method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bench.report.formats.text_table import (
    DASH,
    STATISTIC_TITLES,
    UPPER_BOUND_SIGN,
    Header,
    TextCell,
    TextTable,
    interval_text,
    mean_sd_text,
    nan_to_none,
    reporter,
    statistic_text,
)
from bench.report.tables.build import Filters, build_tables
from bench.report.tables.columns import Column, column_titles, threat_text
from bench.report.tables.model import Cell, Row, Table
from bench.report.tables.notes import table_notes
from bench.report.tables.ranking import Ranking, Rankings, rank_table
from bench.report.tables.sanity import marked as marked_name
from bench.results.tree import ResultsFolders

if TYPE_CHECKING:
    from typing_extensions import Unpack


def render(
    results: ResultsFolders,
    *,
    format: str = "markdown",
    intervals: bool = False,
    **filters: Unpack[Filters],
) -> str:
    """The robustness-fairness tables of one or several results folders.

    Args:
        results: a results folder, or several.
        format: a name in `REPORTERS`: markdown, latex, csv, json, or that of a plug-in.
        intervals: also print 95 % bootstrap intervals.
        filters: what to restrict it to, see `bench.report.tables.build.build_tables`.

    Raises:
        UsageError: if nothing was evaluated there, or a name is unknown.
        BenchError: if a file is broken.
    """
    write = reporter(format)
    tables = build_tables(results, **filters)
    return write([table_sheet(table, intervals=intervals) for table in tables])


def table_sheet(table: Table, *, intervals: bool = False) -> TextTable:
    """One table in words."""
    marked = rank_table(table, intervals=intervals)
    names = column_titles(table.shown)
    heads = [Header("Method", is_number=False), Header("Checkpoint", is_number=False)]
    heads += [Header(STATISTIC_TITLES[s], names[column]) for column in table.shown for s in table.statistics]
    has_ranking = any(mark.best for mark in marked.values())
    return TextTable(
        title=table_title(table),
        heads=tuple(heads),
        rows=tuple(_entries(table, i, row, marked) for i, row in enumerate(table.rows)),
        notes=tuple(table_notes(table, intervals=intervals, has_ranking=has_ranking)),
        records=tuple(record for i, row in enumerate(table.rows) for record in _records(table, i, row, marked)),
    )


def table_title(table: Table) -> str:
    """Data set, model and threat model."""
    return f"{table.dataset}, {table.model}, {threat_text(table.norm, table.eps)}"


def checkpoint_text(row: Row) -> str:
    """The checkpoint of a row; a selection on the test set is named as such."""
    chosen_on_test = row.run.facts.get("selection") == "test"
    return row.checkpoint.replace("best", "best (test)") if chosen_on_test else row.checkpoint


def _entries(table: Table, place: int, row: Row, marked: Rankings) -> tuple[TextCell, ...]:
    figures = [
        _entry(row, column, statistic, marked.get((place, column, statistic), Ranking()))
        for column in table.shown
        for statistic in table.statistics
    ]
    return (TextCell(marked_name(row)), TextCell(checkpoint_text(row)), *figures)


def _entry(row: Row, column: Column, statistic: str, mark: Ranking) -> TextCell:
    cell = row.cells.get(column)
    if column in row.bounds:
        at_most = statistic_text(row.bounds[column].at_most(statistic), statistic)
        return TextCell(at_most if at_most == DASH else f"{UPPER_BOUND_SIGN} {at_most}")
    if cell is None:
        return TextCell(DASH)
    text = mean_sd_text(cell.mean(statistic), cell.sd(statistic), statistic)
    return TextCell(text, interval_text(mark.interval, statistic), mark.best or mark.tied, mark.second)


def row_record(table: Table, row: Row) -> dict[str, Any]:
    """What a record says about its row."""
    return {
        "dataset": table.dataset,
        "model": row.run.text("model"),
        "norm": table.norm or None,
        "eps": table.eps,
        "row": row.name,
        "method": row.run.text("method"),
        "teacher": row.is_teacher,
        "checkpoint": checkpoint_text(row),
        **({"sanity": row.sanity.mark} if row.sanity else {}),
    }


def _records(table: Table, place: int, row: Row, marked: Rankings) -> Iterator[dict[str, Any]]:
    for column, statistic, record in _headed(table, row, row.cells):
        cell, mark = row.cells[column], marked.get((place, column, statistic), Ranking())
        low, high = mark.interval or (None, None)
        yield record | {
            "mean": nan_to_none(cell.mean(statistic)),
            "sd": nan_to_none(cell.sd(statistic)),
            "low": nan_to_none(low),
            "high": nan_to_none(high),
            "best": mark.best,
            "second": mark.second,
            "tied_with_best": mark.tied,
        }
    for column, statistic, record in _headed(table, row, {column: bound.cell for column, bound in row.bounds.items()}):
        bound = row.bounds[column]
        stopped = {"at_most": nan_to_none(bound.at_most(statistic)), "stopped": "; ".join(bound.reasons)}
        yield record | {"mean": None, **stopped}


def _headed(table: Table, row: Row, cells: Mapping[Column, Cell]) -> Iterator[tuple[Column, str, dict[str, Any]]]:
    """Every figure of a row by column and statistic, with what its record says before the figure."""
    names = column_titles(table.shown)
    for column, cell in cells.items():
        for statistic in table.statistics:
            yield (
                column,
                statistic,
                row_record(table, row)
                | {
                    "attack": column.attack,
                    "column": names[column],
                    "n": column.n,
                    "implementation": column.implementation or None,
                    "seeds": " ".join(map(str, cell.seeds)),
                    "statistic": statistic,
                },
            )
