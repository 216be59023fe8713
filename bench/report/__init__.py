"""Reports on stored outcomes: tables, comparisons, figures, and the check of a results folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attacks.plugins.lazy import lazy_names

if TYPE_CHECKING:
    from bench.report.formats.text_table import REPORTERS
    from bench.report.integrity import verify
    from bench.report.plots.figures import figures
    from bench.report.views.reports import against, by_class, compare, gains, render
    from bench.results.tree import load_results

__all__ = ["REPORTERS", "against", "by_class", "compare", "figures", "gains", "load_results", "render", "verify"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "bench.report.formats.text_table": ("REPORTERS",),
        "bench.report.integrity": ("verify",),
        "bench.report.plots.figures": ("figures",),
        "bench.report.views.reports": ("against", "by_class", "compare", "gains", "render"),
        "bench.results.tree": ("load_results",),
    },
)
