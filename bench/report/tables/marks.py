"""Which figures stand out: best, second, and what the samples cannot tell from the best.

One set of resamples serves a whole column, so all rows are compared on the same samples. A row is told from the
best one if the 95 % interval of their difference leaves out zero; seeds, where there are several, are resampled too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench import metrics
from bench.metrics import DRAWS, Floats, Interval
from bench.report.tables.cells import Row, Table
from bench.report.tables.columns import Column

SEED = 0
# A statistic of every training seed (S,), and the same on resamples of the test samples (D, S).
Resampled = tuple[Floats, Floats]


@dataclass(frozen=True)
class Mark:
    """How one figure is set.

    Attributes:
        best: the best mean of the column.
        second: the second-best mean.
        tied: not told from the best by the paired bootstrap.
        interval: 95 % bootstrap interval of the mean over seeds, samples resampled within classes.
    """

    best: bool = False
    second: bool = False
    tied: bool = False
    interval: Interval | None = None


Marks = Mapping[tuple[int, Column, str], Mark]


def marks(table: Table, *, intervals: bool = False, draws: int = DRAWS) -> Marks:
    """Marks of every figure in a table, by position of the row, column and statistic."""
    found: dict[tuple[int, Column, str], Mark] = {}
    for column in table.columns:
        places = [i for i, row in enumerate(table.rows) if column in row.cells]
        rows = [table.rows[i] for i in places]
        rival = [not row.is_teacher for row in rows]
        if not intervals and sum(rival) < 2:
            continue
        for statistic, values in resampled(rows, column, table.statistics, draws).items():
            marked = _mark(values, rival, statistic, intervals)
            found |= {(i, column, statistic): mark for i, mark in zip(places, marked, strict=True)}
    return found


def resampled(
    rows: Sequence[Row], column: Column, statistics: Sequence[str], draws: int = DRAWS
) -> dict[str, list[Resampled]]:
    """Statistics of every row, exact (S,) and on the same resamples for all rows (D, S)."""
    cells = [row.cells[column] for row in rows]
    correct = np.concatenate([cell.correct for cell in cells])
    generator = np.random.default_rng(SEED)
    accuracy = metrics.resample(correct, cells[0].labels, cells[0].num_classes, generator=generator, draws=draws)
    ends = np.cumsum([len(cell.seeds) for cell in cells])[:-1]
    found: dict[str, list[Resampled]] = {}
    for name in statistics:
        drawn = np.split(metrics.STATISTICS[name](accuracy, cells[0].counts), ends, axis=1)
        found[name] = [(cell.values(name), own) for cell, own in zip(cells, drawn, strict=True)]
    return found


def _mark(values: Sequence[Resampled], rival: Sequence[bool], statistic: str, intervals: bool) -> list[Mark]:
    places = _places([float(exact.mean()) for exact, _ in values], rival, statistic)
    best = next((i for i, place in enumerate(places) if place == 0), None)
    found = []
    for i, (exact, draws) in enumerate(values):
        tied = best is not None and places[i] is not None and not metrics.difference(values[i], values[best]).settled
        span = metrics.reflect(exact.mean(), draws.mean(axis=1), statistic) if intervals else None
        found.append(Mark(places[i] == 0, places[i] == 1, tied, span))
    return found


def _places(means: Sequence[float], rival: Sequence[bool], statistic: str) -> list[int | None]:
    """Rank of each distinct mean among the rivals, from 0; None for the others, and for all if none stands out."""
    sign = -1 if metrics.higher_is_better(statistic) else 1
    scores = [
        sign * round(mean, 12) if taking_part and not np.isnan(mean) else None
        for mean, taking_part in zip(means, rival, strict=True)
    ]
    ranking = sorted({score for score in scores if score is not None})
    if len(ranking) < 2:
        return [None] * len(means)
    return [None if score is None else ranking.index(score) for score in scores]
