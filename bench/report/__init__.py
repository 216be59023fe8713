"""From stored outcomes to what people read: tables, comparisons, figures, and checks of a results folder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.report.formats.sheet import REPORTERS
    from bench.report.integrity import verify
    from bench.report.plots.figures import figures
    from bench.report.tables.main import render
    from bench.report.views.against import against
    from bench.report.views.by_class import by_class
    from bench.report.views.compare import compare
    from bench.report.views.over import gains
    from bench.results.tree import load_results

# Name -> module; no module here is called like a function, since importing it would hide the function.
_HOMES = {
    "against": "bench.report.views.against",
    "by_class": "bench.report.views.by_class",
    "compare": "bench.report.views.compare",
    "figures": "bench.report.plots.figures",
    "gains": "bench.report.views.over",
    "load_results": "bench.results.tree",
    "render": "bench.report.tables.main",
    "REPORTERS": "bench.report.formats.sheet",
    "verify": "bench.report.integrity",
}

__all__ = ["REPORTERS", "against", "by_class", "compare", "figures", "gains", "load_results", "render", "verify"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
