"""The main table: clean and robust accuracy, worst class and NSD of every method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.report.formats.text_table import (
    DASH,
    UPPER_BOUND_SIGN,
    Header,
    TextCell,
    TextTable,
    interval_text,
    mean_sd_text,
    nan_to_none,
    statistic_text,
)
from bench.report.tables.columns import Column, column_titles
from bench.report.tables.model import Row, Table
from bench.report.tables.notes import table_notes
from bench.report.tables.ranking import Ranking, Rankings, rank_table
from bench.report.views.frame import statistic_heads


def main_table(table: Table, *, intervals: bool = False) -> TextTable:
    """Every row under every attack."""
    rankings, names = rank_table(table, intervals=intervals), column_titles(table.shown)
    has_ranking = any(ranking.best for ranking in rankings.values())
    heads = [Header("Method", is_number=False), Header("Checkpoint", is_number=False)]
    return TextTable(
        title=table.title,
        heads=(*heads, *(head for column in table.shown for head in statistic_heads(table, names[column]))),
        rows=tuple(tuple(_cells(table, place, row, rankings)) for place, row in enumerate(table.rows)),
        notes=tuple(table_notes(table, intervals=intervals, has_ranking=has_ranking)),
        records=tuple(r for place, row in enumerate(table.rows) for r in _records(table, names, place, row, rankings)),
    )


def _cells(table: Table, place: int, row: Row, rankings: Rankings) -> Iterator[TextCell]:
    yield from (TextCell(row.flagged_name), TextCell(row.checkpoint_text))
    for column in table.shown:
        for statistic in table.statistics:
            yield _cell(row, column, statistic, rankings.get((place, column, statistic), Ranking()))


def _cell(row: Row, column: Column, statistic: str, ranking: Ranking) -> TextCell:
    if column in row.bounds:
        at_most = statistic_text(row.bounds[column].at_most(statistic), statistic)
        return TextCell(at_most if at_most == DASH else f"{UPPER_BOUND_SIGN} {at_most}")
    if column not in row.cells:
        return TextCell(DASH)
    cell = row.cells[column]
    text = mean_sd_text(cell.mean(statistic), cell.sd(statistic), statistic)
    return TextCell(text, interval_text(ranking.interval, statistic), ranking.best or ranking.tied, ranking.second)


def _records(
    table: Table, names: Mapping[Column, str], place: int, row: Row, rankings: Rankings
) -> Iterator[dict[str, Any]]:
    for column in (*row.cells, *row.bounds):
        cell = row.bounds[column].cell if column in row.bounds else row.cells[column]
        for statistic in table.statistics:
            yield table.row_record(row) | {
                "attack": column.attack,
                "column": names[column],
                "n": column.n,
                "implementation": column.implementation or None,
                "seeds": " ".join(map(str, cell.seeds)),
                "statistic": statistic,
                **_values(row, column, statistic, rankings.get((place, column, statistic), Ranking())),
            }


def _values(row: Row, column: Column, statistic: str, ranking: Ranking) -> dict[str, Any]:
    if column in row.bounds:
        bound = row.bounds[column]
        return {
            "mean": None,
            "at_most": nan_to_none(bound.at_most(statistic)),
            "stopped": "; ".join(bound.reasons),
        }
    cell, (low, high) = row.cells[column], ranking.interval or (None, None)
    return {
        "mean": nan_to_none(cell.mean(statistic)),
        "sd": nan_to_none(cell.sd(statistic)),
        "low": nan_to_none(low),
        "high": nan_to_none(high),
        "best": ranking.best,
        "second": ranking.second,
        "tied_with_best": ranking.tied,
    }
