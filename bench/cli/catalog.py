"""The commands on methods, attacks and other plug-ins: `bench list`, `bench show` and `bench check`."""

from __future__ import annotations

import click

from bench.cli.common import load_plugins
from bench.cli.options import plugin_option
from bench.errors import BenchError

FORM = click.option(
    "--format", "form", type=click.Choice(["text", "markdown"]), default="text", show_default=True,
    help="markdown: a page on a method; of all methods, a table.",
)  # fmt: skip
KINDS = ("methods", "compositions", "attacks", "datasets", "models", "reporters", "protocols")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@plugin_option("Load plug-ins first.")
@FORM
def list_(kind: str, plugins: tuple[str, ...], form: str) -> None:
    """Names of what is registered, each with one line; for methods also what can be put around them."""
    from bench.catalog import listing

    load_plugins(plugins)
    click.echo(listing.list_kind(kind, form))


@click.command()
@click.argument("name")
@plugin_option("Load plug-ins first.")
@FORM
def show(name: str, plugins: tuple[str, ...], form: str) -> None:
    """What a method, composition, attack, data set, model or protocol is: defaults, recipes, departures, doubts."""
    from bench.catalog import listing

    load_plugins(plugins)
    click.echo(listing.show(name, form))


@click.command()
@click.argument("names", nargs=-1, required=True)
@plugin_option("Load plug-ins first.")
def check(names: tuple[str, ...], plugins: tuple[str, ...]) -> None:
    """Hold methods and attacks, your own for instance, against the contract that every built-in one keeps."""
    from bench.conformance import check_all

    load_plugins(plugins)
    failed = 0
    for line, passed in check_all(names):
        failed += not passed
        click.echo(line)
    if failed:
        raise BenchError(f"check: {failed} failed")
