"""Measured rows, and below them the published ones of the same method: `bench report --against`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.report.formats.text_table import DASH, Header, TextCell, TextTable, mean_sd_text, nan_to_none
from bench.report.tables.columns import TITLES, Column, base_attack, column_titles, eps_text
from bench.report.tables.model import Row, Table
from bench.report.views.frame import signed_text
from bench.report.views.main import main_table
from bench.report.views.published_rows import (
    PublishedRow,
    is_same_attack,
    is_same_radius,
    published_rows,
    published_rows_of,
)
from bench.results.outcomes import CLEAN
from bench.results.published import Figure, PublishedTable

SIGN = "§"
SIGN_NOTE = (
    f"{SIGN} is not what was measured above it (another network, checkpoint rule, radius or attack setting): not to be "
    "compared figure by figure."
)
DIFFERENCE_NOTE = (
    "Measured - published: in percent points (NSD: plain), only where data set, network, radius and checkpoint (best "
    "or last, whatever the rule) agree, and the attack's settings as far as the source states them; no interval, since "
    "published outcomes are not at hand."
)
COUNTING_NOTE = (
    "A published evaluation may count the attacked prediction alone; here the clean one must be right as well. A dash "
    "is a figure that the source does not state."
)


@dataclass(frozen=True)
class Value:
    """One published value; None what the source does not state.

    Attributes:
        column: the measured column that it stands in.
        statistic: of the class accuracies.
        figure: the published row under this attack.
        published: the value.
        difference: measured minus published, where the two are comparable.
    """

    column: Column
    statistic: str
    figure: Figure | None
    published: float | None
    difference: float | None


@dataclass(frozen=True)
class Line:
    """A published row below a measured one, with its values by column and statistic."""

    row: Row
    published: PublishedRow
    values: tuple[Value, ...]


def against_table(table: Table, source: str, *, intervals: bool) -> TextTable:
    """The main table with the published rows of a source."""
    measured, published = main_table(table, intervals=intervals), published_rows(source, table)
    lines = [[_line(table, row, one) for one in published_rows_of(row, published)] for row in table.rows]
    flat = [line for found in lines for line in found]
    records = [{**record, "source": "measured"} for record in measured.records]
    if not flat:
        missing = f"for {'these methods' if published else table.dataset}" + (" in L2" if table.norm == "l2" else "")
        note = f"{source} has no published figures {missing}; the table is what was measured."
        return replace(measured, notes=(note, *measured.notes), records=tuple(records))
    cells: list[tuple[TextCell, ...]] = []
    for row, known, below in zip(table.rows, measured.rows, lines, strict=True):
        radius = DASH if table.eps is None else eps_text(table.eps)
        cells.append((*known[:2], *map(TextCell, ["measured", row.run.text("model"), radius]), *known[2:]))
        for line in below:
            cells += [tuple(map(TextCell, texts)) for texts in _line_texts(table, line)]
    has_sign = any(SIGN in cell.text for texts in cells for cell in texts)
    heads = (*measured.heads[:2], *(Header(name, is_number=False) for name in ("Figures", "Model", "eps")))
    return TextTable(
        title=f"{measured.title}, against {source}",
        heads=(*heads, *measured.heads[2:]),
        rows=tuple(cells),
        notes=(*_notes(table, source, flat, has_sign=has_sign), *measured.notes),
        records=(*records, *(record for line in flat for record in _records(table, line))),
    )


def _line(table: Table, row: Row, published: PublishedRow) -> Line:
    figures = [(column, published.figure(column, table.shown)) for column in table.shown]
    values = [_value(row, published, *found, statistic) for found in figures for statistic in table.statistics]
    return Line(row, published, tuple(values))


def _value(row: Row, published: PublishedRow, column: Column, figure: Figure | None, statistic: str) -> Value:
    value = figure.value(statistic) if figure else None
    cell = row.cells.get(column)
    difference = None
    if figure and value is not None and cell and published.is_comparable(row, figure, column):
        difference = nan_to_none(cell.mean(statistic) - value)
    return Value(column, statistic, figure, value, difference)


def _line_texts(table: Table, line: Line) -> Iterator[list[str]]:
    """The published row, and below it the differences that may be taken."""
    row, published = line.row, line.published
    is_test = published.checkpoint == "best" and published.about.chosen_on == "test"
    radii = [is_same_radius(figure, table.eps) for figure in published.figures if figure.eps is not None]
    yield [
        published.name,
        _signed(published.checkpoint + (" (test)" if is_test else ""), published.is_same_checkpoint(row)),
        f"{published.about.source}: {published.about.table}",
        _signed(published.model, published.is_same_model(row)),
        _signed(", ".join(map(eps_text, published.radii)) or DASH, all(radii)),
        *map(_value_text, line.values),
    ]
    if any(value.difference is not None for value in line.values):
        differences = [signed_text(value.difference, value.statistic) for value in line.values]
        yield ["", "", "measured - published", "", "", *differences]


def _signed(text: str, is_same: bool) -> str:
    return text if is_same else f"{text} {SIGN}"


def _value_text(value: Value) -> str:
    if value.figure is None or value.published is None:
        return DASH
    text = mean_sd_text(value.published, value.figure.sd(value.statistic), value.statistic)
    return _signed(text, is_same_attack(value.figure, value.column))


def _notes(table: Table, source: str, lines: Sequence[Line], *, has_sign: bool) -> list[str]:
    notes = [_table_note(about) for about in dict.fromkeys(line.published.about for line in lines)]
    remarks: dict[str, dict[str, None]] = {}
    for line in lines:
        for figure in line.published.figures:
            if figure.note:
                remarks.setdefault(figure.note, {})[line.published.name] = None
    notes += [f"{', '.join(names)}: {note}." for note, names in remarks.items()]
    covered = {line.row.name for line in lines}
    bare = list(dict.fromkeys(row.name for row in table.rows if row.name not in covered))
    notes += [f"{source} publishes nothing on {table.dataset} for {', '.join(bare)}."] if bare else []
    measured = {base_attack(column.attack) for column in table.shown}
    names = dict.fromkeys(base_attack(figure.attack) for line in lines for figure in line.published.figures)
    missing = [TITLES.get(name, name) for name in names if name not in measured and name != CLEAN]
    notes += [f"Published there and not measured here: {', '.join(missing)}."] if missing else []
    notes += [SIGN_NOTE] if has_sign else []
    has_difference = any(value.difference is not None for line in lines for value in line.values)
    return [*notes, *([DIFFERENCE_NOTE] if has_difference else []), COUNTING_NOTE]


def _table_note(about: PublishedTable) -> str:
    counted = {None: "number of runs not stated", 1: "one run"}
    runs = counted.get(about.runs, f"mean ± standard deviation of {about.runs} runs")
    doubts = f" Doubtful: {about.doubts}." if about.doubts else ""
    return (
        f"{about.source}: {about.table} is {about.paper}, {about.url}, read from {about.read_from}; {runs}. "
        f"Checkpoints: {about.selection}.{doubts}"
    )


def _records(table: Table, line: Line) -> Iterator[dict[str, Any]]:
    names, published = column_titles(table.shown), line.published
    for value in line.values:
        figure = value.figure
        if figure is not None and value.published is not None:
            yield {
                **{"dataset": table.dataset, "model": published.model, "norm": "linf", "eps": figure.eps},
                **{"row": published.name, "method": figure.method or None, "teacher": False},
                **{"checkpoint": published.checkpoint, "attack": figure.attack, "column": names[value.column]},
                **{"statistic": value.statistic, "mean": value.published, "sd": figure.sd(value.statistic)},
                **{"source": published.about.source, "table": published.about.table, "url": published.about.url},
                **{"note": figure.note or None, "below": line.row.name},
                "comparable": published.is_comparable(line.row, figure, value.column),
                "difference": value.difference,
            }
