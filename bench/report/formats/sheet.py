"""What a reporter prints: titles, headed columns, entries and notes, already in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attacks.plugins.registry import Registry, UnknownName
from bench.errors import UsageError
from bench.metrics import Interval

DASH = "–"
AT_MOST = "≤"
STATISTIC_TITLES = {
    "average": "Average",
    "worst": "Worst",
    "worst10": "Worst 10 %",
    "nsd": "NSD",
    "gap": "Gap",
}


@dataclass(frozen=True)
class Entry:
    """One printed cell.

    Attributes:
        text: plain text; a reporter escapes it.
        detail: smaller print behind or below it, such as an interval.
        bold: among the best.
        underline: second.
    """

    text: str
    detail: str = ""
    bold: bool = False
    underline: bool = False


@dataclass(frozen=True)
class Head:
    """Head of a column, with the group that it shares with its neighbours."""

    name: str
    group: str = ""
    is_number: bool = True


@dataclass(frozen=True)
class Sheet:
    """One printed table.

    Attributes:
        title: what stands over it.
        heads: of the columns.
        rows: entries, as many as heads.
        notes: sentences under it.
        records: the same content in full precision, a flat record per figure.
    """

    title: str
    heads: tuple[Head, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]


Reporter = Callable[[Sequence[Sheet]], str]

REPORTERS: Registry[Reporter] = Registry(
    kind="reporter",
    group="bench.reporters",
    builtin={
        "markdown": "bench.report.formats.markdown",
        "latex": "bench.report.formats.latex",
        "csv": "bench.report.formats.data",
        "json": "bench.report.formats.data",
    },
)


def reporter(name: str) -> Reporter:
    """The reporter of a name.

    Raises:
        UsageError: if there is none.
    """
    try:
        return REPORTERS[name]
    except UnknownName as error:
        raise UsageError(f"report: {error}") from None


def figure_text(value: float, statistic: str) -> str:
    """A figure as tables print it: NSD as a number with three decimals, all else percent with two."""
    if math.isnan(value):
        return DASH
    return f"{value:.3f}" if statistic == "nsd" else f"{100 * value:.2f}"


def spread_text(mean: float, sd: float | None, statistic: str) -> str:
    """Mean and, over several seeds, standard deviation."""
    if math.isnan(mean) or sd is None:
        return figure_text(mean, statistic)
    return f"{figure_text(mean, statistic)} ± {figure_text(sd, statistic)}"


def interval_text(interval: Interval | None, statistic: str) -> str:
    """An interval in brackets; empty without one."""
    if interval is None or math.isnan(interval.low):
        return ""
    return f"[{figure_text(interval.low, statistic)}, {figure_text(interval.high, statistic)}]"


def number(value: float | None) -> float | None:
    """A figure for a record: None for what is not a number, since JSON has no NaN."""
    return None if value is None or math.isnan(value) else float(value)
