"""Options that several commands share, and the callbacks that read their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bench.config.settings import SETTINGS

Command = TypeVar("Command", bound=Callable[..., Any])


def comma_list(convert: Callable[[str], Any] = str) -> Callable[..., tuple[Any, ...]]:
    """A callback for comma lists; the option may also be repeated."""

    def split(ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...] | None) -> tuple[Any, ...]:
        texts = (value,) if isinstance(value, str) else value or ()
        try:
            items = tuple(convert(item.strip()) for text in texts for item in text.split(",") if item.strip())
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None
        if texts and not items:
            raise click.BadParameter("expected at least one value, got none; leave it out for the default", ctx, param)
        return items

    return split


def list_option(*spellings: str, help: str, convert: Callable[[str], Any] = str) -> Callable[[Command], Command]:
    """An option that takes a comma list and may be repeated."""
    return click.option(*spellings, callback=comma_list(convert), multiple=True, metavar="LIST", help=help)


def fraction_callback(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
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


def setting_option(name: str, help: str = "") -> Callable[[Command], Command]:
    """The option of a run setting as its field declares it, with another help where a command needs one."""
    setting = SETTINGS[name]
    flags, help = setting.flags or (setting.flag,), help or setting.help
    if setting.many:
        return list_option(*flags, help=help, convert=setting.kind)
    if setting.kind is bool:
        return click.option(*flags, is_flag=True, default=None, help=help)
    if setting.kind is float:
        return click.option(*flags, callback=fraction_callback, metavar=setting.metavar, help=help)
    kind: Any = click.Path() if setting.metavar == "PATH" else setting.kind
    kind = click.Choice(setting.choices) if setting.choices else kind
    return click.option(*flags, type=kind, metavar=setting.metavar, help=help)


def setting_options(*settings: str) -> Callable[[Command], Command]:
    """The options of several run settings."""
    return options(*map(setting_option, settings))


TRAINING_OPTIONS = setting_options(
    "methods", "model", "teacher", "teacher_model", "natural_teacher", "natural_teacher_model", "recipe", "epochs",
    "batch_size", "micro_batch", "sync_bn", "select", "train_limit", "train_with", "uniform_threat",
)  # fmt: skip
EVALUATION_OPTIONS = options(
    setting_options(
        "dataset", "attacks", "protocols", "seeds", "norm", "eps", "limit", "autoattack_limit", "block", "shard",
        "prepare", "stop_when", "device", "threads", "workers", "gpus", "deterministic", "out", "data_dir", "download",
    ),
    click.option("--set", "sets", multiple=True, metavar="NAME.FIELD=VALUE", help="Set one field, e.g. pgd.steps=50."),
    click.option("--config", type=click.Path(dir_okay=False), help="TOML or YAML file; flags outrank it."),
    plugin_option(),
)  # fmt: skip


def _folders(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(map(Path, value or ("results",)))


RESULTS = click.argument("results", nargs=-1, type=click.Path(), callback=_folders)
