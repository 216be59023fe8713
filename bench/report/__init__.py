"""Reports on stored outcomes: tables, comparisons, figures, and the check of a results folder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.report.formats.text_table import REPORTERS
    from bench.report.integrity import verify
    from bench.report.plots.figures import figures
    from bench.report.views.against import against
    from bench.report.views.by_class import by_class
    from bench.report.views.compare import compare
    from bench.report.views.gains import gains
    from bench.report.views.main import render
    from bench.results.tree import load_results

# Name -> module. No module directly in this package has the name of a function: importing it would hide the function.
_HOMES = {
    "against": "bench.report.views.against",
    "by_class": "bench.report.views.by_class",
    "compare": "bench.report.views.compare",
    "figures": "bench.report.plots.figures",
    "gains": "bench.report.views.gains",
    "load_results": "bench.results.tree",
    "render": "bench.report.views.main",
    "REPORTERS": "bench.report.formats.text_table",
    "verify": "bench.report.integrity",
}

__all__ = ["REPORTERS", "against", "by_class", "compare", "figures", "gains", "load_results", "render", "verify"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
