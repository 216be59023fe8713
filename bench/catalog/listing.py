"""`bench list` and `bench show` as text: the names of a kind, and the pages of everything with a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attacks.plugins.registry import Registry, canonical, suggestion
from attacks.plugins.sketch import Sketch
from bench.catalog import pages
from bench.catalog.pages import registry_of
from bench.config.protocols import PROTOCOLS
from bench.errors import UsageError
from methods.registry import COMPOSITIONS, METHODS

PAGE_KINDS = ("methods", "compositions", "attacks", "datasets", "models")


def list_kind(kind: str, form: str = "text") -> str:
    """The names of a kind with one line each; as Markdown the table of methods.

    Raises:
        UsageError: if there is no such table of the kind.
    """
    if form == "markdown":
        if kind != "methods":
            raise UsageError(f"--format markdown: there is a table of methods, none of {kind}; leave it out")
        return pages.table()
    if kind == "protocols":
        return _columns({protocol.name: protocol.summary for protocol in PROTOCOLS.values()})
    return list_text(registry_of(kind))


def show(name: str, form: str = "text") -> str:
    """The pages of everything with a name, as "text" for a terminal, or as "markdown".

    Raises:
        UsageError: if nothing does.
    """
    composition, colon, _ = name.partition(":")
    if colon and composition in COMPOSITIONS:
        return pages.page("methods", METHODS.resolve(name), terminal=form == "text")
    matches = [(kind, registry_of(kind).resolve(name)) for kind in PAGE_KINDS if name in registry_of(kind)]
    matches += [("protocols", canonical(name))] if canonical(name) in PROTOCOLS else []
    if not matches:
        known = dict.fromkeys([*(other for kind in PAGE_KINDS for other in registry_of(kind)), *PROTOCOLS])
        raise UsageError(f"unknown name {name!r}{suggestion(name, known)} available: {', '.join(known)}")
    return "\n\n".join(pages.page(kind, known, terminal=form == "text") for kind, known in matches)


def list_text(registry: Registry[Any]) -> str:
    """Names with one line each."""
    return _columns({name: _summary(registry.sketch(name)) for name in registry} | registry.forms)


def _columns(lines: Mapping[str, str]) -> str:
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {line}" for name, line in lines.items())


def _summary(sketch: Sketch) -> str:
    doc = str(sketch.fact("own_doc", "")).strip()
    return doc.splitlines()[0].rstrip(".") if doc else sketch.summary
