"""Published figures of papers, logs and leaderboards, for comparison with measured ones.

One CSV file per source, a row per checkpoint and attack, figures as fractions; an empty field is one that the source
does not state. `tables.csv` says of every table where it was read, how its checkpoints were chosen, and what is
doubtful about it. A method of the suite has its registered name, with the name that the source prints beside
it; `nsd` is computed by us where a source lists all classes (ddof 0), and nowhere copied.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from attacks.plugins.registry import suggestion
from bench.core.values import parse_number
from bench.errors import UsageError

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class PublishedTable:
    """Where figures come from.

    Attributes:
        source: what `bench report --against` calls it.
        table: name of the table within the source.
        paper: paper or repository.
        url: where to find that.
        read_from: what the figures were read from.
        chosen_on: samples that chose the best checkpoint: "test", "none" if nothing was chosen, "unknown".
        selection: the checkpoint rule, in words.
        runs: training runs behind a figure; None if not stated.
        doubts: what is not certain, in words.
    """

    source: str
    table: str
    paper: str
    url: str
    read_from: str
    chosen_on: str
    selection: str
    runs: int | None
    doubts: str


@dataclass(frozen=True)
class Figure:
    """One checkpoint under one attack.

    Attributes:
        about: the table it stands in.
        dataset: registered name.
        model: registered name, or the published one of a network that the suite does not have.
        method: registered name; empty for a method that the suite does not have.
        name: of the row, as published.
        checkpoint: "best", "last" or "unknown".
        attack: registered name, or "clean".
        eps: radius (Linf) in units of x; None if not stated, and for "clean".
        steps: of the attack; None if not stated, and where it has none.
        step_size: in units of x; None likewise.
        average, worst: accuracy of all samples and of the worst class, fractions; None if not stated.
        average_sd, worst_sd: their standard deviation over runs.
        nsd: standard deviation of the class accuracies over their mean, ddof 0; None if the classes are not stated.
        note: what is special about this row.
    """

    about: PublishedTable
    dataset: str
    model: str
    method: str
    name: str
    checkpoint: str
    attack: str
    eps: float | None
    steps: int | None
    step_size: float | None
    average: float | None
    average_sd: float | None
    worst: float | None
    worst_sd: float | None
    nsd: float | None
    note: str

    def value(self, statistic: str) -> float | None:
        """A statistic by name; None if the source does not state it."""
        return {"average": self.average, "worst": self.worst, "nsd": self.nsd}.get(statistic)

    def sd(self, statistic: str) -> float | None:
        """Its standard deviation over runs; None if not stated."""
        return {"average": self.average_sd, "worst": self.worst_sd}.get(statistic)


@cache
def tables() -> Mapping[tuple[str, str], PublishedTable]:
    """All published tables, by source and name."""
    rows = _read("tables")
    found = [PublishedTable(**{**row, "runs": int(row["runs"]) if row["runs"] else None}) for row in rows]  # type: ignore[arg-type]
    return {(table.source, table.table): table for table in found}


def sources() -> tuple[str, ...]:
    """Names of the sources, in the order of `tables.csv`."""
    return tuple(dict.fromkeys(source for source, _ in tables()))


def resolve(name: str) -> str:
    """The source of a name; case and surrounding blanks do not matter.

    Raises:
        UsageError: if there is none, with the closest match and the list.
    """
    wanted = name.strip().lower()
    if wanted in sources():
        return wanted
    hint = suggestion(wanted, sources())
    raise UsageError(f"--against {name}: no published figures of that name{hint} available: {', '.join(sources())}")


@cache
def figures(source: str) -> tuple[Figure, ...]:
    """All figures of a source, in its order.

    Raises:
        UsageError: if there is no such source.
    """
    source = resolve(source)
    return tuple(_figure(source, row) for row in _read(source))


def _figure(source: str, row: Mapping[str, str]) -> Figure:
    def number(field: str) -> float | None:
        return parse_number(row[field]) if row[field] else None

    return Figure(
        about=tables()[source, row["table"]], dataset=row["dataset"], model=row["model"], method=row["method"],
        name=row["name"], checkpoint=row["checkpoint"], attack=row["attack"], eps=number("eps"),
        steps=int(row["steps"]) if row["steps"] else None, step_size=number("step_size"),
        average=number("average"), average_sd=number("average_sd"), worst=number("worst"),
        worst_sd=number("worst_sd"), nsd=number("nsd"), note=row["note"],
    )  # fmt: skip


def _read(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
