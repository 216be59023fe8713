"""Measured rows with the published ones of the same method below them: `bench report --against`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from bench.report.formats.text_table import (
    DASH,
    Header,
    TextCell,
    TextTable,
    mean_sd_text,
    nan_to_none,
    reporter,
    statistic_text,
)
from bench.report.tables.build import Filters, build_tables
from bench.report.tables.columns import TITLES, Column, base_attack, column_titles, threat_text
from bench.report.tables.model import Row, Table
from bench.report.views.main import table_sheet
from bench.report.views.published_rows import (
    PublishedRow,
    is_comparable,
    is_same_attack,
    is_same_checkpoint,
    is_same_model,
    is_same_radius,
    published_rows,
    published_rows_of,
)
from bench.results import published
from bench.results.outcomes import CLEAN
from bench.results.published import Figure, PublishedTable
from bench.results.tree import ResultsFolders

if TYPE_CHECKING:
    from typing_extensions import Unpack

MARK = "§"
RANKING_NOTE = (
    f"{MARK} is not what was measured above it (another network, checkpoint rule, radius or attack setting): not to be "
    "compared figure by figure."
)
DIFFERENCE = (
    "Measured - published: in percent points (NSD: plain), only where data set, network, radius and checkpoint (best "
    "or last, whatever the rule) agree, and the attack's settings as far as the source states them; no interval, since "
    "published outcomes are not at hand."
)
COUNTING = (
    "A published evaluation may count the attacked prediction alone; here the clean one must be right as well. A dash "
    "is a figure that the source does not state."
)


@dataclass(frozen=True)
class Line:
    """A published row below a measured one."""

    row: Row
    quote: PublishedRow


def against(
    results: ResultsFolders,
    source: str,
    *,
    format: str = "markdown",
    intervals: bool = False,
    **filters: Unpack[Filters],
) -> str:
    """The main tables with published figures beside the measured ones.

    Args:
        results: a results folder, or several.
        source: a name in `bench.results.published.sources()`: rslad, cfa, dafa, ...
        format: a name in `REPORTERS`.
        intervals: also print 95 % bootstrap intervals of the measured figures.
        filters: what to restrict it to, see `bench.report.tables.build.build_tables`.

    Raises:
        UsageError: if there is no such source, nothing was evaluated, or a name is unknown.
        BenchError: if a file is broken.
    """
    write, known = reporter(format), published.resolve(source)
    tables = build_tables(results, **filters)
    return write([_sheet(table, known, intervals) for table in tables])


def _sheet(table: Table, source: str, intervals: bool) -> TextTable:
    measured, there = table_sheet(table, intervals=intervals), published_rows(source, table)
    lines = [[Line(row, quote) for quote in published_rows_of(row, there)] for row in table.rows]
    records = [{**record, "source": "measured"} for record in measured.records]
    if not any(lines):
        return replace(measured, notes=(_nothing(table, source, there), *measured.notes), records=tuple(records))
    entries: list[tuple[TextCell, ...]] = []
    for row, own, found in zip(table.rows, measured.rows, lines, strict=True):
        radius = DASH if table.eps is None else _radius(table.eps)
        entries.append((*own[:2], TextCell("measured"), TextCell(row.run.text("model")), TextCell(radius), *own[2:]))
        for line in found:
            entries += _entries(table, line)
    flat = [line for found in lines for line in found]
    records += [record for line in flat for record in _records(table, line)]
    heads = (*measured.heads[:2], *(Header(name, is_number=False) for name in ("Figures", "Model", "eps")))
    return TextTable(
        title=f"{measured.title}, against {source}",
        heads=(*heads, *measured.heads[2:]),
        rows=tuple(entries),
        notes=(*_notes(table, flat, there, any(MARK in e.text for row in entries for e in row)), *measured.notes),
        records=tuple(records),
    )


def _nothing(table: Table, source: str, there: Sequence[PublishedRow]) -> str:
    what = "for these methods" if there else f"for {table.dataset}"
    what += " in L2" if table.norm == "l2" else ""
    return f"{source} has no published figures {what}; the table is what was measured."


def _entries(table: Table, line: Line) -> Iterator[tuple[TextCell, ...]]:
    """The published row, and below it the differences that may be taken."""
    row, quote = line.row, line.quote
    chosen = quote.checkpoint
    chosen += " (test)" if chosen == "best" and quote.about.chosen_on == "test" else ""
    radii = ", ".join(map(_radius, quote.radii)) or DASH
    front = [
        quote.name,
        _marked(chosen, is_same_checkpoint(row, quote)),
        f"{quote.about.source}: {quote.about.table}",
        _marked(quote.model, is_same_model(row, quote)),
        _marked(radii, all(is_same_radius(figure, table.eps) for figure in quote.figures if figure.eps is not None)),
    ]
    cells = [(column, quote.figure(column, table.shown)) for column in table.shown]
    figures = [_figure_text(figure, column, s) for column, figure in cells for s in table.statistics]
    yield tuple(map(TextCell, [*front, *figures]))
    differences = [_difference(line, figure, column, s) for column, figure in cells for s in table.statistics]
    if any(difference is not None for difference in differences):
        named = [s for _ in cells for s in table.statistics]
        texts = [_signed(value, statistic) for value, statistic in zip(differences, named, strict=True)]
        yield tuple(map(TextCell, ["", "", "measured - published", "", "", *texts]))


def _radius(eps: float) -> str:
    return threat_text("linf", eps).removeprefix("Linf, eps ")


def _marked(text: str, is_same: bool) -> str:
    return text if is_same else f"{text} {MARK}"


def _figure_text(figure: Figure | None, column: Column, statistic: str) -> str:
    value = None if figure is None else figure.value(statistic)
    if figure is None or value is None:
        return DASH
    return _marked(mean_sd_text(value, figure.sd(statistic), statistic), is_same_attack(figure, column))


def _difference(line: Line, figure: Figure | None, column: Column, statistic: str) -> float | None:
    cell = line.row.cells.get(column)
    value = None if figure is None else figure.value(statistic)
    if figure is None or value is None or cell is None or not is_comparable(line.row, line.quote, figure, column):
        return None
    return nan_to_none(cell.mean(statistic) - value)


def _signed(value: float | None, statistic: str) -> str:
    if value is None:
        return DASH
    text = statistic_text(value, statistic)
    return text if text.startswith("-") else f"+{text}"


def _notes(table: Table, lines: Sequence[Line], there: Sequence[PublishedRow], marked: bool) -> list[str]:
    notes = [_table_note(about) for about in dict.fromkeys(line.quote.about for line in lines)]
    remarks: dict[str, dict[str, None]] = {}
    for line in lines:
        for figure in line.quote.figures:
            if figure.note:
                remarks.setdefault(figure.note, {})[line.quote.name] = None
    notes += [f"{', '.join(names)}: {note}." for note, names in remarks.items()]
    shown = {line.row.name for line in lines}
    bare = list(dict.fromkeys(row.name for row in table.rows if row.name not in shown))
    source = there[0].about.source
    notes += [f"{source} publishes nothing on {table.dataset} for {', '.join(bare)}."] if bare else []
    measured = {base_attack(column.attack) for column in table.shown}
    names = dict.fromkeys(base_attack(figure.attack) for line in lines for figure in line.quote.figures)
    missing = [TITLES.get(name, name) for name in names if name not in measured and name != CLEAN]
    notes += [f"Published there and not measured here: {', '.join(missing)}."] if missing else []
    differs = any(
        _difference(line, line.quote.figure(column, table.shown), column, statistic) is not None
        for line in lines for column in table.shown for statistic in table.statistics
    )  # fmt: skip
    return [*notes, *([RANKING_NOTE] if marked else []), *([DIFFERENCE] if differs else []), COUNTING]


def _table_note(about: PublishedTable) -> str:
    counted = {None: "number of runs not stated", 1: "one run"}
    runs = counted.get(about.runs, f"mean ± standard deviation of {about.runs} runs")
    doubts = f" Doubtful: {about.doubts}." if about.doubts else ""
    return (
        f"{about.source}: {about.table} is {about.paper}, {about.url}, read from {about.read_from}; {runs}. "
        f"Checkpoints: {about.selection}.{doubts}"
    )


def _records(table: Table, line: Line) -> Iterator[dict[str, Any]]:
    names, quote = column_titles(table.shown), line.quote
    for column in table.shown:
        figure = quote.figure(column, table.shown)
        for statistic in table.statistics:
            value = None if figure is None else figure.value(statistic)
            if figure is not None and value is not None:
                yield {
                    **{"dataset": table.dataset, "model": quote.model, "norm": "linf", "eps": figure.eps},
                    **{"row": quote.name, "method": figure.method or None, "teacher": False},
                    **{"checkpoint": quote.checkpoint, "attack": figure.attack, "column": names[column]},
                    **{"statistic": statistic, "mean": value, "sd": figure.sd(statistic)},
                    **{"source": quote.about.source, "table": quote.about.table, "url": quote.about.url},
                    **{"note": figure.note or None, "below": line.row.name},
                    "comparable": is_comparable(line.row, quote, figure, column),
                    "difference": _difference(line, figure, column, statistic),
                }
