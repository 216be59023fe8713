"""Pages and a table on the training methods, in Markdown, from the registry and the head comments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from attacks.passes import Passes
from attacks.plugins.registry import Registry
from attacks.plugins.sketch import Sketch
from bench.catalog.docstrings import arguments, around, sections
from bench.errors import UsageError
from methods.recipes import Recipe, known
from methods.registry import COMPOSITIONS, METHODS

KINDS = {
    "forward": "forward",
    "input_grad": "input gradient",
    "backward": "weight gradient",
    "teacher": "teacher forward",
    "teacher_grad": "teacher gradient",
}
SHORT = dict(zip(KINDS, ("F", "Bx", "Bw", "T", "Tx"), strict=True))
PROBLEMS = ("Inner problem", "Outer problem")
GREEK = ("alpha", "beta", "gamma", "delta", "eps", "eta", "lambda", "sigma", "tau")
GIVEN = ("num_classes", "norm")  # by the data set and the threat model of the run
LEGEND = """\
State: what the history records, one value for each class. Cost: passes for each training sample and step beyond
adversarial training at default settings, F forward, Bx gradient to the input, Bw to the weights, T forward of a
teacher, Tx gradient through one."""


def page(name: str) -> str:
    """What is known of a method or a composition: formula, state, cost, options, recipes, departures.

    Args:
        name: "trades", "awp:trades", or a composition alone, "awp".

    Raises:
        UsageError: if it is neither.
    """
    registry: Registry[Any] = COMPOSITIONS if name in COMPOSITIONS and ":" not in name else METHODS
    if name not in registry:
        raise UsageError(f"--format markdown: pages are made of methods and compositions, {name} is neither")
    name = registry.resolve(name)
    sketch, texts = registry.sketch(name), arguments(registry, name)
    heads = around(sketch.doc)
    blocks = [f"# {name}"]
    for other, text in heads.items():
        blocks += _about(text, other, _own_words(sketch) if len(heads) == 1 else "")
    if registry is METHODS:
        blocks += ["## Cost", _cost(name, sketch), _facts(sketch), "## Options"]
        blocks += [_options(name, sketch.settings, texts), "## Recipes", _recipes(sketch)]
    else:
        blocks += ["## Options", _options(f"{name}:METHOD", COMPOSITIONS.own_settings(name), texts)]
    for other, text in heads.items():
        blocks += _sections(text, other, later=True)
    return "\n\n".join(filter(None, [*blocks, _source(sketch)]))


def table() -> str:
    """All methods in one table, and what compositions add to them."""
    head = ("method", "", "teachers", "starts from", "state", "cost", "recipes")
    rows = [_row(name, METHODS.sketch(name)) for name in METHODS]
    compositions = [
        (f"`{name}:METHOD`", _cell(COMPOSITIONS.sketch(name).summary), _difference(f"{name}:pgd_at", "pgd_at"))
        for name in COMPOSITIONS
    ]
    return "\n\n".join(
        [
            "# Methods",
            _table(head, rows),
            LEGEND,
            "# What can be put around any of them",
            _table(("name", "", "cost around `pgd_at`"), compositions),
        ]
    )


def _row(name: str, sketch: Sketch) -> tuple[str, ...]:
    return (
        f"`{name}`",
        _cell(_prose(str(sketch.fact("own_doc", "")).partition("\n")[0] or sketch.summary).rstrip(".")),
        ", ".join(sketch.fact("teachers", ())),
        f"`{start}`" if (start := sketch.fact("warm_start")) else "",
        ", ".join(f"`{state}`" for state in sketch.fact("reported", ())),
        ("at most " if sketch.fact("drops_rows") else "") + _difference(name, "pgd_at"),
        ", ".join(known(sketch.fact("recipes", {}))),
    )


def _about(doc: str, other: str, own: str) -> list[str]:
    """Title, formula and state of one head comment; `other` is what a composition is around."""
    before, named = sections(doc)
    formula = [f"**{problem}.** {_sentence(named[problem])}" for problem in PROBLEMS if problem in named]
    title, level = ([f"## Around {other}"], "###") if other else ([], "##")
    return [*title, _prose(before), own, *([f"{level} Formula"] if formula else []), *formula, *_sections(doc, other)]


def _sections(doc: str, other: str, *, later: bool = False) -> list[str]:
    """The sections of a head comment beside the formula, those before the tables of a page or those behind them."""
    due = {k: v for k, v in sections(doc)[1].items() if k not in PROBLEMS and (k == "State") is not later}
    suffix = f", {other}" if other and later else ""
    level = "###" if other and not later else "##"
    return [block for title, text in due.items() for block in (f"{level} {title}{suffix}", _sentence(text))]


def _own_words(sketch: Sketch) -> str:
    return _prose(str(sketch.fact("own_doc", "")).partition("\n\nArgs:")[0])


def _cost(name: str, sketch: Sketch) -> str:
    passes = METHODS.sketch(name).call("passes", {})
    over = _minus(passes, _plain(sketch))
    used = [kind for kind in KINDS if passes.as_dict()[kind] or over.as_dict()[kind]]
    most = ", at most" if sketch.fact("drops_rows") else ""
    return _table(
        ("passes for each training sample and step" + most, *(KINDS[kind] for kind in used)),
        [
            ("at default settings", *(f"{passes.as_dict()[kind]:g}" for kind in used)),
            ("beyond adversarial training", *(f"{n:+g}" if (n := over.as_dict()[kind]) else "0" for kind in used)),
        ],
    )


def _facts(sketch: Sketch) -> str:
    """What else a run has to provide, and what it records."""
    teachers, reported = sketch.fact("teachers", ()), sketch.fact("reported", ())
    lines = [f"Teachers: {', '.join(teachers)}." if teachers else "No teacher."]
    start = sketch.fact("warm_start")
    lines += [f"Starts from the weights of a run of `{start}`." if start else "Starts from scratch."]
    if reported:
        lines += [f"Recorded after each epoch: {', '.join(f'`{state}`' for state in reported)}."]
    if sketch.fact("couples_batch"):
        lines += ["The loss of a sample depends on the others of its batch, so a batch is not cut into smaller ones."]
    return "\n".join(f"- {line}" for line in lines)


def _options(name: str, settings: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    shown = {key: value for key, value in settings.items() if key not in GIVEN}
    rows = [(f"`{key}`", f"`{_value(value)}`", _cell(_prose(texts.get(key, "")))) for key, value in shown.items()]
    return f"Changed with `--set {name}.OPTION=VALUE`.\n\n" + _table(("option", "default", "meaning"), rows)


def _recipes(sketch: Sketch) -> str:
    recipes = known(sketch.fact("recipes", {}))
    rows = []
    for name in (f.name for f in fields(Recipe)):
        values = [getattr(recipe, name) for recipe in recipes.values()]
        if any(value is False or value not in ((), None, "", {}, 0.0) for value in values):
            rows.append((name.replace("_", " "), *(_cell(_prose(_value(value, empty=""))) for value in values)))
    head = ("", *(f"`{name}`" for name in recipes))
    return "Chosen with `--recipe NAME`; epochs count from 0.\n\n" + _table(head, rows)


def _source(sketch: Sketch) -> str:
    if sketch.source is None:
        return ""
    where = "/".join(Path(sketch.source).parts[-2:])
    return f"Source: `{where}`, revision {sketch.fact('revision', 1)}."


def _plain(sketch: Sketch) -> Passes:
    """The passes of adversarial training in as many steps."""
    plain: Passes = METHODS.sketch("pgd_at").call("passes", {"steps": sketch.settings.get("steps", 10)})
    return plain


def _minus(a: Passes, b: Passes) -> Passes:
    return a + b * -1


def _difference(name: str, other: str) -> str:
    steps = {"steps": METHODS.sketch(name).settings.get("steps", 10)}
    over = _minus(METHODS.sketch(name).call("passes", {}), METHODS.sketch(other).call("passes", steps))
    return " ".join(f"{value:+g}{SHORT[kind]}" for kind, value in over.as_dict().items() if value) or "0"


def _value(value: Any, empty: str = "()") -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(_value, value)) or empty
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _prose(text: str) -> str:
    """Text of the source as Markdown: a line for each paragraph, and no sign of a formula is taken for a mark."""
    paragraphs = [re.sub(r"\s+", " ", paragraph).strip() for paragraph in re.split(r"\n\s*\n", text)]
    return "\n\n".join(re.sub(r"([*<]|\](?=\())", r"\\\1", paragraph) for paragraph in paragraphs if paragraph)


def _sentence(text: str) -> str:
    """Prose with a capital, unless it begins with a symbol or the name of a setting."""
    first = re.match(r"m[ai][xn]imise\b|[a-z]{2,}\b(?=[.,:;]? *[A-Za-z]|\.$|'s)", text)
    return _prose(text[:1].upper() + text[1:] if first and first[0] not in GREEK else text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
