"""The commands that train and attack: `bench run`, `bench evaluate` and `bench merge`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.common import note, settings_from, workspace_of
from bench.cli.options import (
    EVALUATION_OPTIONS,
    RESULTS,
    TRAINING_OPTIONS,
    comma_list,
    options,
    plugin_option,
    setting_option,
)
from bench.data.registry import DATASETS
from bench.errors import BenchError, Interrupted, UsageError

if TYPE_CHECKING:
    from bench.config.settings import RunSettings
    from bench.distributed.process_group import ProcessGroup
    from bench.launch.scheduler import Report
    from bench.plan.jobs import Plan


@click.command()
@options(
    TRAINING_OPTIONS,
    click.option("--dry-run", is_flag=True, help="Print jobs, passes, a rough time and disk; do nothing."),
    click.option("--quiet", is_flag=True, help="No progress bars."),
)  # fmt: skip
@EVALUATION_OPTIONS
def run(dry_run: bool, quiet: bool, **flags: Any) -> None:
    """Train methods, attack the checkpoints, print the table. Running it again finishes what is missing."""
    from bench.launch.torchrun import torchrun_group

    settings = settings_from(flags)
    with torchrun_group(settings, workspace_of(settings)) as (device, group):
        if group is not None:
            _run(settings, device, group, dry_run, quiet)


def _run(settings: RunSettings, device: str, group: ProcessGroup, dry_run: bool, quiet: bool) -> None:
    from bench.evaluation.status import store_plan
    from bench.plan.plan_text import plan_text
    from bench.plan.planner import make_plan, refuse_unread_overrides

    plan = make_plan(settings, device, group.size)
    refuse_unread_overrides(settings, plan.train)
    for sentence in (*DATASETS.notes(settings.dataset), *plan.notes):
        note(sentence)
    if dry_run:
        click.echo(plan_text(plan, Path(settings.out)))
        return
    from bench.launch.preflight import preflight

    preflight(plan, workspace_of(settings), note)
    store_plan(plan, Path(settings.out))
    report = _launch(plan, settings, quiet, group=group)
    if not report.interrupted:
        _write_cards(Path(settings.out) / job.folder for job in plan.train)
    _print_outcome(plan, settings, report)


@click.command()
@options(
    click.option("--checkpoint", metavar="FILE[#ENTRY]", help="Weights: safetensors, or .pt without code."),
    click.option("--model", help="Its architecture; `bench list models`, also robustbench:ID."),
    click.option("--robustbench", metavar="ID", help="A model of the RobustBench zoo instead."),
    click.option("--mean", callback=comma_list(float), metavar="LIST", help="Its normalisation, per channel."),
    click.option("--std", callback=comma_list(float), metavar="LIST", help="Likewise."),
    click.option(
        "--class-order", metavar="FILE", help="Its classes in the order of its outputs: a name per line, or JSON."
    ),
    click.option("--label", help="Its name in tables.  [the file's]"),
    click.option("--quiet", is_flag=True, help="No progress bars."),
)  # fmt: skip
@EVALUATION_OPTIONS
def evaluate(
    checkpoint: str | None, model: str | None, robustbench: str | None, mean: tuple[float, ...],
    std: tuple[float, ...], class_order: str | None, label: str | None, quiet: bool, **flags: Any,
) -> None:  # fmt: skip
    """Attack a checkpoint that was trained elsewhere; the same attacks, the same table."""
    from bench.launch.torchrun import torchrun_group

    settings = settings_from(flags)
    if len(settings.seeds) > 1:
        raise UsageError(f"--seeds: expected one seed for a checkpoint, got {len(settings.seeds)}; run once for each")
    with torchrun_group(settings, workspace_of(settings)) as (_, group):
        if group is not None:
            for sentence in DATASETS.notes(settings.dataset):
                note(sentence)
            chosen = _external_evaluations(settings, checkpoint, model, robustbench, mean, std, class_order, label)
            report = _launch(chosen, settings, quiet, done=[job.run_key for job in chosen.evaluate], group=group)
            _print_outcome(chosen, settings, report)


def _external_evaluations(
    settings: RunSettings, checkpoint: str | None, model: str | None, robustbench: str | None,
    mean: tuple[float, ...], std: tuple[float, ...], class_order: str | None, label: str | None,
) -> Plan:  # fmt: skip
    """The evaluations of a checkpoint that was trained elsewhere."""
    from bench.config.settings import model_name
    from bench.evaluation import external
    from bench.plan.jobs import Plan
    from bench.plan.planner import check_overrides, refuse_unread_overrides

    check_overrides(settings)
    refuse_unread_overrides(settings)
    if robustbench is not None:
        if checkpoint or model or mean or std:
            raise UsageError(
                "--robustbench: takes the place of --checkpoint, --model, --mean and --std; leave those out"
            )
        _, jobs = external.add_zoo_model(settings, robustbench, label=label, class_order=class_order, note=note)
    elif checkpoint is None or model is None:
        raise UsageError("bench evaluate: expected --checkpoint and --model, or --robustbench")
    else:
        known, others = model_name(model), external.unused_entries(checkpoint)
        if others:
            note(f"{checkpoint} also holds {', '.join(others)}; FILE#{others[0]} takes that")
        _, jobs = external.add_checkpoint(
            settings, known, checkpoint,
            label=label, mean=mean or None, std=std or None, class_order=class_order, note=note,
        )  # fmt: skip
    return Plan((), jobs)


@click.command()
@RESULTS
@options(
    click.option("--out", type=click.Path(file_okay=False), help="Where to put everything.  [the first of RESULTS]"),
    setting_option("data_dir"),
    plugin_option(),
    click.option("--quiet", is_flag=True, help="No progress bars."),
)  # fmt: skip
def merge(results: tuple[Path, ...], out: str | None, quiet: bool, **flags: Any) -> None:
    """Put the shards in RESULTS together, by default results; finish what is complete, say what is missing."""
    from bench.core import device
    from bench.evaluation.shards import merge_shards
    from bench.plan.jobs import Plan

    settings = settings_from({**flags, "out": out or str(results[0]), "workers": 1, "config": None, "sets": ()})
    merged = merge_shards(results, Path(settings.out))
    for name in {job.device for job in merged.complete}:
        device.resolve(name)
    plan = Plan((), tuple(merged.complete))
    report = _launch(plan, settings, quiet, done=[job.run_key for job in plan.evaluate])
    if merged.finished and not report.finished and not merged.incomplete:
        click.echo(f"nothing left to put together; {merged.finished} evaluations are finished", err=True)
    for sentence in merged.incomplete:
        click.echo(f"not finished: {sentence}", err=True)
    _write_cards(path.parent for path in sorted(Path(settings.out).glob("*/*/*/*/run.json")))
    _print_outcome(plan, settings, report)
    if merged.incomplete:
        raise BenchError(f"merge: {len(merged.incomplete)} of the evaluations lack blocks")


def _write_cards(folders: Iterable[Path]) -> None:
    from bench.evaluation.cards import write_teacher_cards

    write_teacher_cards(folders)


def _launch(
    plan: Plan, settings: RunSettings, quiet: bool, done: Iterable[str] = (), group: ProcessGroup | None = None
) -> Report:
    from bench.core.device import workers_and_gpus
    from bench.launch.display import BarDisplay, LineDisplay
    from bench.launch.launcher import launch

    name = next((job.device for job in plan.jobs), "cpu")
    workers, gpus = workers_and_gpus(name, workers=settings.workers, gpus=settings.gpus, threads=settings.threads)
    display = BarDisplay() if sys.stderr.isatty() and not quiet else LineDisplay()
    with display:
        return launch(plan, workspace_of(settings), workers=workers, gpus=gpus, display=display, done=done, group=group)


def _print_table(plan: Plan, settings: RunSettings) -> None:
    """The table of this plan's runs alone."""
    from bench import report as reports

    folders = dict.fromkeys(Path(settings.out) / job.run for job in plan.evaluate)
    finished = [folder for folder in folders if any(folder.glob("eval/*/done"))]
    if finished:
        click.echo(reports.render(finished))


def _print_outcome(plan: Plan, settings: RunSettings, report: Report) -> None:
    """Print the table of a launch, or its failures.

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
