"""From stored outcomes to what people read: tables, comparisons, figures, and checks of a results folder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.report.baseline import gains
    from bench.report.beside import against
    from bench.report.checks import verify
    from bench.report.classes import by_class
    from bench.report.comparison import compare
    from bench.report.frame import load_results
    from bench.report.main import render
    from bench.report.plots import figures
    from bench.report.sheet import REPORTERS

# Name -> module; no module here is called like a function, since importing it would hide the function.
_HOMES = {
    "against": "beside",
    "by_class": "classes",
    "compare": "comparison",
    "figures": "plots",
    "gains": "baseline",
    "load_results": "frame",
    "render": "main",
    "REPORTERS": "sheet",
    "verify": "checks",
}

__all__ = ["REPORTERS", "against", "by_class", "compare", "figures", "gains", "load_results", "render", "verify"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"bench.report.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
