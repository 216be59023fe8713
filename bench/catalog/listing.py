"""Texts about what is registered, planned and stored."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from attacks.plugins.registry import Registry, canonical, suggestion
from attacks.plugins.sketch import Sketch
from bench.catalog import pages
from bench.config import protocols
from bench.core import files as store
from bench.data.registry import Datasets
from bench.errors import UsageError
from bench.evaluation import blocks as pairs
from bench.plan.cost import Cost, totals
from bench.plan.jobs import PARTIAL, Plan, title
from methods.recipes import Recipe, known
from methods.registry import COMPOSITIONS, METHODS

PLANS = ".plans"
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


def plan_text(plan: Plan, out: Path) -> str:
    """Jobs, passes, and a rough estimate of time and disk."""
    train, evaluate = totals(plan, out)
    rows = [(title(job), str(job.folder), cost) for job, cost in train]
    rows += [(title(job), str(job.folder), cost) for job, cost in evaluate]
    width = max(len(name) for name, _, _ in rows)
    head = f"{'job':<{width}}  {'forward':>9}  {'in-grad':>9}  {'w-grad':>9}  {'teacher':>9}  {'about':>8}"
    lines = [head, *(_plan_line(name, cost, width) for name, _, cost in rows)]
    missing = [cost for _, _, cost in rows if not cost.done]
    seconds, size = sum(cost.seconds for cost in missing), sum(cost.bytes for cost in missing)
    lines += [
        "",
        f"{len(train)} trainings and {len(evaluate)} evaluations, {len(rows) - len(missing)} of them done already.",
        f"Missing: about {_hours(seconds)} of computing if one job ran after the other, {_size(size)} of disk.",
        "Passes are in samples; those of attacks assume that no sample falls. Times are rough.",
    ]
    return "\n".join(lines)


def _plan_line(name: str, cost: Cost, width: int) -> str:
    passes = cost.passes
    numbers = (passes.forward, passes.input_grad, passes.backward, passes.teacher + passes.teacher_grad)
    counts = "  ".join(f"{_count(number):>9}" for number in numbers)
    return f"{name:<{width}}  {counts}  {'done' if cost.done else _hours(cost.seconds):>8}"


def _count(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:g}"


def _hours(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def remember(plan: Plan, out: Path) -> None:
    """Note what a plan is made of, so that `bench status` can say what is missing."""
    jobs = [{"title": title(job), "folder": job.folder.as_posix()} for job in plan.jobs]
    folder = out / PLANS
    with store.locked(folder, wait=True):
        store.write_json(folder / f"{store.key_of({'jobs': jobs})}.json", {"jobs": jobs})


def _missing(results: Path) -> list[str]:
    """Planned jobs that have left nothing in the folder yet."""
    plans = sorted((results / PLANS).glob("*.json"))
    jobs = {job["folder"]: job["title"] for plan in plans for job in store.read_json(plan)["jobs"]}
    return [name for folder, name in jobs.items() if not any((results / folder).glob("[!.]*"))]


def status_text(results: Path) -> str:
    """What a results folder holds, misses, and what failed.

    Raises:
        UsageError: if there is no such folder.
    """
    if not results.is_dir():
        raise UsageError(f"status: no folder {results}; run `bench run` first, or name the folder it wrote to")
    runs = sorted(path.parent for path in results.glob("*/*/*/*/run.json"))
    lines = []
    for folder in runs:
        run = store.read_json(folder / "run.json")
        state = _state(folder, run)
        name = f"{run['dataset']} {run['model']} {run['label']} seed {run['seed']} ({folder.name})"
        lines.append(f"{name}: {state}")
        for evaluation in sorted((folder / "eval").glob("*")):
            line = _evaluation_line(evaluation)
            if line:
                lines.append(f"  {line}")
    for failure in sorted(results.glob(f"*/*/*/*/{store.FAILED}")):
        if not (failure.parent / "run.json").is_file():
            lines.append(f"{failure.parent.relative_to(results).as_posix()}: failed: {store.failure(failure.parent)}")
    failed = sum("failed" in line for line in lines)
    missing = _missing(results)
    lines += [f"missing: {name}" for name in missing]
    counts = [f"{len(runs)} runs", *([f"{failed} failed"] if failed else [])]
    counts += [f"{len(missing)} planned jobs not begun"] if missing else []
    return "\n".join([f"{results}: {', '.join(counts)}", *lines])


def _state(folder: Path, run: Mapping[str, Any]) -> str:
    if store.is_done(folder):
        return "done"
    sentence = store.failure(folder)
    if sentence is not None:
        return f"failed: {sentence}"
    history = folder / "history.jsonl"
    epochs = len(history.read_text().splitlines()) if history.is_file() else 0
    return f"{epochs} of {run['epochs']} epochs"


def _evaluation_line(folder: Path) -> str | None:
    if store.is_done(folder):
        facts = store.read_json(folder / "eval.json")
        return f"{facts['attack']} on {facts['checkpoint']}, eps {facts['eps']:.4g}, n {facts['n']}: done"
    sentence = store.failure(folder)
    if sentence is not None:
        return f"{folder.name}: failed: {sentence}"
    partial = folder / PARTIAL
    stored = len([file for file in partial.glob("*-*.json") if not file.name.startswith(pairs.CLEAN)])
    failed = _failed_parts(partial)
    if not (partial / pairs.NOTE).is_file():
        text = f"{folder.name}: unfinished, {stored} stage blocks stored"
        return "; ".join([text, *failed]) if stored or failed else None
    note = pairs.read_note(partial)
    blocks = f"{stored} of {note.blocks * len(note.stages)} stage blocks stored"
    return "; ".join([f"{title(note.job)} ({folder.name}): unfinished, {blocks}", *_shards(note, partial), *failed])


def _shards(note: pairs.Note, partial: Path) -> list[str]:
    """Which shards are missing of an evaluation; nothing if none was ever begun."""
    missing, lines = set(note.missing(partial)), []
    for count in sorted({count for _, count in pairs.parts_begun(partial)}):
        due = [f"{i}/{count}" for i in range(1, count + 1) if missing & set(pairs.blocks_of((i, count), note.blocks))]
        lines.append(f"missing: --shard {', '.join(due)}" if due else "every shard is there: bench merge")
    return lines


def _failed_parts(partial: Path) -> list[str]:
    homes = {f"{i}/{count}": partial / f"part-{i}-of-{count}" for i, count in pairs.parts_begun(partial)}
    return [f"{name} failed: {sentence}" for name, home in homes.items() if (sentence := store.failure(home))]
