"""What every row gains over a baseline, at what cost, and how much of a fairer spread is levelling down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench import metrics
from bench.errors import UsageError
from bench.metrics import Difference, Floats
from bench.report.formats.text_table import DASH, Header, TextCell, TextTable, nan_to_none
from bench.report.tables.build import find_rows
from bench.report.tables.columns import Column, column_titles
from bench.report.tables.model import Row, Table
from bench.report.tables.ranking import resample_rows
from bench.report.views.frame import difference_cell, difference_record, framed, statistic_heads
from bench.results.tree import Run

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
# Weight of one pass in the cost; a weight gradient comes with the gradients of the activations.
PASS_WEIGHTS = {"forward": 1, "input_grad": 1, "backward": 2}
# Counters of passes in run.json.
STUDENT, TEACHER = ("student", "validation"), ("teacher",)


@dataclass(frozen=True)
class Gain:
    """One row against the baseline under one attack.

    Attributes:
        row: the row.
        differences: row minus baseline, by statistic.
        levelling_down: share of the NSD gain that is levelling down; NaN without a gain.
        cost: training passes over the baseline's; NaN where either is unknown.
        teacher_cost: the same of its teachers' passes.
    """

    row: Row
    differences: Mapping[str, Difference]
    levelling_down: float
    cost: float
    teacher_cost: float

    def is_better(self, statistic: str) -> bool:
        """Whether the row is better, settled."""
        return self.differences[statistic].settled and not self.is_worse(statistic)

    def is_worse(self, statistic: str) -> bool:
        """Whether the row is worse, settled."""
        difference = self.differences[statistic]
        return difference.settled and (difference.estimate < 0) == metrics.higher_is_better(statistic)


def gain_tables(tables: Sequence[Table], baseline: str, names: Sequence[str], runs: Sequence[Run]) -> list[TextTable]:
    """One table for each table, baseline row and attack.

    Args:
        tables: the tables.
        baseline: name of the baseline, see `find_rows`.
        names: rows to compare with it, in this order.
        runs: all runs, to find those that a training started from.

    Raises:
        UsageError: if the baseline does not exist, is ambiguous, or meets no other row.
    """
    runs_by_key = {run.key: run for run in runs}
    found = [
        _gain_table(table, base, rows, column, runs_by_key)
        for table in tables
        for base in find_rows(table, baseline, "--over")
        for column in table.columns
        if (rows := _compared_rows(table, base, column, names))
    ]
    if not found:
        listed = ", ".join(dict.fromkeys(row.name for table in tables for row in table.rows))
        raise UsageError(f"--over: no row {baseline!r} that meets others at a checkpoint; there are: {listed}")
    return found


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


def training_passes(run: Run, runs_by_key: Mapping[str, Run], counters: Sequence[str]) -> float:
    """Weighted passes of a training and of the one that it starts from, over some counters; NaN if unknown."""
    passes = run.facts.get("passes") or {}
    if "student" not in passes:
        return float("nan")
    total = float(sum(w * passes.get(name, {}).get(kind, 0) for name in counters for kind, w in PASS_WEIGHTS.items()))
    start = run.facts.get("warm_start")
    if not start:
        return total
    before = runs_by_key.get(str(start.get("key")))
    return total + (training_passes(before, runs_by_key, counters) if before else float("nan"))


def _compared_rows(table: Table, base: Row, column: Column, names: Sequence[str]) -> list[Row]:
    """Rows that share a column and a checkpoint with the baseline, in the order of the names."""
    if column not in base.cells:
        return []
    rivals = [row for row in table.competitors(column) if row is not base and row.shares_checkpoint(base)]
    return sorted((row for row in rivals if row.name in names), key=lambda row: names.index(row.name))


def _gain_table(
    table: Table, base: Row, rows: Sequence[Row], column: Column, runs_by_key: Mapping[str, Run]
) -> TextTable:
    gains = _gains(base, rows, column, table.statistics, runs_by_key)
    name = column_titles(table.columns)[column]
    seeds = " and over seeds" if any(len(row.cells[column].seeds) > 1 for row in (base, *rows)) else ""
    costs = [Header("Levelling down"), Header("Cost"), Header("Teacher")]
    common = {"over": base.name, "column": name, "n": column.n}
    return framed(
        table,
        f"over {base.title}, {name}",
        heads=[Header("Method", is_number=False), *statistic_heads(table), *costs],
        lines=map(_cells, gains),
        records=[table.row_record(gain.row) | common | record for gain in gains for record in _records(gain)],
        notes=[note.format(baseline=base.title, n=column.n, seeds=seeds) for note in NOTES],
        rows=[base, *rows],
        columns=[column],
    )


def _gains(
    base: Row, rows: Sequence[Row], column: Column, statistics: Sequence[str], runs_by_key: Mapping[str, Run]
) -> list[Gain]:
    resamples = resample_rows([base, *rows], column, statistics)
    accuracy = [row.cells[column].class_accuracy.mean(axis=0) for row in (base, *rows)]
    base_cost = _cost(base, runs_by_key, STUDENT)
    return [
        Gain(
            row,
            {name: metrics.difference(values[place], values[0]) for name, values in resamples.items()},
            levelling_down(accuracy[0], accuracy[place]),
            _cost(row, runs_by_key, STUDENT) / base_cost,
            _cost(row, runs_by_key, TEACHER) / base_cost,
        )
        for place, row in enumerate(rows, start=1)
    ]


def _cost(row: Row, runs_by_key: Mapping[str, Run], counters: Sequence[str]) -> float:
    return float(np.mean([training_passes(run, runs_by_key, counters) for run in row.runs]))


def _cells(gain: Gain) -> list[TextCell]:
    differences = [
        difference_cell(difference, name, bold=gain.is_better(name), underline=gain.is_worse(name))
        for name, difference in gain.differences.items()
    ]
    has_share = gain.is_better("nsd") and not np.isnan(gain.levelling_down)
    share = f"{100 * gain.levelling_down:.0f} %" if has_share else DASH
    costs = [f"{cost:.2f}x" if cost > 0 else DASH for cost in (gain.cost, gain.teacher_cost)]
    return [TextCell(gain.row.flagged_name), *differences, *map(TextCell, [share, *costs])]


def _records(gain: Gain) -> Iterator[dict[str, Any]]:
    for name, difference in gain.differences.items():
        yield {
            "statistic": name,
            **difference_record(difference),
            "better": gain.is_better(name),
            "levelling_down": nan_to_none(gain.levelling_down) if name == "nsd" and gain.is_better("nsd") else None,
            "cost": nan_to_none(gain.cost),
            "teacher_cost": nan_to_none(gain.teacher_cost),
        }
