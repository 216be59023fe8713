"""Data model of a table: cells of outcomes, rows of runs, and the threat model that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bench import metrics
from bench.metrics import Bools, Floats, Ints
from bench.report.tables.columns import Column, threat_text
from bench.report.tables.sanity import SIGNS, Sanity
from bench.results.tree import Run


@dataclass(frozen=True)
class Cell:
    """One attack on one row: the outcomes of every seed on the same samples.

    Attributes:
        seeds: training seeds (S,).
        correct: (S, n) bool, robust samples of each seed.
        labels: (n,).
        num_classes: K.
    """

    seeds: tuple[int, ...]
    correct: Bools
    labels: Ints
    num_classes: int

    @cached_property
    def counts(self) -> Ints:
        """Samples of each class (K,)."""
        return metrics.class_counts(self.labels, self.num_classes)

    @cached_property
    def class_accuracy(self) -> Floats:
        """(S, K) fractions."""
        return np.stack([metrics.class_accuracy(row, self.labels, self.num_classes) for row in self.correct])

    @cached_property
    def _statistics(self) -> dict[str, Floats]:
        found = {name: f(self.class_accuracy, self.counts) for name, f in metrics.STATISTICS.items()}
        return found | {"average": np.asarray(self.correct.mean(axis=1), dtype=np.float64)}

    def values(self, statistic: str) -> Floats:
        """The statistic of every seed (S,)."""
        return self._statistics[statistic]

    def mean(self, statistic: str) -> float:
        """Mean over seeds; NaN if a seed has no value."""
        return float(self.values(statistic).mean())

    def sd(self, statistic: str) -> float | None:
        """Standard deviation over seeds with ddof 1; None for a single seed."""
        values = self.values(statistic)
        return float(values.std(ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class UpperBound:
    """One attack on one row, stopped early for at least one seed.

    Attributes:
        cell: outcomes so far; average, worst and worst10 can only be lower, the NSD is unknown.
        reasons: which rule stopped it, and where; each reason once.
    """

    cell: Cell
    reasons: tuple[str, ...]

    def at_most(self, statistic: str) -> float:
        """Upper bound of a statistic, a mean over seeds; NaN where there is none."""
        return self.cell.mean(statistic) if statistic in ("average", "worst", "worst10") else float("nan")


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed, at one checkpoint.

    Attributes:
        name: what the first column prints.
        checkpoint: "last", "best", or "best = last" if both are the same weights.
        runs: by seed.
        cells: what was measured.
        is_teacher: whether the row is shown as a teacher and not ranked.
        bounds: evaluations that were stopped early.
        sanity: result of the sanity checks of its evaluations; None if there were none.
        older_revisions: by column, revisions of the attack under which runs were measured as well; not shown.
    """

    name: str
    checkpoint: str
    runs: tuple[Run, ...]
    cells: Mapping[Column, Cell]
    is_teacher: bool = False
    bounds: Mapping[Column, UpperBound] = field(default_factory=dict)
    sanity: Sanity | None = None
    older_revisions: Mapping[Column, tuple[int, ...]] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The first run, for the facts that all share."""
        return self.runs[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds."""
        return tuple(run.seed for run in self.runs)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """The checkpoint, or both if they are the same weights."""
        return tuple(self.checkpoint.split(" = "))

    def shares_checkpoint(self, other: Row) -> bool:
        """Whether both are of the same checkpoint."""
        return bool({*self.checkpoints} & {*other.checkpoints})

    @property
    def checkpoint_text(self) -> str:
        """The checkpoint as tables print it, with a warning if it was selected on the test set."""
        chosen_on_test = self.run.facts.get("selection") == "test"
        return self.checkpoint.replace("best", "best (test)") if chosen_on_test else self.checkpoint

    @property
    def flagged_name(self) -> str:
        """The name, with the sign of its sanity checks behind it."""
        return f"{self.name} {SIGNS[self.sanity.mark] if self.sanity else ''}".rstrip()

    @property
    def title(self) -> str:
        """The name with the checkpoint."""
        return f"{self.name} ({self.checkpoint_text})"


@dataclass(frozen=True)
class Table:
    """Rows of one data set, model and threat model; its columns are those in which something was measured."""

    dataset: str
    model: str
    norm: str
    eps: float | None
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        """Data set, model and threat model."""
        return f"{self.dataset}, {self.model}, {threat_text(self.norm, self.eps)}"

    @property
    def shown(self) -> tuple[Column, ...]:
        """The columns, with those that hold upper bounds alone."""
        bounded = {column for row in self.rows for column in row.bounds}
        return tuple(sorted({*self.columns, *bounded}, key=lambda column: column.order))

    @property
    def num_classes(self) -> int:
        """K."""
        return next(cell.num_classes for row in self.rows for cell in row.cells.values())

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return next(e.outcomes.class_names for row in self.rows for run in row.runs for e in run.evaluations)

    @property
    def statistics(self) -> tuple[str, ...]:
        """Statistics printed for each attack; worst10 joins where there are many classes."""
        many = self.num_classes >= metrics.MANY_CLASSES
        return ("average", "worst", *(["worst10"] if many else []), "nsd")

    def competitors(self, column: Column) -> list[Row]:
        """Rows that are ranked in a column: those with a value, teachers aside."""
        return [row for row in self.rows if column in row.cells and not row.is_teacher]

    def row_record(self, row: Row) -> dict[str, Any]:
        """The facts of a row that every record of it states."""
        return {
            "dataset": self.dataset,
            "model": row.run.text("model"),
            "norm": self.norm or None,
            "eps": self.eps,
            "row": row.name,
            "method": row.run.text("method"),
            "teacher": row.is_teacher,
            "checkpoint": row.checkpoint_text,
            **({"sanity": row.sanity.mark} if row.sanity else {}),
        }
