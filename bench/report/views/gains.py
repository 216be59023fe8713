"""What every row gains over a baseline, at what cost, and how much of a fairer spread is levelling down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import metrics
from bench.errors import UsageError
from bench.metrics import Difference, Floats
from bench.report.formats.text_table import DASH, STATISTIC_TITLES, Header, TextCell, TextTable, nan_to_none, reporter
from bench.report.tables.build import Filters, build_tables
from bench.report.tables.columns import Column, column_titles
from bench.report.tables.model import Row, Table
from bench.report.tables.notes import old_revision_notes
from bench.report.tables.ranking import resample_rows
from bench.report.tables.sanity import marked, sanity_notes
from bench.report.views.compare import difference_entry, find_rows
from bench.report.views.main import checkpoint_text, row_record, table_title
from bench.results.tree import ResultsFolders, Run, read_runs

if TYPE_CHECKING:
    from typing_extensions import Unpack

NOTES = (
    "Differences from {baseline}, n = {n:,}, in percent points (NSD: plain; lower is fairer), with 95 % intervals from "
    f"a paired bootstrap of {metrics.DRAWS:,} draws over the samples within classes{{seeds}}. Bold: better, and zero "
    "lies outside; underlined: worse, and zero lies outside. No correction for the number of comparisons.",
    "Levelling down: the share of the NSD gain that comes from what classes above the baseline's mean lost, on class "
    "accuracies averaged over seeds; a dash where NSD is not settled to be better, or not better on those. Chance "
    "alone lifts some classes of the baseline above its mean, so with few samples the share is rather too high.",
    "Cost: passes of the student in training, with the held-out attacks by which it is selected or steered and the "
    "training that it starts from, over those of {baseline}: forward 1, input gradient 1, weight gradient 2. Teacher: "
    "teacher passes over the baseline's student passes; it says nothing of the teachers' size and their own training.",
)
# Of one pass; a weight gradient comes with the gradients of the activations.
WEIGHTS = {"forward": 1, "input_grad": 1, "backward": 2}
# Whose passes run.json counts.
STUDENT, TEACHER = ("student", "validation"), ("teacher",)


@dataclass(frozen=True)
class Gain:
    """One row against the baseline under one attack.

    Attributes:
        row: the row.
        differences: row minus baseline, by statistic.
        levelling: share of the NSD gain that is levelling down; NaN without a gain.
        cost: training passes over the baseline's; NaN where either is not known.
        teacher: the same of its teachers' passes.
    """

    row: Row
    differences: Mapping[str, Difference]
    levelling: float
    cost: float
    teacher: float

    def better(self, statistic: str) -> bool:
        """Whether the row is better, settled."""
        return self.differences[statistic].settled and not self.worse(statistic)

    def worse(self, statistic: str) -> bool:
        """Whether the row is worse, settled."""
        difference = self.differences[statistic]
        return difference.settled and (difference.estimate < 0) == metrics.higher_is_better(statistic)


def gains(
    results: ResultsFolders,
    over: str,
    *,
    format: str = "markdown",
    **filters: Unpack[Filters],
) -> str:
    """Every row against one baseline, a table per attack.

    Args:
        results: a results folder, or several.
        over: name, label or method of the baseline, optionally with its checkpoint: `trades@last`.
        format: a name in `REPORTERS`.
        filters: what to restrict it to, see `bench.report.tables.build.build_tables`.

    Raises:
        UsageError: if the baseline does not exist, is ambiguous, or meets no other row.
    """
    write = reporter(format)
    runs = read_runs(results)
    known = {run.key: run for run in runs}
    everyone: Filters = {**filters, "methods": None}
    tables = build_tables(results, runs=runs, **everyone)
    wanted = build_tables(results, runs=runs, **filters) if filters.get("methods") else tables
    names = list(dict.fromkeys(row.name for table in wanted for row in table.rows))
    sheets = [
        _sheet(table, base, rows, column, known)
        for table in tables
        for base in find_rows(table, over, "--over")
        for column in table.columns
        if (rows := _others(table, base, column, names))
    ]
    if not sheets:
        listed = ", ".join(dict.fromkeys(row.name for table in tables for row in table.rows))
        raise UsageError(f"--over: no row {over!r} that meets others at a checkpoint; there are: {listed}")
    return write(sheets)


def levelling_down(base: Floats, new: Floats) -> float:
    """Share of an NSD gain that comes from what the classes above the mean lost.

    The gain is split between those losses and all other changes. Each part's share is its effect averaged over the
    two orders in which the parts can happen (Shapley value), so that the shares add up to 1; one exceeds 1 where the
    other part made the spread larger.

    Args:
        base: class accuracies (K,) of the baseline.
        new: those of the row.

    Returns:
        NaN if the NSD did not fall.
    """
    gain = metrics.nsd(base) - metrics.nsd(new)
    if not gain > 0:
        return float("nan")
    lost = (base > base.mean()) & (new < base)
    losses, others = np.where(lost, new, base), np.where(lost, base, new)
    first, last = metrics.nsd(base) - metrics.nsd(losses), metrics.nsd(others) - metrics.nsd(new)
    return (first + last) / 2 / gain


def training_passes(run: Run, known: Mapping[str, Run], owners: Sequence[str]) -> float:
    """Weighted passes of some owners in a training and in the one that it starts from; NaN if not known."""
    counted = run.facts.get("passes") or {}
    if "student" not in counted:
        return float("nan")
    own = float(sum(weight * counted.get(of, {}).get(kind, 0) for of in owners for kind, weight in WEIGHTS.items()))
    start = run.facts.get("warm_start")
    if not start:
        return own
    before = known.get(str(start.get("key")))
    return own + (training_passes(before, known, owners) if before else float("nan"))


def _others(table: Table, base: Row, column: Column, names: Sequence[str]) -> list[Row]:
    """Rows that meet the baseline in a column and share a checkpoint with it, in the order of the names."""
    at = set(base.checkpoint.split(" = "))
    rows = [row for row in table.competitors(column) if row is not base and at & set(row.checkpoint.split(" = "))]
    return sorted((r for r in rows if column in base.cells and r.name in names), key=lambda row: names.index(row.name))


def _sheet(table: Table, base: Row, rows: Sequence[Row], column: Column, known: Mapping[str, Run]) -> TextTable:
    found = _gains(base, rows, column, table.statistics, known)
    called = f"{base.name} ({checkpoint_text(base)})"
    heads = [Header("Method", is_number=False), *(Header(STATISTIC_TITLES[s]) for s in table.statistics)]
    seeds = " and over seeds" if any(len(row.cells[column].seeds) > 1 for row in (base, *rows)) else ""
    return TextTable(
        title=f"{table_title(table)}: over {called}, {column_titles(table.columns)[column]}",
        heads=(*heads, Header("Levelling down"), Header("Cost"), Header("Teacher")),
        rows=tuple(_entries(gain, table.statistics) for gain in found),
        notes=(
            *(note.format(baseline=called, n=column.n, seeds=seeds) for note in NOTES),
            *old_revision_notes([base, *rows], [column], column_titles(table.columns)),
            *sanity_notes([base, *rows]),
        ),
        records=tuple(record for gain in found for record in _records(table, base, column, gain)),
    )


def _gains(
    base: Row, rows: Sequence[Row], column: Column, statistics: Sequence[str], known: Mapping[str, Run]
) -> list[Gain]:
    drawn = resample_rows([base, *rows], column, statistics)
    cell, cost = base.cells[column], _cost(base, known, STUDENT)
    found = []
    for place, row in enumerate(rows, start=1):
        own = row.cells[column]
        differences = {name: metrics.difference(values[place], values[0]) for name, values in drawn.items()}
        share = levelling_down(cell.class_accuracy.mean(axis=0), own.class_accuracy.mean(axis=0))
        costs = [_cost(row, known, owners) / cost for owners in (STUDENT, TEACHER)]
        found.append(Gain(row, differences, share, *costs))
    return found


def _cost(row: Row, known: Mapping[str, Run], owners: Sequence[str]) -> float:
    return float(np.mean([training_passes(run, known, owners) for run in row.runs]))


def _entries(gain: Gain, statistics: Sequence[str]) -> tuple[TextCell, ...]:
    figures = [
        difference_entry(gain.differences[name], name, bold=gain.better(name), underline=gain.worse(name))
        for name in statistics
    ]
    share = f"{100 * gain.levelling:.0f} %" if gain.better("nsd") and not np.isnan(gain.levelling) else DASH
    costs = [TextCell(DASH if not cost > 0 else f"{cost:.2f}x") for cost in (gain.cost, gain.teacher)]
    return (TextCell(marked(gain.row)), *figures, TextCell(share), *costs)


def _records(table: Table, base: Row, column: Column, gain: Gain) -> Iterator[dict[str, Any]]:
    for name, difference in gain.differences.items():
        yield row_record(table, gain.row) | {
            "over": base.name,
            "column": column_titles(table.columns)[column],
            "n": column.n,
            "statistic": name,
            "difference": nan_to_none(difference.estimate),
            "low": nan_to_none(difference.interval.low),
            "high": nan_to_none(difference.interval.high),
            "settled": difference.settled,
            "better": gain.better(name),
            "levelling_down": nan_to_none(gain.levelling) if name == "nsd" and gain.better("nsd") else None,
            "cost": nan_to_none(gain.cost),
            "teacher_cost": nan_to_none(gain.teacher),
        }
