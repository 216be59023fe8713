"""Rows of a table: runs that agree in everything but the seed, at one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.report.tables.columns import Column, column_of, source_text, superseded
from bench.report.tables.model import Cell, Row, UpperBound
from bench.report.tables.sanity import combine_findings
from bench.results.outcomes import CLEAN
from bench.results.tree import Evaluation, Run, widest_evaluation

Threat = tuple[str, "float | None"]
LAST, BEST = "last", "best"


def build_rows(
    runs: Sequence[Run], threat: Threat, model: str, competing: AbstractSet[Path], checkpoint: str | None = None
) -> list[Row]:
    """Group runs by everything but the seed, and measure each group at each checkpoint.

    Args:
        runs: all runs of the table.
        threat: norm and eps; evaluations under another are left out.
        model: of the table; a row of another model says so.
        competing: paths of the runs that are ranked; the others are shown as teachers.
        checkpoint: only this one.
    """
    groups = _groups(runs)
    names = row_names([_naming_facts(group[0]) for group in groups], [group[0] for group in groups])
    rows: list[Row] = []
    for group, name in zip(groups, names, strict=True):
        is_teacher = group[0].is_teacher or group[0].path not in competing
        if is_teacher:
            other = group[0].text("model")
            name += " (teacher)" if other == model else f" (teacher, {other})"
        rows += _checkpoint_rows(group, threat, name, is_teacher, checkpoint)
    return rows


def threat_of(evaluation: Evaluation) -> Threat:
    """Norm and eps of an evaluation."""
    eps = evaluation.facts.get("eps")
    return str(evaluation.facts.get("norm") or ""), None if eps is None else float(eps)


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    by_identity: dict[str, list[Run]] = {}
    known = {run.key: run for run in runs}
    for run in sorted(runs, key=lambda run: (run.seed, run.key)):
        by_identity.setdefault(json.dumps(run_identity(run, known), sort_keys=True), []).append(run)
    groups: list[list[Run]] = []
    for group in by_identity.values():
        # Two runs of one seed differ in something that run.json does not spell out, so neither is averaged.
        distinct = len({run.seed for run in group}) == len(group)
        groups += [group] if distinct else [[run] for run in group]
    return groups


_IDENTITY_FACTS = (
    "dataset",
    "model",
    "method",
    "label",
    "role",
    "recipe",
    "epochs",
    "selection",
    "settings",
    "training",
    "data",
    "revision",
)


def run_identity(run: Run, known: Mapping[str, Run]) -> dict[str, Any]:
    """Everything about a run that must agree before seeds are averaged.

    A teacher serves all seeds, so its key is part of it; a warm start has the seed of its student, so what it is
    counts and not its key.
    """
    facts = {fact: run.facts.get(fact) for fact in _IDENTITY_FACTS}
    facts |= {name: run.text(name) for name in ("source", "model_source")}
    facts["deterministic"] = bool(run.facts.get("deterministic"))
    # The hash of all parts covers the test part, whose own hash older runs did not store.
    facts["data"] = {name: value for name, value in (facts["data"] or {}).items() if name != "test_hash"}
    facts["split"] = _batch_split(run)
    facts["hardware"] = {name: (run.facts.get("hardware") or {}).get(name) for name in ("device", "threads")}
    facts["train_with"] = (run.facts.get("arithmetic") or {}).get("switches")
    facts["teachers"] = {
        role: teacher.get("key") or teacher.get("sha256") or teacher.get("zoo")
        for role, teacher in (run.facts.get("teachers") or {}).items()
    }
    start = run.facts.get("warm_start") or {}
    before = known.get(str(start.get("key")))
    facts["warm_start"] = run_identity(before, {}) if before else start.get("label")
    return facts


def _batch_split(run: Run) -> dict[str, Any]:
    """Processes and micro-batches of a training step, as far as its numbers depend on them."""
    micro = run.facts.get("micro_batch") or {}
    given = micro.get("size") if not micro.get("exact", True) else micro.get("asked")
    return {**(run.facts.get("processes") or {"count": 1, "batch_norm": None}), "micro_batch": given}


def _naming_facts(run: Run) -> dict[str, str]:
    """Facts that can distinguish rows of equal label, flat, as text."""
    facts = {name: run.facts.get(name) for name in ("recipe", "epochs", "selection", "revision")}
    facts |= {
        "source": source_text(run.text("source")) or "suite",
        "model_source": source_text(run.text("model_source")) or "not stated",
        "deterministic": bool(run.facts.get("deterministic")),
    }
    for group in ("settings", "training", "data", "hardware"):
        values = run.facts.get(group) or {}
        skip = ("class_names", "hash", "test_hash") if group == "data" else ()
        facts |= {name: value for name, value in values.items() if name not in skip and group != "hardware"}
        facts |= {name: values.get(name) for name in ("device", "threads") if group == "hardware"}
    split = _batch_split(run)
    facts |= {"processes": split["count"], "batch_norm": split["batch_norm"], "micro_batch": split["micro_batch"]}
    facts["train_with"] = " ".join((run.facts.get("arithmetic") or {}).get("switches") or ["none"])
    teachers = (run.facts.get("teachers") or {}).values()
    facts["teacher"] = " + ".join(str(teacher.get("label")) for teacher in teachers if teacher)
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def row_names(facts: Sequence[Mapping[str, str]], runs: Sequence[Run]) -> list[str]:
    """Distinct row names: the label, with the facts in which rows of one label differ, or the key."""
    labels = [(run.label, run.text("model"), run.is_teacher) for run in runs]
    names = []
    for run, known, label in zip(runs, facts, labels, strict=True):
        namesakes = [other for other, its_label in zip(facts, labels, strict=True) if its_label == label]
        differing = [name for name in known if len({other.get(name) for other in namesakes}) > 1]
        is_ambiguous = sum(all(other.get(name) == known[name] for name in differing) for other in namesakes) > 1
        extra = [f"{name}={known[name]}" for name in differing] + ([f"run {run.key[:8]}"] if is_ambiguous else [])
        names.append(f"{run.label} [{', '.join(extra)}]" if extra else run.label)
    return names


def _checkpoint_rows(
    group: Sequence[Run], threat: Threat, name: str, is_teacher: bool, checkpoint: str | None
) -> Iterator[Row]:
    found = {kind: dict(_measurements(group, kind, threat)) for kind in (BEST, LAST)}
    if found[BEST] and found[LAST] and _same_weights(group):
        merged = {**found[BEST], **found[LAST]}
        found = {"best = last": merged}
    for kind, known in found.items():
        if known and (checkpoint is None or checkpoint in kind.split(" = ")):
            cells = {column: cell for column, cell in known.items() if isinstance(cell, Cell)}
            bounds = {column: bound for column, bound in known.items() if isinstance(bound, UpperBound)}
            sanity = combine_findings(_attack_evaluations(group, kind.split(" = "), threat))
            yield Row(name, kind, tuple(group), cells, is_teacher, bounds, sanity)


def _attack_evaluations(group: Sequence[Run], checkpoints: Sequence[str], threat: Threat) -> Iterator[Evaluation]:
    """The evaluations that a row shows, `clean` and old revisions aside."""
    for run in group:
        for kind in checkpoints:
            columns = _evaluations_by_column(run, kind, threat)
            older = superseded(columns)
            yield from (e for column, e in columns.items() if column.attack != CLEAN and column not in older)


def drop_old_revisions(rows: Sequence[Row]) -> list[Row]:
    """Drop columns of an old revision of an attack if every row and seed in them has the newest revision as well."""
    older = superseded({column for row in rows for column in (*row.cells, *row.bounds)})
    dropped = {old: new for old, new in older.items() if all(_covers(row, new, old) for row in rows)}

    def without_dropped(row: Row) -> Row:
        revisions: dict[Column, tuple[int, ...]] = {}
        for old in sorted({*row.cells, *row.bounds} & dropped.keys(), key=lambda column: column.revision):
            revisions[dropped[old]] = (*revisions.get(dropped[old], ()), old.revision)
        cells = {column: cell for column, cell in row.cells.items() if column not in dropped}
        bounds = {column: bound for column, bound in row.bounds.items() if column not in dropped}
        return replace(row, cells=cells, bounds=bounds, older_revisions=revisions)

    return [without_dropped(row) for row in rows]


def _covers(row: Row, new: Column, old: Column) -> bool:
    """Whether a row has at least the seeds and results in column `new` that it has in `old`."""
    seeds = [
        set(row.cells[column].seeds if column in row.cells else row.bounds[column].cell.seeds)
        if column in {*row.cells, *row.bounds}
        else set()
        for column in (old, new)
    ]
    return seeds[0] <= seeds[1] and (new in row.cells or old not in row.cells)


def _same_weights(group: Sequence[Run]) -> bool:
    """Whether best and last are the same weights for every run."""
    return all(
        len({evaluation.facts.get("weights") or evaluation.path for evaluation in run.evaluations}) == 1
        or _best_is_last(run)
        for run in group
    )


def _best_is_last(run: Run) -> bool:
    best, epochs = run.facts.get("epoch_best"), run.facts.get("epochs")
    return best is not None and epochs is not None and best == epochs - 1


def _measurements(group: Sequence[Run], checkpoint: str, threat: Threat) -> Iterator[tuple[Column, Cell | UpperBound]]:
    """Cell of each column for a group of runs; an upper bound if the evaluation of a seed was stopped early."""
    found: dict[Column, dict[int, tuple[Evaluation, str]]] = {}
    for run in group:
        for column, evaluation in _evaluations_by_column(run, checkpoint, threat).items():
            found.setdefault(column, {})[run.seed] = (evaluation, column.attack)
    for column, by_seed in found.items():
        reasons = [evaluation.stopped for evaluation, attack in by_seed.values() if attack != CLEAN]
        stopped = tuple(dict.fromkeys(reason for reason in reasons if reason))
        yield column, UpperBound(_cell(by_seed), stopped) if stopped else _cell(by_seed)


def _evaluations_by_column(run: Run, checkpoint: str, threat: Threat) -> dict[Column, Evaluation]:
    """Evaluations of a run at a checkpoint, by column; of several the first that was not stopped, by seed."""
    here = [evaluation for evaluation in run.evaluations if evaluation.checkpoint == checkpoint]
    if not here and checkpoint == BEST and _best_is_last(run):
        return _evaluations_by_column(run, LAST, threat)
    columns: dict[Column, Evaluation] = {}
    if here:
        source = widest_evaluation(here)
        columns[column_of(source, CLEAN)] = source
    for evaluation in sorted(here, key=lambda e: (bool(e.stopped), int(e.facts.get("seed") or 0), e.path.name)):
        if evaluation.attack != CLEAN and threat_of(evaluation) == threat:
            columns.setdefault(column_of(evaluation, evaluation.attack), evaluation)
    return columns


def _cell(by_seed: Mapping[int, tuple[Evaluation, str]]) -> Cell:
    seeds = tuple(sorted(by_seed))
    outcomes = [by_seed[seed][0].outcomes for seed in seeds]
    attack = by_seed[seeds[0]][1]
    correct = np.stack([table.correct(attack)[0] for table in outcomes])
    return Cell(seeds, correct, outcomes[0].correct(attack)[1], outcomes[0].num_classes)
