"""Markdown pages on what is registered, and the table of methods, from the registries and the head comments."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from attacks.passes import Passes
from attacks.plugins.ranges import expected
from attacks.plugins.registry import Registry
from attacks.plugins.sketch import Sketch
from bench.catalog import markdown
from bench.catalog.docstrings import arguments, sections, split_by_host
from bench.config.protocols import PROTOCOLS, radius_text
from bench.data.registry import Datasets
from methods.recipes import Recipe, all_recipes
from methods.registry import COMPOSITIONS, METHODS

REGISTRIES = {
    "methods": ("methods.registry", "METHODS"), "compositions": ("methods.registry", "COMPOSITIONS"),
    "attacks": ("attacks.registry", "ATTACKS"), "datasets": ("bench.data.registry", "DATASETS"),
    "models": ("bench.models.registry", "MODELS"), "reporters": ("bench.report.formats.text_table", "REPORTERS"),
}  # fmt: skip
PASS_NAMES = {
    "forward": "forward",
    "input_grad": "input gradient",
    "backward": "weight gradient",
    "teacher": "teacher forward",
    "teacher_grad": "teacher gradient",
}
PASS_SYMBOLS = dict(zip(PASS_NAMES, ("F", "Bx", "Bw", "T", "Tx"), strict=True))
PROBLEMS = ("Inner problem", "Outer problem")
SETTABLE = ("methods", "compositions", "attacks")
SET_BY_RUN = ("num_classes", "norm", "threat")  # from the data set and the threat model, not with --set
LEGEND = """\
State: what the history records, one value for each class. Cost: passes for each training sample and step beyond
adversarial training at default settings, F forward, Bx gradient to the input, Bw to the weights, T forward of a
teacher, Tx gradient through one."""
RECIPES = """\
Schedule, batch, augmentation and settings are those of the source. Training part and selection are this suite's, which
holds samples out and never selects on the test set; papers do so, or select nothing: --select test or last, and, where
a method does not steer by held-out samples, --set {name}.recipe.holdout=false."""


def registry_of(kind: str) -> Registry[Any]:
    """The registry of a kind, imported when it is asked for."""
    module, name = REGISTRIES[kind]
    registry: Registry[Any] = getattr(importlib.import_module(module), name)
    return registry


def page(kind: str, name: str, *, terminal: bool = False) -> str:
    """Everything that is known of one thing: description, cost, options, recipes, departures.

    Args:
        kind: "methods", "compositions", "attacks", "datasets", "models" or "protocols".
        name: as it is registered, such as "trades", "awp:trades" or, of compositions, "awp".
        terminal: laid out for a terminal, with the kind, the full path of the source and notes for those who run it.
    """
    if kind == "protocols":
        blocks, source = _protocol(name), ""
    else:
        registry = registry_of(kind)
        sketch = registry.sketch(name)
        name = sketch.name
        heads = split_by_host(sketch.doc)
        class_text = _class_text(sketch) if terminal or len(heads) == 1 else ""
        blocks = [block for host, text in heads.items() for block in _about(text, host, "" if host else class_text)]
        blocks += _tables(kind, registry, sketch)
        blocks += [block for host, text in heads.items() for block in _sections(text, host, later=True)]
        blocks += _notes(kind, sketch) if terminal else []
        source = _source(sketch, terminal=terminal, has_revision=kind in SETTABLE)
    titled = terminal or kind not in ("methods", "compositions")
    title = f"# {name} ({kind.removesuffix('s')})" if titled else f"# {name}"
    text = "\n\n".join([title, *filter(None, blocks)])
    return "\n\n".join(filter(None, [markdown.for_terminal(text) if terminal else text, source]))


def table() -> str:
    """All methods in one table, and what compositions add to them."""
    head = ("method", "", "teachers", "starts from", "state", "cost", "recipes")
    rows = [_row(name, METHODS.sketch(name)) for name in METHODS]
    compositions = [
        (f"`{name}:METHOD`", markdown.cell(COMPOSITIONS.sketch(name).summary), _symbols(_added_passes(name)))
        for name in COMPOSITIONS
    ]
    return "\n\n".join(
        [
            "# Methods",
            markdown.table(head, rows),
            LEGEND,
            "# What can be put around any of them",
            markdown.table(("name", "", "cost around `pgd_at`"), compositions),
        ]
    )


def _row(name: str, sketch: Sketch) -> tuple[str, ...]:
    return (
        f"`{name}`",
        markdown.cell(markdown.prose(str(sketch.fact("own_doc", "")).partition("\n")[0] or sketch.summary).rstrip(".")),
        ", ".join(sketch.fact("teachers", ())),
        f"`{start}`" if (start := sketch.fact("warm_start")) else "",
        ", ".join(f"`{state}`" for state in sketch.fact("reported", ())),
        ("at most " if sketch.fact("drops_rows") else "")
        + _symbols(_difference(sketch.call("passes", {}), _baseline_passes(sketch))),
        ", ".join(all_recipes(sketch.fact("recipes", {}))),
    )


def _about(doc: str, host: str, class_text: str) -> list[str]:
    """Title, formula and state of one head comment; `host` is the method that a composition is around, or ""."""
    before, named = sections(doc)
    formula = [f"**{problem}.** {markdown.sentence(named[problem])}" for problem in PROBLEMS if problem in named]
    title, level = ([f"## Around {host}"], "###") if host else ([], "##")
    formula_title = [f"{level} Formula"] if formula else []
    return [*title, markdown.prose(before), class_text, *formula_title, *formula, *_sections(doc, host)]


def _sections(doc: str, host: str, *, later: bool = False) -> list[str]:
    """The sections of a head comment beside the formula: State before the tables of a page, the others behind them."""
    chosen = {k: v for k, v in sections(doc)[1].items() if k not in PROBLEMS and (k == "State") is not later}
    suffix = f", {host}" if host and later else ""
    level = "###" if host and not later else "##"
    return [block for title, text in chosen.items() for block in (f"{level} {title}{suffix}", markdown.sentence(text))]


def _class_text(sketch: Sketch) -> str:
    """The docstring of the class or function, without its arguments, where it is not the head comment itself."""
    class_text = str(sketch.fact("own_doc", ""))
    paragraphs = [text for text in class_text.split("\n\n") if not text.startswith("Args:")]
    return "" if class_text.strip() == sketch.doc.strip() else markdown.prose("\n\n".join(paragraphs))


def _tables(kind: str, registry: Registry[Any], sketch: Sketch) -> list[str]:
    """Cost, options and recipes, or the facts of a data set or a model."""
    name = sketch.name
    texts = arguments(registry, name) if kind in SETTABLE else {}
    if kind == "methods":
        options = _options(name, sketch, sketch.settings, texts)
        return ["## Cost", _cost(sketch), _requirements(sketch), "## Options", options, "## Recipes", _recipes(sketch)]
    if kind == "compositions":
        return ["## Options", _options(f"{name}:METHOD", sketch, COMPOSITIONS.added_settings(name), texts)]
    if kind == "attacks":
        passes = sketch.call("passes", {}, 10).as_dict()
        used = [what for what in PASS_NAMES if passes[what]]
        cost = markdown.table([PASS_NAMES[what] for what in used], [[f"{passes[what]:g}" for what in used]])
        blocks = ["## Cost", "Passes for each sample at 10 classes, at most.", cost]
        return [*blocks, "## Options", _options(name, sketch, sketch.settings, texts)]
    facts = {key: value for key, value in sketch.facts.items() if key not in ("own_doc", "any_size")}
    if isinstance(registry, Datasets) and sketch.fact("any_size"):
        facts = {"size": f"{facts['image'][1]}; another by name: {registry.other_sizes(name)}", **facts}
    lines = (f"{key.replace('_', ' ')}: {markdown.prose(markdown.value_text(value))}" for key, value in facts.items())
    return ["## Facts", markdown.bullets(lines)]


def _protocol(name: str) -> list[str]:
    protocol = PROTOCOLS[name]
    attacks = [(f"`{attack}`", protocol.attack_text(attack)) for attack in protocol.attacks]
    facts = [f"Published checkpoints: {protocol.checkpoint}.", f"Read in: {protocol.source}."]
    facts += [f"Doubtful: {doubt}." for doubt in protocol.doubts]
    return [
        f"{protocol.summary}.",
        "## Attacks",
        f"In Linf, at eps {radius_text(protocol.eps)}. On data of another usual radius that radius is taken, and steps "
        "keep their ratio to it; --eps outranks both.",
        markdown.table(("attack", "settings"), attacks),
        markdown.bullets(markdown.prose(fact) for fact in facts),
        f"Use it with `--protocol {name}`; `--attacks` takes a part of it.",
    ]


def _cost(sketch: Sketch) -> str:
    passes = sketch.call("passes", {})
    over = _difference(passes, _baseline_passes(sketch))
    used = [kind for kind in PASS_NAMES if passes.as_dict()[kind] or over.as_dict()[kind]]
    most = ", at most" if sketch.fact("drops_rows") else ""
    return markdown.table(
        ("passes for each training sample and step" + most, *(PASS_NAMES[kind] for kind in used)),
        [
            ("at default settings", *(f"{passes.as_dict()[kind]:g}" for kind in used)),
            ("beyond adversarial training", *(f"{n:+g}" if (n := over.as_dict()[kind]) else "0" for kind in used)),
        ],
    )


def _requirements(sketch: Sketch) -> str:
    """Teachers and warm start that a run has to provide, and the state that it records."""
    teachers, reported = sketch.fact("teachers", ()), sketch.fact("reported", ())
    lines = [f"Teachers: {', '.join(teachers)}." if teachers else "No teacher."]
    start = sketch.fact("warm_start")
    lines += [f"Starts from the weights of a run of `{start}`." if start else "Starts from scratch."]
    if reported:
        lines += [f"Recorded after each epoch: {', '.join(f'`{state}`' for state in reported)}."]
    if sketch.fact("couples_batch"):
        lines += ["The loss of a sample depends on the others of its batch, so a batch is not cut into smaller ones."]
    return markdown.bullets(lines)


def _options(name: str, sketch: Sketch, settings: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    rows = [
        (
            f"`{key}`",
            f"`{markdown.value_text(value)}`",
            markdown.cell(expected(sketch.kind(key))),
            markdown.cell(markdown.prose(texts.get(key, ""))),
        )
        for key, value in settings.items()
        if key not in SET_BY_RUN
    ]
    return f"Changed with `--set {name}.OPTION=VALUE`.\n\n" + markdown.table(
        ("option", "default", "takes", "meaning"), rows
    )


def _recipes(sketch: Sketch) -> str:
    recipes = all_recipes(sketch.fact("recipes", {}))
    rows = []
    for name in (f.name for f in fields(Recipe)):
        values = [getattr(recipe, name) for recipe in recipes.values()]
        if any(value is False or value not in ((), None, "", {}, 0.0) for value in values):
            cells = (markdown.cell(markdown.prose(markdown.value_text(value, empty=""))) for value in values)
            rows.append((name.replace("_", " "), *cells))
    head = ("", *(f"`{name}`" for name in recipes))
    return "Chosen with `--recipe NAME`; epochs count from 0.\n\n" + markdown.table(head, rows)


def _notes(kind: str, sketch: Sketch) -> list[str]:
    """Notes for those who run it."""
    if kind == "methods":
        return [RECIPES.format(name=sketch.name).replace("\n", " ")]
    if kind == "compositions":
        added = _added_passes(sketch.name).as_dict()
        words = ", ".join(f"{n:g} {PASS_NAMES[what]}" for what, n in added.items() if n)
        return [f"Passes for each sample and step that it adds, around pgd_at: {words or 'none'}."]
    return []


def _source(sketch: Sketch, *, terminal: bool, has_revision: bool) -> str:
    if sketch.source is None:
        return ""
    where = str(sketch.source) if terminal else f"`{'/'.join(Path(sketch.source).parts[-2:])}`"
    if not has_revision:
        return f"Source: {where}."
    revision = sketch.fact("revision", 1)
    moved = [f"{revision + 1} with {name}={value}" for name, value in sketch.fact("option_revisions", {}).items()]
    return f"Source: {where}, revision {revision}" + (f" ({', '.join(moved)})." if moved else ".")


def _baseline_passes(sketch: Sketch) -> Passes:
    """The passes of adversarial training in as many steps."""
    plain: Passes = METHODS.sketch("pgd_at").call("passes", {"steps": sketch.settings.get("steps", 10)})
    return plain


def _added_passes(composition: str) -> Passes:
    sketch = METHODS.sketch(f"{composition}:pgd_at")
    return _difference(sketch.call("passes", {}), _baseline_passes(sketch))


def _difference(a: Passes, b: Passes) -> Passes:
    return a + b * -1


def _symbols(passes: Passes) -> str:
    return " ".join(f"{value:+g}{PASS_SYMBOLS[kind]}" for kind, value in passes.as_dict().items() if value) or "0"
