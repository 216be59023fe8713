"""The reports of `bench.report` that are text: read results, build the tables of a view, and write them in a format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.report.formats.text_table import reporter
from bench.report.tables.build import Filters, build_tables
from bench.report.views.against import against_table
from bench.report.views.by_class import class_table
from bench.report.views.compare import comparison_tables
from bench.report.views.gains import gain_tables
from bench.report.views.main import main_table
from bench.results import published
from bench.results.tree import ResultsFolders, read_runs

if TYPE_CHECKING:
    from typing_extensions import Unpack


def render(
    results: ResultsFolders, *, format: str = "markdown", intervals: bool = False, **filters: Unpack[Filters]
) -> str:
    """The robustness-fairness tables of one or several results folders.

    Args:
        results: a results folder, or several.
        format: a name in `REPORTERS`: markdown, latex, csv, json, or that of a plug-in.
        intervals: also print 95 % bootstrap intervals.
        filters: what to restrict it to: `dataset`, `methods`, `checkpoint` and `attacks`, see
            `bench.report.tables.build.build_tables`.

    Raises:
        UsageError: if nothing was evaluated there, or a name is unknown.
        BenchError: if a file is broken.

    >>> import csv
    >>> text = render("results/reference/digits", format="csv", methods=["trades"], attacks=["autoattack"])
    >>> for row in csv.DictReader(text.splitlines()):
    ...     if row["attack"] == "autoattack":
    ...         print(row["row"], row["seeds"], row["statistic"], f"{float(row['mean']):.3f}")
    trades 0 1 2 average 0.805
    trades 0 1 2 worst 0.653
    trades 0 1 2 nsd 0.140
    trades (teacher, small_cnn_wide) 0 average 0.828
    trades (teacher, small_cnn_wide) 0 worst 0.625
    trades (teacher, small_cnn_wide) 0 nsd 0.147
    """
    write = reporter(format)
    return write([main_table(table, intervals=intervals) for table in build_tables(results, **filters)])


def by_class(results: ResultsFolders, *, format: str = "markdown", **filters: Unpack[Filters]) -> str:
    """Accuracy of every class under every attack, with the names of the classes.

    Arguments and errors are those of `render`.
    """
    write = reporter(format)
    return write([class_table(table, column) for table in build_tables(results, **filters) for column in table.columns])


def compare(results: ResultsFolders, a: str, b: str, *, format: str = "markdown", **filters: Unpack[Filters]) -> str:
    """Compare two rows of the tables, attack by attack.

    Args:
        results: a results folder, or several.
        format: a name in `REPORTERS`.
        filters: as in `render`.
        a: name, label or method of the first row, optionally with its checkpoint: `absld@last`.
        b: the second. Without checkpoints, every one that both have is compared.

    Raises:
        UsageError: if a row does not exist, is ambiguous, or the two never meet in one table.
    """
    write = reporter(format)
    return write(comparison_tables(build_tables(results, **filters), a, b))


def gains(results: ResultsFolders, over: str, *, format: str = "markdown", **filters: Unpack[Filters]) -> str:
    """Every row against one baseline, a table per attack.

    Args:
        results: a results folder, or several.
        format: a name in `REPORTERS`.
        filters: as in `render`.
        over: name, label or method of the baseline, optionally with its checkpoint: `trades@last`.

    Raises:
        UsageError: if the baseline does not exist, is ambiguous, or meets no other row.
    """
    write, runs = reporter(format), read_runs(results)
    all_methods: Filters = {**filters, "methods": None}
    tables = build_tables(results, runs=runs, **all_methods)
    chosen = build_tables(results, runs=runs, **filters) if filters.get("methods") else tables
    names = list(dict.fromkeys(row.name for table in chosen for row in table.rows))
    return write(gain_tables(tables, over, names, runs))


def against(
    results: ResultsFolders,
    source: str,
    *,
    format: str = "markdown",
    intervals: bool = False,
    **filters: Unpack[Filters],
) -> str:
    """The main tables with published figures beside the measured ones.

    Args:
        results: a results folder, or several.
        format: a name in `REPORTERS`.
        intervals: also print 95 % bootstrap intervals of the measured figures.
        filters: as in `render`.
        source: a name in `bench.results.published.sources()`: rslad, cfa, dafa, ...

    Raises:
        UsageError: if there is no such source, nothing was evaluated, or a name is unknown.
        BenchError: if a file is broken.
    """
    write, known = reporter(format), published.resolve(source)
    return write([against_table(table, known, intervals=intervals) for table in build_tables(results, **filters)])
