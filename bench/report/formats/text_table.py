"""Tables as text: the cells, headers, notes and records that a reporter writes, and how values are printed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attacks.plugins.registry import Registry, UnknownName
from bench.errors import UsageError
from bench.metrics import Interval

DASH = "–"
UPPER_BOUND_SIGN = "≤"
STATISTIC_TITLES = {
    "average": "Average",
    "worst": "Worst",
    "worst10": "Worst 10 %",
    "nsd": "NSD",
    "gap": "Gap",
}


@dataclass(frozen=True)
class TextCell:
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
class Header:
    """Head of a column, with the group that it shares with its neighbours."""

    name: str
    group: str = ""
    is_number: bool = True


@dataclass(frozen=True)
class TextTable:
    """One printed table.

    Attributes:
        title: its heading.
        heads: of the columns.
        rows: as many cells as heads each.
        notes: sentences below it.
        records: the same content in full precision, a flat record per value.
    """

    title: str
    heads: tuple[Header, ...]
    rows: tuple[tuple[TextCell, ...], ...]
    notes: tuple[str, ...]
    records: tuple[Mapping[str, Any], ...]


Reporter = Callable[[Sequence[TextTable]], str]

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
    """Look up a reporter.

    Raises:
        UsageError: if there is none.
    """
    try:
        return REPORTERS[name]
    except UnknownName as error:
        raise UsageError(f"report: {error}") from None


def statistic_text(value: float, statistic: str) -> str:
    """A value as tables print it: NSD as a number with three decimals, all else percent with two."""
    if math.isnan(value):
        return DASH
    return f"{value:.3f}" if statistic == "nsd" else f"{100 * value:.2f}"


def mean_sd_text(mean: float, sd: float | None, statistic: str) -> str:
    """Mean and, over several seeds, standard deviation."""
    if math.isnan(mean) or sd is None:
        return statistic_text(mean, statistic)
    return f"{statistic_text(mean, statistic)} ± {statistic_text(sd, statistic)}"


def interval_text(interval: Interval | None, statistic: str) -> str:
    """An interval in brackets; empty without one."""
    if interval is None or math.isnan(interval.low):
        return ""
    return f"[{statistic_text(interval.low, statistic)}, {statistic_text(interval.high, statistic)}]"


def nan_to_none(value: float | None) -> float | None:
    """A value for a record: None for NaN, which JSON lacks."""
    return None if value is None or math.isnan(value) else float(value)
