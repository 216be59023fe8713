"""From stored outcomes to what people read: tables, comparisons, figures, and checks of a results folder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.report.figures.plots import figures
    from bench.report.formats.sheet import REPORTERS
    from bench.report.integrity import verify
    from bench.report.tables.main import render
    from bench.report.views.against import against
    from bench.report.views.by_class import by_class
    from bench.report.views.compare import compare
    from bench.report.views.over import gains
    from bench.results.tree import load_results

# Name -> module; no module here is called like a function, since importing it would hide the function.
_HOMES = {
    "against": "views.against",
    "by_class": "views.by_class",
    "compare": "views.compare",
    "figures": "figures.plots",
    "gains": "views.over",
    "load_results": "tree",
    "render": "tables.main",
    "REPORTERS": "formats.sheet",
    "verify": "integrity",
}

__all__ = ["REPORTERS", "against", "by_class", "compare", "figures", "gains", "load_results", "render", "verify"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = "bench.results.tree" if name == "load_results" else f"bench.report.{_HOMES[name]}"
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
