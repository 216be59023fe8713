"""The command `bench`: the group of its commands, and how errors become messages and exit codes."""

from __future__ import annotations

from typing import Any

import click

from attacks.plugins.registry import UnknownName
from bench.cli.card import card
from bench.cli.catalog import check, list_, show
from bench.cli.results import report, status, verify
from bench.cli.run import evaluate, merge, run
from bench.errors import BenchError, Interrupted, UsageError


class _Group(click.Group):
    """Turns the suite's errors into one line and an exit code, and accepts `_` for `-` in the names of options."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UnknownName as error:
            raise _Failure(str(error), UsageError.exit_code) from None
        except BenchError as error:
            raise _Failure(str(error), error.exit_code) from None
        except KeyboardInterrupt:
            raise _Failure("interrupted", Interrupted.exit_code) from None


class _Failure(click.ClickException):
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


for _command in (run, evaluate, report, verify, merge, status, list_, show, check, card):
    main.add_command(_command)
