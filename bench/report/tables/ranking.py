"""Ranking of the rows in each column: best, second, tied with the best; and bootstrap intervals.

All rows of a column share one set of resamples. A row is tied with the best one if the 95 % interval of their
difference contains zero; seeds, where there are several, are resampled too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench import metrics
from bench.metrics import DRAWS, Floats, Interval
from bench.report.tables.columns import Column
from bench.report.tables.model import Row, Table

SEED = 0
# A statistic of every training seed (S,), and the same on resamples of the test samples (D, S).
Resampled = tuple[Floats, Floats]


@dataclass(frozen=True)
class Ranking:
    """Rank and interval of one value.

    Attributes:
        best: the best mean of the column.
        second: the second-best mean.
        tied: not different from the best by the paired bootstrap.
        interval: 95 % bootstrap interval of the mean over seeds, samples resampled within classes.
    """

    best: bool = False
    second: bool = False
    tied: bool = False
    interval: Interval | None = None


Rankings = Mapping[tuple[int, Column, str], Ranking]


def rank_table(table: Table, *, intervals: bool = False, draws: int = DRAWS) -> Rankings:
    """Rank every value of a table; keys are position of the row, column and statistic."""
    found: dict[tuple[int, Column, str], Ranking] = {}
    for column in table.columns:
        places = [i for i, row in enumerate(table.rows) if column in row.cells]
        rows = [table.rows[i] for i in places]
        is_ranked = [not row.is_teacher for row in rows]
        if not intervals and sum(is_ranked) < 2:
            continue
        for statistic, values in resample_rows(rows, column, table.statistics, draws).items():
            rankings = _rank_column(values, is_ranked, statistic, intervals)
            found |= {(i, column, statistic): ranking for i, ranking in zip(places, rankings, strict=True)}
    return found


def resample_rows(
    rows: Sequence[Row], column: Column, statistics: Sequence[str], draws: int = DRAWS
) -> dict[str, list[Resampled]]:
    """Statistics of every row, exact (S,) and on resamples (D, S) that all rows share."""
    cells = [row.cells[column] for row in rows]
    correct = np.concatenate([cell.correct for cell in cells])
    generator = np.random.default_rng(SEED)
    accuracy = metrics.resample(correct, cells[0].labels, cells[0].num_classes, generator=generator, draws=draws)
    ends = np.cumsum([len(cell.seeds) for cell in cells])[:-1]
    found: dict[str, list[Resampled]] = {}
    for name in statistics:
        resamples = np.split(metrics.STATISTICS[name](accuracy, cells[0].counts), ends, axis=1)
        found[name] = [(cell.values(name), drawn) for cell, drawn in zip(cells, resamples, strict=True)]
    return found


def _rank_column(
    values: Sequence[Resampled], is_ranked: Sequence[bool], statistic: str, intervals: bool
) -> list[Ranking]:
    ranks = _ranks([float(exact.mean()) for exact, _ in values], is_ranked, statistic)
    best = next((i for i, rank in enumerate(ranks) if rank == 0), None)
    found = []
    for i, (exact, draws) in enumerate(values):
        tied = best is not None and ranks[i] is not None and not metrics.difference(values[i], values[best]).settled
        interval = metrics.reflected_interval(exact.mean(), draws.mean(axis=1), statistic) if intervals else None
        found.append(Ranking(ranks[i] == 0, ranks[i] == 1, tied, interval))
    return found


def _ranks(means: Sequence[float], is_ranked: Sequence[bool], statistic: str) -> list[int | None]:
    """Rank of each mean among the ranked rows, from 0; None for the others, and for all if all are equal."""
    sign = -1 if metrics.higher_is_better(statistic) else 1
    scores = [
        sign * round(mean, 12) if ranked and not np.isnan(mean) else None
        for mean, ranked in zip(means, is_ranked, strict=True)
    ]
    distinct = sorted({score for score in scores if score is not None})
    if len(distinct) < 2:
        return [None] * len(means)
    return [None if score is None else distinct.index(score) for score in scores]
