"""Which published rows stand below a measured one, and which of their figures may be held against it.

A difference is allowed where data set, network, radius and checkpoint agree, and the attack's settings as far as the
source states them; everything else is printed with a mark.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attacks.plugins.registry import canonical
from bench.config.protocols import step_length
from bench.report.tables.columns import Column, base_attack
from bench.report.tables.model import Row, Table
from bench.results import published
from bench.results.outcomes import CLEAN
from bench.results.published import Figure, PublishedTable

UNKNOWN, EXTERNAL = "unknown", "external"


@dataclass(frozen=True)
class PublishedRow:
    """One published row: a checkpoint, with the figures of its attacks.

    Attributes:
        figures: at least one; they share table, model, name and checkpoint.
    """

    figures: tuple[Figure, ...]

    @property
    def about(self) -> PublishedTable:
        """The table it stands in."""
        return self.figures[0].about

    @property
    def name(self) -> str:
        """Of the row, as published."""
        return self.figures[0].name

    @property
    def model(self) -> str:
        """Its network."""
        return self.figures[0].model

    @property
    def checkpoint(self) -> str:
        """Its checkpoint: "best", "last" or "unknown"."""
        return self.figures[0].checkpoint

    @property
    def radii(self) -> tuple[float, ...]:
        """The stated radii of its attacks."""
        return tuple(dict.fromkeys(figure.eps for figure in self.figures if figure.eps is not None))

    def figure(self, column: Column, columns: Sequence[Column]) -> Figure | None:
        """Its figure for a column: one of the same settings, else one that no column of the table has."""
        attack = base_attack(column.attack)
        there = [figure for figure in self.figures if base_attack(figure.attack) == attack]
        alike = [figure for figure in there if is_same_attack(figure, column)]
        if alike:
            return alike[0]
        others = [other for other in columns if other is not column and base_attack(other.attack) == attack]
        left = [figure for figure in there if not any(is_same_attack(figure, other) for other in others)]
        return left[0] if left else None


def published_rows(source: str, table: Table) -> list[PublishedRow]:
    """Every published row on the data set of a table, in the source's order; published radii are Linf."""
    if table.norm not in ("", "linf"):
        return []
    groups: dict[tuple[str, ...], list[Figure]] = {}
    for figure in published.figures(source):
        if canonical(figure.dataset) == canonical(table.dataset):
            key = (figure.about.table, figure.model, figure.name, figure.checkpoint)
            groups.setdefault(key, []).append(figure)
    return [PublishedRow(tuple(group)) for group in groups.values()]


def published_rows_of(row: Row, there: Sequence[PublishedRow]) -> list[PublishedRow]:
    """The published rows of the same method: of the same network and checkpoint where there are such."""
    own = [quote for quote in there if _same_method(row, quote)]
    own = [quote for quote in own if is_same_model(row, quote)] or own
    return [quote for quote in own if is_same_checkpoint(row, quote)] or own


def _same_method(row: Row, quote: PublishedRow) -> bool:
    names = {canonical(row.run.text("method")), canonical(row.run.label), canonical(_zoo_id(row))} - {""}
    return bool(names & {canonical(quote.figures[0].method), canonical(quote.name)})


def _zoo_id(row: Row) -> str:
    home, _, name = row.run.text("model").partition(":")
    return name if home == "robustbench" else ""


def is_same_model(row: Row, quote: PublishedRow) -> bool:
    """Whether both are the same network; a model of the zoo is known by its id."""
    return row.run.text("model") == quote.model or canonical(_zoo_id(row)) == canonical(quote.name)


def is_same_checkpoint(row: Row, quote: PublishedRow) -> bool:
    """Whether the checkpoints agree, as far as is known; that of foreign weights is not."""
    foreign = row.run.text("method") == EXTERNAL
    return foreign or quote.checkpoint == UNKNOWN or quote.checkpoint in row.checkpoint.split(" = ")


def is_same_radius(figure: Figure, eps: float | None) -> bool:
    """Whether a figure was attacked at this radius; clean accuracy has none."""
    if figure.attack == CLEAN:
        return True
    return figure.eps is not None and eps is not None and math.isclose(figure.eps, eps, rel_tol=1e-9)


def is_same_attack(figure: Figure, column: Column) -> bool:
    """Whether what the source states of an attack's steps is what the column was measured with."""
    if figure.attack == CLEAN or column.attack == CLEAN:
        return figure.attack == column.attack
    settings: dict[str, Any] = json.loads(column.settings)
    if figure.steps is not None and settings.get("steps") not in (None, figure.steps):
        return False
    if figure.step_size is None or column.eps is None:
        return True
    length = step_length(base_attack(column.attack).replace("_", "-"), settings, column.eps)
    return length is None or math.isclose(length, figure.step_size, rel_tol=1e-6)


def is_comparable(row: Row, quote: PublishedRow, figure: Figure, column: Column) -> bool:
    """Whether a difference between the two says something."""
    alike = is_same_model(row, quote) and is_same_checkpoint(row, quote)
    return alike and is_same_radius(figure, column.eps) and is_same_attack(figure, column)
