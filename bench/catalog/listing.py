"""Texts about what is registered, planned and stored."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from attacks.plugins.registry import Registry, canonical, suggestion
from attacks.plugins.sketch import Sketch
from bench.catalog import pages
from bench.config import protocols
from bench.data.registry import Datasets
from bench.errors import UsageError
from methods.recipes import Recipe, known
from methods.registry import COMPOSITIONS, METHODS

REGISTRIES = {
    "methods": ("methods.registry", "METHODS"), "compositions": ("methods.registry", "COMPOSITIONS"),
    "attacks": ("attacks.registry", "ATTACKS"), "datasets": ("bench.data.registry", "DATASETS"),
    "models": ("bench.models.registry", "MODELS"), "reporters": ("bench.report.formats.sheet", "REPORTERS"),
}  # fmt: skip
SHOWN = ("methods", "compositions", "attacks", "datasets", "models")
SETTABLE = ("methods", "compositions", "attacks")


def registry_of(kind: str) -> Registry[Any]:
    """The table of a kind of things, loaded when it is asked for."""
    module, name = REGISTRIES[kind]
    registry: Registry[Any] = getattr(importlib.import_module(module), name)
    return registry


def listed(kind: str, form: str = "text") -> str:
    """The names of a kind, or of the protocols; as Markdown the table of methods.

    Raises:
        UsageError: if there is no such table of the kind.
    """
    if form == "markdown":
        if kind != "methods":
            raise UsageError(f"--format markdown: there is a table of methods, none of {kind}; leave it out")
        return pages.table()
    return protocols.list_text() if kind == "protocols" else list_text(registry_of(kind))


def shown(name: str, form: str = "text") -> str:
    """Everything that goes by a name; as Markdown the page of a method or a composition.

    Raises:
        UsageError: if nothing does.
    """
    if form == "markdown":
        return pages.page(name)
    if name.partition(":")[0] in COMPOSITIONS:
        name = registry_of("methods" if ":" in name else "compositions").resolve(name)
    texts = [show_text(kind, registry_of(kind), name) for kind in SHOWN if name in registry_of(kind)]
    texts += [protocols.show_text(other) for other in protocols.PROTOCOLS if other == canonical(name)]
    if not texts:
        known = dict.fromkeys([*(other for kind in SHOWN for other in registry_of(kind)), *protocols.PROTOCOLS])
        raise UsageError(f"unknown name {name!r}{suggestion(name, known)} available: {', '.join(known)}")
    return "\n\n".join(texts)


def list_text(registry: Registry[Any]) -> str:
    """Names with one line each."""
    lines = {name: _line(registry.sketch(name)) for name in registry} | registry.forms
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {line}" for name, line in lines.items())


def _line(sketch: Sketch) -> str:
    own = str(sketch.fact("own_doc", "")).strip()
    return own.splitlines()[0].rstrip(".") if own else sketch.summary


def show_text(kind: str, registry: Registry[Any], name: str) -> str:
    """Everything that is known of one plug-in."""
    sketch = registry.sketch(name)
    parts = [f"{sketch.name} ({kind.removesuffix('s')})", "", sketch.doc.strip()]
    own = str(sketch.fact("own_doc", "")).strip()
    if own and own != sketch.doc.strip():
        parts += ["", own]
    settings = COMPOSITIONS.own_settings(name) if kind == "compositions" else sketch.settings
    if settings and kind in SETTABLE:
        prefix = f"{sketch.name}:METHOD" if kind == "compositions" else sketch.name
        parts += ["", "Settings (change one with --set " + f"{prefix}.FIELD=VALUE):"]
        parts += [f"  {key} = {_value(value)}" for key, value in settings.items() if key != "threat"]
    if kind == "methods":
        parts += _recipes(sketch)
        passes = sketch.call("passes", {})
        parts += ["", "Passes per sample and step: " + _passes(passes)]
        if sketch.fact("drops_rows"):
            parts[-1] += ", at most"
        parts += [
            f"Teachers: {', '.join(sketch.fact('teachers')) or 'none'}",
            f"Starts from: {sketch.fact('warm_start') or 'scratch'}",
        ]
    elif kind == "compositions":
        added = METHODS.sketch(f"{name}:pgd_at").call("passes", {}) + METHODS.sketch("pgd_at").call("passes", {}) * -1
        parts += ["", "Passes per sample and step that it adds, around pgd_at: " + (_passes(added) or "none")]
    elif kind == "attacks":
        parts += ["", "Passes per sample at 10 classes, at most: " + _passes(sketch.call("passes", {}, 10))]
    else:
        parts += ["", *_facts(registry, sketch)]
    if sketch.source is not None:
        parts += ["", f"Source: {sketch.source}"]
    return "\n".join(parts)


def _facts(registry: Registry[Any], sketch: Sketch) -> list[str]:
    """The facts of a data set or a model, a line each."""
    facts = {key: _value(value) for key, value in sketch.facts.items() if key not in ("own_doc", "any_size")}
    if isinstance(registry, Datasets) and sketch.fact("any_size"):
        size = f"{sketch.facts['image'][1]}; another by name: {registry.other_sizes(sketch.name)}"
        facts = {"size": size, **facts}
    return [f"  {key} = {value}" for key, value in facts.items()]


RECIPES_ARE = """Schedule, batch, augmentation and settings are those of the source. Training part and selection are
this suite's, which holds samples out and never selects on the test set; papers do so, or select nothing: --select
test or last, and, where a method does not steer by held-out samples, --set {name}.recipe.holdout=false."""


def _recipes(sketch: Sketch) -> list[str]:
    lines = ["", "Recipes (--recipe NAME):"]
    for name, recipe in known(sketch.fact("recipes", {})).items():
        values = {f.name: getattr(recipe, f.name) for f in fields(Recipe)}
        unused = {"ema"} if not recipe.ema else set()
        unused |= {"factors"} if not recipe.milestones else set()
        unused |= {"nesterov"} if not recipe.nesterov else set()
        shown = [f"{key} {_value(value)}" for key, value in values.items()
                 if key not in (*unused, "threat_eps") and value not in ((), None, "", {})]  # fmt: skip
        lines.append(f"  {name}: " + ", ".join(shown))
    return [*lines, "", RECIPES_ARE.format(name=sketch.name)]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_value(item)}" for key, item in value.items()) + "}"
    return "(" + ", ".join(map(_value, value)) + ")" if isinstance(value, tuple) else str(value)


def _passes(passes: Any) -> str:
    words = {"forward": "forward", "input_grad": "input gradient", "backward": "weight gradient",
             "teacher": "teacher forward", "teacher_grad": "teacher gradient"}  # fmt: skip
    return ", ".join(f"{value:g} {words[key]}" for key, value in passes.as_dict().items() if value)
