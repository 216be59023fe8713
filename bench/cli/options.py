"""Options of the command line that commands share, and how their values are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def comma_list(convert: Callable[[str], Any] = str) -> Callable[..., tuple[Any, ...]]:
    """A callback for comma lists; the option may also be repeated."""

    def split(ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...] | None) -> tuple[Any, ...]:
        texts = (value,) if isinstance(value, str) else value or ()
        try:
            return tuple(convert(item.strip()) for text in texts for item in text.split(",") if item.strip())
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return split


def names(*spellings: str, help: str, convert: Callable[[str], Any] = str) -> Callable[[Command], Command]:
    """An option that takes a comma list and may be repeated."""
    return click.option(*spellings, callback=comma_list(convert), multiple=True, metavar="LIST", help=help)


def fraction(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A callback for a number or a fraction."""
    from bench.core.values import parse_number

    try:
        return None if value is None else parse_number(value)
    except (ValueError, ZeroDivisionError):
        raise click.BadParameter(f"expected a number or a fraction such as 8/255, got {value!r}", ctx, param) from None


def options(*given: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several options as one decorator."""

    def decorate(command: Command) -> Command:
        for option in reversed(given):
            command = option(command)
        return command

    return decorate


def plugin_option(help: str = "Load plug-ins; may be repeated.") -> Callable[[Command], Command]:
    """The option that names plug-ins."""
    return click.option("--plugin", "plugins", multiple=True, metavar="FILE|MODULE", help=help)


UNIFORM_HELP = "Train every method against --eps, in 10 steps of eps/4, whatever its paper does."
TRAIN_WITH_HELP = "Train faster: bf16, channels-last, compile, fold, fused; or none.  [the device's]"
SELECT_HELP = "Checkpoint: last, best on held-out samples, or best on the test set (replication only).  [the recipe's]"
TRAINING_OPTIONS = options(
    names("--methods", "--method", help="Methods to train.  [all]"),
    click.option("--model", help="Architecture of the students.  [the data set's]"),
    click.option("--teacher", metavar="FILE|ID", help="Checkpoint or robustbench:ID.  [trained in the same run]"),
    click.option("--teacher-model", help="Architecture of the teacher.  [the data set's]"),
    click.option("--natural-teacher", metavar="FILE|ID", help="The non-robust teacher of mtard.  [trained too]"),
    click.option("--natural-teacher-model", help="Its architecture.  [the teacher's]"),
    click.option("--recipe", help="Schedule, e.g. paper.  [the data set's]"),
    click.option("--epochs", type=int, help="Epochs; everything counted in epochs follows in proportion."),
    click.option("--batch-size", type=int, help="Samples per optimiser step.  [the recipe's]"),
    click.option("--micro-batch", type=int, help="Of these at once; halved by itself when memory runs out.  [all]"),
    click.option("--sync-bn", is_flag=True, default=None, help="With torchrun: one BatchNorm over all processes."),
    click.option("--select", type=click.Choice(["last", "best", "test"]), help=SELECT_HELP),
    click.option("--train-limit", type=int, help="Train on a stratified part of this size."),
    names("--train-with", help=TRAIN_WITH_HELP),
    click.option("--uniform-threat", is_flag=True, default=None, help=UNIFORM_HELP),
)  # fmt: skip
EVALUATION_OPTIONS = options(
    click.option("--dataset", help="Data set; `bench list datasets`.  [digits]"),
    names("--attacks", help="Attacks of the table.  [fgsm,pgd,cw,autoattack, or all of the protocol]"),
    names("--protocols", "--protocol", help="Attack as published; `bench list protocols`."),
    names("--seeds", "--seed", convert=int, help="One run per method and seed.  [0]"),
    click.option("--norm", type=click.Choice(["linf", "l2"]), help="Norm of the threat model.  [linf]"),
    click.option(
        "--eps",
        callback=fraction,
        metavar="NUMBER|a/b",
        help="Its radius in units of x in [0, 1], e.g. 8/255.  [the data set's]",
    ),
    click.option("--limit", type=int, help="Test on a stratified part of this size."),
    click.option("--autoattack-limit", type=int, help="The same for AutoAttack alone."),
    click.option("--block", type=int, help="Test samples that are attacked together.  [the data set's]"),
    click.option("--shard", metavar="I/N", help="Only a share of the blocks of each evaluation; then `bench merge`."),
    names("--prepare", help="Search faster: bf16, channels-last, compile; or none.  [folded]"),
    click.option("--stop-when", metavar="RULE", help="Stop an evaluation once it is certain, e.g. worst<20%."),
    click.option("--device", help="auto (cuda, then mps, then cpu) or a torch device.  [auto]"),
    click.option("--threads", type=int, help="CPU threads of each job.  [1]"),
    click.option("--workers", type=int, help="Jobs side by side.  [one per core on a CPU, one per GPU]"),
    click.option("--gpus", metavar="N|all", help="Jobs side by side on several GPUs, each bound to one.  [1]"),
    click.option("--deterministic", is_flag=True, default=None, help="Bit-reproducible on a GPU as well; slower."),
    click.option("--out", type=click.Path(), help="Results folder.  [results]"),
    click.option("--data-dir", type=click.Path(), help="Folder of the data sets.  [data]"),
    click.option("--download", is_flag=True, default=None, help="Fetch missing data."),
    click.option("--set", "sets", multiple=True, metavar="NAME.FIELD=VALUE", help="Set one field, e.g. pgd.steps=50."),
    click.option("--config", type=click.Path(dir_okay=False), help="TOML or YAML file; flags outrank it."),
    plugin_option(),
)
RESULTS = click.argument("results", nargs=-1, type=click.Path())
