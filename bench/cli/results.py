"""The commands that read stored results: `bench report`, `bench verify` and `bench status`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.options import RESULTS, list_option, options
from bench.errors import BenchError, UsageError

if TYPE_CHECKING:
    from bench.report.tables.build import Filters


@click.command()
@RESULTS
@options(
    click.option("--format", "form", default="markdown", show_default=True, help="markdown, latex, csv, json."),
    click.option("--out", type=click.Path(dir_okay=False), help="Write to a file instead of the screen."),
    click.option("--dataset", help="Only this data set."),
    list_option("--methods", help="Only these rows, in this order."),
    list_option("--attacks", help="Only these columns beside the clean one."),
    click.option("--checkpoint", type=click.Choice(["last", "best"]), help="Only this checkpoint."),
    click.option("--intervals", is_flag=True, help="95 % bootstrap intervals within classes."),
    click.option("--by-class", is_flag=True, help="Accuracy of every class instead."),
    click.option("--against", metavar="SOURCE", help="Published figures beside: rslad, cfa, dafa, faal, trades, ..."),
    click.option("--over", metavar="ROW", help="What every row gains over this one, and at what cost."),
    click.option("--compare", nargs=2, metavar="A B", help="McNemar and paired bootstrap of two rows."),
    click.option("--figures", type=click.Path(file_okay=False), metavar="DIR", help="Draw figures, PNG and PDF."),
)  # fmt: skip
def report(
    results: tuple[Path, ...], form: str, out: str | None, dataset: str | None, methods: tuple[str, ...],
    attacks: tuple[str, ...], checkpoint: str | None, intervals: bool, by_class: bool,
    compare: tuple[str, str] | None, figures: str | None, against: str | None, over: str | None,
) -> None:  # fmt: skip
    """Tables and figures from what is stored in RESULTS, by default results."""
    from bench import report as reports

    views = {"--against": against, "--over": over, "--by-class": by_class, "--compare": compare, "--figures": figures}
    if len(given := [name for name, value in views.items() if value]) > 1:
        raise UsageError(f"{' and '.join(given)}: each is a report of its own; give one at a time")
    filters: Filters = {"dataset": dataset, "methods": methods, "checkpoint": checkpoint, "attacks": attacks}
    if figures is not None:
        for path in reports.figures(results, Path(figures), **filters):
            click.echo(path)
        return
    if compare:
        text = reports.compare(results, *compare, format=form, **filters)
    elif by_class:
        text = reports.by_class(results, format=form, **filters)
    elif over is not None:
        text = reports.gains(results, over, format=form, **filters)
    elif against is not None:
        text = reports.against(results, against, format=form, intervals=intervals, **filters)
    else:
        text = reports.render(results, format=form, intervals=intervals, **filters)
    if out is None:
        click.echo(text)
    else:
        from bench.core.files import write_text

        write_text(Path(out), text if text.endswith("\n") else text + "\n")


@click.command()
@RESULTS
@click.option("--stamp", is_flag=True, help="Store the SHA-256 of older files that have none, if all are sound.")
def verify(results: tuple[Path, ...], stamp: bool) -> None:
    """Recompute tables from outcomes and check every file in RESULTS, by default results."""
    from bench import report as reports
    from bench.report import stamps

    problems = reports.verify(results)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise BenchError(f"verify: {len(problems)} problem{'s' if len(problems) > 1 else ''} found")
    click.echo("every file is sound, and every figure follows from its outcomes")
    if stamp:
        click.echo(f"stored the SHA-256 of {stamps.stamp(results):,} files")
    else:
        for line in stamps.unchecked(results):
            click.echo(line)


@click.command()
@RESULTS
def status(results: tuple[Path, ...]) -> None:
    """What a results folder holds, misses, and what failed in it; by default results."""
    from bench.evaluation.status import status_text

    for folder in results:
        click.echo(status_text(folder))
