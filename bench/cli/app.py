"""The command line: parses, calls, prints."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attacks.plugins.registry import UnknownName
from bench.cli.card import card
from bench.cli.options import EVALUATION_OPTIONS, TRAINING_OPTIONS, comma_list, names, options, plugin_option
from bench.data.registry import DATASETS
from bench.errors import BenchError, Interrupted, UsageError

if TYPE_CHECKING:
    from bench.config.settings import RunSettings
    from bench.distributed.team import Team
    from bench.launch.scheduler import Report, Site
    from bench.plan.jobs import Plan
    from bench.report.tables.build import Filters


class _Group(click.Group):
    """Turns the suite's errors into one line and an exit code, and accepts `_` for `-` in the names of options."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UnknownName as error:
            raise _Refusal(str(error), UsageError.exit_code) from None
        except BenchError as error:
            raise _Refusal(str(error), error.exit_code) from None
        except KeyboardInterrupt:
            raise _Refusal("interrupted", Interrupted.exit_code) from None


class _Refusal(click.ClickException):
    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        vars(self)["exit_code"] = exit_code

    def show(self, file: Any = None) -> None:
        click.echo(f"bench: {self.message}", err=True)


def _dashes(name: str) -> str:
    return name.replace("_", "-")


CONTEXT = {"help_option_names": ["-h", "--help"], "token_normalize_func": _dashes, "max_content_width": 110}


@click.group(cls=_Group, context_settings=CONTEXT)
@click.version_option(package_name="robust-fairness-bench", prog_name="bench")
def main() -> None:
    """Train classifiers that resist adversarial examples, attack them, and tabulate average, worst class and NSD.

    NSD is the standard deviation of the class accuracies over their mean: lower is fairer.
    """


@main.command()
@options(
    TRAINING_OPTIONS,
    click.option("--dry-run", is_flag=True, help="Print jobs, passes, a rough time and disk; do nothing."),
    click.option("--quiet", is_flag=True, help="No progress bars."),
)  # fmt: skip
@EVALUATION_OPTIONS
def run(dry_run: bool, quiet: bool, **flags: Any) -> None:
    """Train methods, attack the checkpoints, print the table. Running it again finishes what is missing."""
    from bench.launch.torchrun import joined

    settings = _settings(flags)
    with joined(settings, _site(settings)) as (device, team):
        if team is not None:
            _run(settings, device, team, dry_run, quiet)


def _run(settings: RunSettings, device: str, team: Team, dry_run: bool, quiet: bool) -> None:
    from bench.catalog.listing import plan_text, remember
    from bench.plan.planner import make_plan

    plan = make_plan(settings, device, team.size)
    for sentence in (*DATASETS.notes(settings.dataset), *plan.notes):
        _note(sentence)
    if dry_run:
        click.echo(plan_text(plan, Path(settings.out)))
        return
    from bench.launch.preflight import preflight

    preflight(plan, _site(settings), _note)
    remember(plan, Path(settings.out))
    report = _launch(plan, settings, quiet, team=team)
    if not report.interrupted:
        _write_cards(Path(settings.out) / job.folder for job in plan.train)
    _conclude(plan, settings, report)


@main.command()
@options(
    click.option("--checkpoint", metavar="FILE[#ENTRY]", help="Weights: safetensors, or .pt without code."),
    click.option("--model", help="Its architecture; `bench list models`, also robustbench:ID."),
    click.option("--robustbench", metavar="ID", help="A model of the RobustBench zoo instead."),
    click.option("--mean", callback=comma_list(float), metavar="LIST", help="Its normalisation, per channel."),
    click.option("--std", callback=comma_list(float), metavar="LIST", help="Likewise."),
    click.option("--label", help="Its name in tables.  [the file's]"),
    click.option("--quiet", is_flag=True, help="No progress bars."),
)  # fmt: skip
@EVALUATION_OPTIONS
def evaluate(
    checkpoint: str | None, model: str | None, robustbench: str | None, mean: tuple[float, ...],
    std: tuple[float, ...], label: str | None, quiet: bool, **flags: Any,
) -> None:  # fmt: skip
    """Attack a checkpoint that was trained elsewhere; the same attacks, the same table."""
    from bench.launch.torchrun import joined

    settings = _settings(flags)
    if len(settings.seeds) > 1:
        raise UsageError(f"--seeds: expected one seed for a checkpoint, got {len(settings.seeds)}; run once for each")
    with joined(settings, _site(settings)) as (_, team):
        if team is not None:
            for sentence in DATASETS.notes(settings.dataset):
                _note(sentence)
            chosen = _adopted(settings, checkpoint, model, robustbench, mean, std, label)
            report = _launch(chosen, settings, quiet, done=[job.run_key for job in chosen.evaluate], team=team)
            _conclude(chosen, settings, report)


def _adopted(
    settings: RunSettings, checkpoint: str | None, model: str | None, robustbench: str | None,
    mean: tuple[float, ...], std: tuple[float, ...], label: str | None,
) -> Plan:  # fmt: skip
    """The evaluations of a checkpoint that was trained elsewhere."""
    from bench.config.settings import model_name
    from bench.evaluation import external
    from bench.plan.jobs import Plan

    if robustbench is not None:
        if checkpoint or model or mean or std:
            raise UsageError(
                "--robustbench: takes the place of --checkpoint, --model, --mean and --std; leave those out"
            )
        _, jobs = external.adopt_zoo(settings, robustbench, label=label)
    elif checkpoint is None or model is None:
        raise UsageError("bench evaluate: expected --checkpoint and --model, or --robustbench")
    else:
        known, others = model_name(model), external.others_in(checkpoint)
        if others:
            _note(f"{checkpoint} also holds {', '.join(others)}; FILE#{others[0]} takes that")
        _, jobs = external.adopt(settings, known, checkpoint, label=label, mean=mean or None, std=std or None)
    return Plan((), jobs)


RESULTS = click.argument("results", nargs=-1, type=click.Path())


@main.command()
@RESULTS
@options(
    click.option("--format", "form", default="markdown", show_default=True, help="markdown, latex, csv, json."),
    click.option("--out", type=click.Path(dir_okay=False), help="Write to a file instead of the screen."),
    click.option("--dataset", help="Only this data set."),
    names("--methods", help="Only these rows, in this order."),
    names("--attacks", help="Only these columns beside the clean one."),
    click.option("--checkpoint", type=click.Choice(["last", "best"]), help="Only this checkpoint."),
    click.option("--intervals", is_flag=True, help="95 % bootstrap intervals within classes."),
    click.option("--by-class", is_flag=True, help="Accuracy of every class instead."),
    click.option("--against", metavar="SOURCE", help="Published figures beside: rslad, cfa, dafa, faal, trades, ..."),
    click.option("--over", metavar="ROW", help="What every row gains over this one, and at what cost."),
    click.option("--compare", nargs=2, metavar="A B", help="McNemar and paired bootstrap of two rows."),
    click.option("--figures", type=click.Path(file_okay=False), metavar="DIR", help="Draw figures, PNG and PDF."),
)  # fmt: skip
def report(
    results: tuple[str, ...], form: str, out: str | None, dataset: str | None, methods: tuple[str, ...],
    attacks: tuple[str, ...], checkpoint: str | None, intervals: bool, by_class: bool,
    compare: tuple[str, str] | None, figures: str | None, against: str | None, over: str | None,
) -> None:  # fmt: skip
    """Tables and figures from what is stored in RESULTS, by default results."""
    from bench import report as reports

    folders = [Path(folder) for folder in results or ("results",)]
    views = {"--against": against, "--over": over, "--by-class": by_class, "--compare": compare, "--figures": figures}
    if len(given := [name for name, value in views.items() if value]) > 1:
        raise UsageError(f"{' and '.join(given)}: each is a report of its own; give one at a time")
    filters: Filters = {"dataset": dataset, "methods": methods, "checkpoint": checkpoint, "attacks": attacks}
    if figures is not None:
        for path in reports.figures(folders, Path(figures), **filters):
            click.echo(path)
        return
    if compare:
        text = reports.compare(folders, *compare, format=form, **filters)
    elif by_class:
        text = reports.by_class(folders, format=form, **filters)
    elif over is not None:
        text = reports.gains(folders, over, format=form, **filters)
    elif against is not None:
        text = reports.against(folders, against, format=form, intervals=intervals, **filters)
    else:
        text = reports.render(folders, format=form, intervals=intervals, **filters)
    if out is None:
        click.echo(text)
    else:
        from bench.core.files import write_text

        write_text(Path(out), text if text.endswith("\n") else text + "\n")


@main.command()
@RESULTS
def verify(results: tuple[str, ...]) -> None:
    """Recompute tables from outcomes and check every file in RESULTS, by default results."""
    from bench import report as reports

    folders = [Path(folder) for folder in results or ("results",)]
    problems = reports.verify(folders)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise BenchError(f"verify: {len(problems)} problem{'s' if len(problems) > 1 else ''} found")
    click.echo("every file is sound, and every figure follows from its outcomes")


@main.command()
@RESULTS
@options(
    click.option("--out", type=click.Path(file_okay=False), help="Where to put everything.  [the first of RESULTS]"),
    click.option("--data-dir", type=click.Path(), help="Folder of the data sets.  [data]"),
    plugin_option(),
    click.option("--quiet", is_flag=True, help="No progress bars."),
)  # fmt: skip
def merge(results: tuple[str, ...], out: str | None, quiet: bool, **flags: Any) -> None:
    """Put the shards in RESULTS together, by default results; finish what is complete, say what is missing."""
    from bench.core import device
    from bench.evaluation.shards import collect
    from bench.plan.jobs import Plan

    folders = [Path(folder) for folder in results or ("results",)]
    settings = _settings({**flags, "out": out or str(folders[0]), "workers": 1, "config": None, "sets": ()})
    found = collect(folders, Path(settings.out))
    for name in {job.device for job in found.complete}:
        device.resolve(name)
    plan = Plan((), tuple(found.complete))
    report = _launch(plan, settings, quiet, done=[job.run_key for job in plan.evaluate])
    if found.finished and not report.finished and not found.lacking:
        click.echo(f"nothing left to put together; {found.finished} evaluations are finished", err=True)
    for sentence in found.lacking:
        click.echo(f"not finished: {sentence}", err=True)
    _write_cards(path.parent for path in sorted(Path(settings.out).glob("*/*/*/*/run.json")))
    _conclude(plan, settings, report)
    if found.lacking:
        raise BenchError(f"merge: {len(found.lacking)} of the evaluations lack blocks")


@main.command()
@RESULTS
def status(results: tuple[str, ...]) -> None:
    """What a results folder holds, misses, and what failed in it; by default results."""
    from bench.catalog.listing import status_text

    for folder in results or ("results",):
        click.echo(status_text(Path(folder)))


FORM = click.option(
    "--format", "form", type=click.Choice(["text", "markdown"]), default="text", show_default=True,
    help="markdown: a page on a method; of all methods, a table.",
)  # fmt: skip
KINDS = ("methods", "compositions", "attacks", "datasets", "models", "reporters", "protocols")


@main.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@plugin_option("Load plug-ins first.")
@FORM
def list_(kind: str, plugins: tuple[str, ...], form: str) -> None:
    """Names of what is registered, each with one line; for methods also what can be put around them."""
    from bench.catalog import listing as describe

    _load_plugins(plugins)
    click.echo(describe.listed(kind, form))


@main.command()
@click.argument("name")
@plugin_option("Load plug-ins first.")
@FORM
def show(name: str, plugins: tuple[str, ...], form: str) -> None:
    """What a method, composition, attack, data set, model or protocol is: defaults, recipes, departures, doubts."""
    from bench.catalog import listing as describe

    _load_plugins(plugins)
    click.echo(describe.shown(name, form))


@main.command()
@click.argument("names", nargs=-1, required=True)
@plugin_option("Load plug-ins first.")
def check(names: tuple[str, ...], plugins: tuple[str, ...]) -> None:
    """Hold methods and attacks, your own for instance, against the contract that every built-in one keeps."""
    from bench.conformance import check_all

    _load_plugins(plugins)
    failed = 0
    for line, passed in check_all(names):
        failed += not passed
        click.echo(line)
    if failed:
        raise BenchError(f"check: {failed} failed")


main.add_command(card)


def _write_cards(folders: Iterable[Path]) -> None:
    from bench.evaluation.cards import of_teachers

    of_teachers(folders)


def _note(sentence: str) -> None:
    click.echo(f"note: {sentence}", err=True)


def _load_plugins(plugins: Iterable[str]) -> None:
    from bench.core.plugins import load_plugins

    load_plugins(plugins)


def _settings(flags: dict[str, Any]) -> RunSettings:
    """Defaults, then the file, then the flags that were given."""
    from bench.config.settings import combined, from_file, scalar

    config, sets = flags.pop("config"), flags.pop("sets")
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    overrides = {}
    for item in sets:
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item}: expected NAME.FIELD=VALUE")
        overrides[name.strip()] = scalar(value)
    given["overrides"] = overrides
    layers = [from_file(Path(config))] if config else []
    plugins = tuple(layers[0].get("plugins", ())) if layers else ()
    _load_plugins((*plugins, *given.get("plugins", ())))
    return combined(*layers, given)


def _site(settings: RunSettings) -> Site:
    from bench.launch.scheduler import Site

    return Site(Path(settings.out), Path(settings.data_dir), settings.download, settings.plugins)


def _launch(
    plan: Plan, settings: RunSettings, quiet: bool, done: Iterable[str] = (), team: Team | None = None
) -> Report:
    from bench.core.device import side_by_side
    from bench.launch.display import Bars, Lines
    from bench.launch.launcher import launch

    name = next((job.device for job in plan.jobs), "cpu")
    workers, gpus = side_by_side(name, workers=settings.workers, gpus=settings.gpus, threads=settings.threads)
    display = Bars() if sys.stderr.isatty() and not quiet else Lines()
    with display:
        return launch(plan, _site(settings), workers=workers, gpus=gpus, display=display, done=done, team=team)


def _print_table(plan: Plan, settings: RunSettings) -> None:
    """The table of this plan's runs alone."""
    from bench import report as reports

    folders = dict.fromkeys(Path(settings.out) / job.run for job in plan.evaluate)
    finished = [folder for folder in folders if any(folder.glob("eval/*/done"))]
    if finished:
        click.echo(reports.render(finished))


def _conclude(plan: Plan, settings: RunSettings, report: Report) -> None:
    """Print what a launch has come to.

    Raises:
        Interrupted: if it was asked to stop.
        BenchError: if a job failed.
    """
    if report.interrupted:
        raise Interrupted("saved; run the same command again to go on")
    if settings.shard is None:
        _print_table(plan, settings)
    elif not report.failures:
        hint = f"when all are, `bench merge {settings.out}` finishes them"
        click.echo(f"shard {settings.shard} is stored; {hint}", err=True)
    for name, sentence in report.failures.items():
        click.echo(f"failed: {name}: {sentence}", err=True)
    if report.failures:
        raise BenchError(f"{len(report.failures)} of the jobs failed; the others are stored, run again to retry")
