"""Published rows of the method of a measured row, and which of their values may be compared with it.

A difference is allowed where data set, network, radius and checkpoint agree, and the attack's settings as far as the
source states them; everything else is printed with a sign.
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
from bench.results.outcomes import CLEAN
from bench.results.published import Figure, PublishedTable, figures

UNKNOWN, EXTERNAL = "unknown", "external"


@dataclass(frozen=True)
class PublishedRow:
    """One published checkpoint with the figures of its attacks, at least one.

    Attributes:
        about: the table that it is from.
        model: its network.
        name: of the row, as published.
        checkpoint: "best", "last" or "unknown".
        figures: one for each attack.
    """

    about: PublishedTable
    model: str
    name: str
    checkpoint: str
    figures: tuple[Figure, ...]

    @property
    def radii(self) -> tuple[float, ...]:
        """The stated radii of its attacks."""
        return tuple(dict.fromkeys(figure.eps for figure in self.figures if figure.eps is not None))

    def figure(self, column: Column, columns: Sequence[Column]) -> Figure | None:
        """Its figure for a column: one of the same settings, else one that no other column of the table has."""
        attack = base_attack(column.attack)
        candidates = [figure for figure in self.figures if base_attack(figure.attack) == attack]
        same = [figure for figure in candidates if is_same_attack(figure, column)]
        others = [other for other in columns if other is not column and base_attack(other.attack) == attack]
        free = [figure for figure in candidates if not any(is_same_attack(figure, other) for other in others)]
        return next(iter(same or free), None)

    def is_same_method(self, row: Row) -> bool:
        """Whether a measured row is of its method."""
        names = {canonical(row.run.text("method")), canonical(row.run.label), canonical(_zoo_id(row))} - {""}
        return bool(names & {canonical(self.figures[0].method), canonical(self.name)})

    def is_same_model(self, row: Row) -> bool:
        """Whether a measured row is of its network; a model of the zoo is known by its id."""
        return row.run.text("model") == self.model or canonical(_zoo_id(row)) == canonical(self.name)

    def is_same_checkpoint(self, row: Row) -> bool:
        """Whether the checkpoints agree, as far as they are known; that of foreign weights is not."""
        return row.run.text("method") == EXTERNAL or self.checkpoint in (UNKNOWN, *row.checkpoints)

    def is_comparable(self, row: Row, figure: Figure, column: Column) -> bool:
        """Whether the difference between a measured row and one of its figures is meaningful."""
        is_same_network = self.is_same_model(row) and self.is_same_checkpoint(row)
        return is_same_network and is_same_radius(figure, column.eps) and is_same_attack(figure, column)


def published_rows(source: str, table: Table) -> list[PublishedRow]:
    """Every published row on the data set of a table, in the source's order; published radii are Linf."""
    if table.norm not in ("", "linf"):
        return []
    groups: dict[tuple[PublishedTable, str, str, str], list[Figure]] = {}
    for figure in figures(source):
        if canonical(figure.dataset) == canonical(table.dataset):
            groups.setdefault((figure.about, figure.model, figure.name, figure.checkpoint), []).append(figure)
    return [PublishedRow(*key, tuple(group)) for key, group in groups.items()]


def published_rows_of(row: Row, rows: Sequence[PublishedRow]) -> list[PublishedRow]:
    """The published rows of a method: those of the same network and checkpoint, if there are any."""
    found = [published for published in rows if published.is_same_method(row)]
    found = [published for published in found if published.is_same_model(row)] or found
    return [published for published in found if published.is_same_checkpoint(row)] or found


def _zoo_id(row: Row) -> str:
    package, _, name = row.run.text("model").partition(":")
    return name if package == "robustbench" else ""


def is_same_radius(figure: Figure, eps: float | None) -> bool:
    """Whether a figure was attacked at this radius; clean accuracy has none."""
    if figure.attack == CLEAN:
        return True
    return figure.eps is not None and eps is not None and math.isclose(figure.eps, eps, rel_tol=1e-9)


def is_same_attack(figure: Figure, column: Column) -> bool:
    """Whether the column was measured with the steps that the source states, as far as it does."""
    if figure.attack == CLEAN or column.attack == CLEAN:
        return figure.attack == column.attack
    settings: dict[str, Any] = json.loads(column.settings)
    if figure.steps is not None and settings.get("steps") not in (None, figure.steps):
        return False
    if figure.step_size is None or column.eps is None:
        return True
    length = step_length(base_attack(column.attack).replace("_", "-"), settings, column.eps)
    return length is None or math.isclose(length, figure.step_size, rel_tol=1e-6)
