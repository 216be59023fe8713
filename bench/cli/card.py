"""The command `bench card`: source, licence and measured accuracy of a teacher's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli.common import note
from bench.cli.options import options, plugin_option, setting_option, setting_options

if TYPE_CHECKING:
    from bench.config.settings import RunSettings


@click.command()
@click.argument("teacher", metavar="FILE|robustbench:ID|RUN")
@options(
    click.option("--model", help="Its architecture, for a file.  [the data set's for teachers]"),
    setting_option("dataset", "Data set to measure on; `bench list datasets`.  [digits]"),
    setting_option("norm"),
    setting_option("eps", "Its radius.  [the data set's]"),
    setting_option("limit", "Test samples to measure on, a stratified part.  [1,000]"),
    click.option("--licence", metavar="TEXT", help="Of the weights, where you know it."),
    setting_option("device"),
    setting_option("threads", "CPU threads.  [1]"),
    setting_options("out", "data_dir"),
    setting_option("download", "Fetch missing data and weights."),
    plugin_option(),
)  # fmt: skip
def card(teacher: str, model: str | None, licence: str | None, **flags: Any) -> None:
    """The card of a teacher: source, hash, licence, accuracy of every class; RUN is the folder of a run.

    It is written beside the weights, and measured only once for the same data, radius and number of samples.
    """
    from bench.config.settings import combined
    from bench.core.plugins import load_plugins
    from bench.evaluation.cards import card_of_run, card_text, write_card

    if Path(teacher).is_dir():
        found = card_of_run(Path(teacher)) | ({} if licence is None else {"licence": licence})
        place = write_card(Path(teacher), found)
    else:
        load_plugins(flags["plugins"])
        given = {name: value for name, value in flags.items() if value not in (None, ())}
        found, place = _card_of_weights(teacher, combined({**given, "teacher_model": model}), licence)
    click.echo(card_text(found))
    click.echo(f"written to {place}", err=True)


def _card_of_weights(teacher: str, run: RunSettings, licence: str | None) -> tuple[dict[str, Any], Path]:
    """The card of a file or a network of the zoo."""
    from bench.config.defaults import default_eps, teacher_model, teacher_source
    from bench.core import device
    from bench.data.splits import load
    from bench.evaluation.cards import Conditions, ensure_card
    from bench.models.teachers import load_teacher

    out, data_dir = Path(run.out), Path(run.data_dir)
    source = teacher_source(teacher, teacher_model(run), where="bench card")
    parts = load(run.dataset, data_dir, download=run.download)
    found = load_teacher(source, run, parts, out, data_dir, run.download, flag="--model", note=note)
    conditions = Conditions(run.norm, default_eps(run), run.limit, device.resolve(run.device), run.threads)
    return ensure_card(source, found, parts, conditions, out=out, data_dir=data_dir, licence=licence, note=note)
