"""What stands under a table: everything a reader needs in order to know how its figures came about."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bench import metrics
from bench.report.formats.sheet import AT_MOST
from bench.report.tables.cells import Row, Table
from bench.report.tables.columns import Column, settings_text, titles
from bench.report.tables.protocol_notes import protocol_note, uniform_note
from bench.report.tables.sanity import sanity_notes
from bench.results.outcomes import CLEAN

DEFINITION = (
    "Accuracies in percent. Average: over the test samples. Worst: the worst class. NSD: standard deviation of the "
    "class accuracies over their mean, ddof 0, lower is fairer. Under an attack a sample counts as right only if its "
    "clean and its attacked prediction are both right."
)
WORST10 = "Worst 10 %: mean of the lowest tenth of the classes."
MARKED = (
    "Bold: the best, and what the outcomes cannot tell from it (the 95 % interval of the difference, from a paired "
    f"bootstrap of {metrics.DRAWS:,} draws over the same test samples within classes{{seeds}}, holds zero; no "
    "correction for the number of comparisons). Underlined: the second."
)
INTERVALS = (
    "In brackets: 95 % intervals of the mean over seeds from a bootstrap of the test samples within classes "
    f"({metrics.DRAWS:,} draws, reflected around the figure, which takes off the bias that sampling puts on worst and "
    "NSD: with few samples a class these two can lie outside)."
)
SELECTION = {
    "last": "last: the weights after the last epoch",
    "best": "best: the epoch with the highest average plus worst class on held-out training samples",
    "test": "best (test): the epoch chosen ON THE TEST SET, for replication only",
}


def table_notes(table: Table, *, intervals: bool, marked: bool) -> list[str]:
    """The notes of the main table."""
    several = any(len(row.seeds) > 1 for row in table.rows)
    notes = [DEFINITION + (f" {WORST10}" if "worst10" in table.statistics else "")]
    notes += [sample_note(table), *attack_notes(table), protocol_note(table)]
    notes += [training_note(table), uniform_note(table), seeds_note(table), selection_note(table)]
    notes += [noise_note(table), stopped_note(table), *older_notes(table.rows, table.shown, titles(table.shown))]
    notes += sanity_notes(table.rows)
    if marked:
        notes.append(MARKED.format(seeds=" and over seeds" if several else "") + _teacher_note(table))
    return [note for note in [*notes, *([INTERVALS] if intervals else [])] if note]


def sample_note(table: Table) -> str:
    """Number of test samples, and which attacks cover a part of them only."""
    names, most = titles(table.shown), max(column.n for column in table.columns)
    whole = max((_data(row).get("test_size") or 0 for row in table.rows), default=0)
    part = f", a stratified part of {whole:,}" if whole > most else ""
    text = f"Test samples: n = {most:,}{part}, {table.num_classes} classes"
    fewer = [f"{names[column]} on a stratified part, n = {column.n:,}" for column in table.shown if column.n < most]
    blocks = _blocks(table)
    return "; ".join([text, *fewer, *([f"attacked in blocks of {blocks[0]:,}"] if len(blocks) == 1 else [])]) + "."


def _blocks(table: Table) -> list[int]:
    return sorted({column.block for column in table.shown if column.block is not None})


def attack_notes(table: Table) -> list[str]:
    """Implementation and settings of every attack, its revision where several stand there, and stages left out."""
    names, blocks, notes = titles(table.shown), _blocks(table), []
    for column in table.shown:
        if column.attack == CLEAN:
            continue
        facts = [column.implementation or "unknown implementation", settings_text(json.loads(column.settings))]
        if column.stages not in ((), (column.attack,)):
            facts.append("stages " + ", ".join(column.stages))
        if len({other.code for other in table.shown if other.title == column.title}) > 1:
            facts.append(column.code or "no stated revision")
        if column.block is not None and len(blocks) > 1:
            facts.append(f"blocks of {column.block:,}")
        notes.append(f"{names[column]}: " + ", ".join(fact for fact in facts if fact) + ".")
        notes += [f"{names[column]} without {stage}: {reason}." for stage, reason in column.left_out]
    return notes


def training_note(table: Table) -> str:
    """Training size, recipe and epochs, by row where they differ."""

    def facts(row: Row) -> str:
        size, epochs, recipe = _data(row).get("train_size"), row.run.facts.get("epochs"), row.run.text("recipe")
        told = _data(row).get("labelled_size")
        samples = f"{size:,} samples" + (f", labels of {told:,} of them" if told is not None else "") if size else ""
        known = [samples, f"recipe {recipe}" if recipe else ""]
        known += [f"{epochs} epochs" if epochs else "", *_schedule(row), *split_facts(row.run.facts), _precision(row)]
        return ", ".join(fact for fact in known if fact) or "unknown"

    return f"Training: {by_row(table.rows, facts)}."


def _precision(row: Row) -> str:
    """How numbers were rounded in training, where it was not as usual."""
    precision = str((row.run.facts.get("arithmetic") or {}).get("precision", "float32"))
    return "" if precision == "float32" else precision


def _schedule(row: Row) -> list[str]:
    """What of the schedule a reader would not expect: a rate that moves with every step, averaged weights."""
    training = row.run.facts.get("training") or {}
    facts = ["one-cycle rate"] if training.get("schedule") == "one_cycle" else []
    return facts + ([f"weights averaged (EMA {training['ema']:g})"] if training.get("ema") else [])


def split_facts(facts: Mapping[str, Any]) -> list[str]:
    """Over how many processes, and in what micro-batches, a run was trained; nothing of whole batches in one."""
    processes, micro, found = facts.get("processes") or {}, facts.get("micro_batch"), []
    if processes.get("count", 1) > 1:
        whose = processes.get("batch_norm")
        found.append(f"{processes['count']} processes" + (f" with BatchNorm statistics of {whose}" if whose else ""))
    if micro:
        cause = "" if micro.get("asked") == micro["size"] else " since memory ran out"
        differs = (
            "" if micro.get("exact") else ", with which BatchNorm or dropout give other numbers than whole batches"
        )
        found.append(f"micro-batches of {micro['size']}{cause}{differs}")
    return found


def seeds_note(table: Table) -> str:
    """The seeds, and what the printed spread is."""
    spread = any(len(row.seeds) > 1 for row in table.rows)
    text = f"Seeds: {by_row(table.rows, lambda row: ', '.join(map(str, row.seeds)))}"
    if not spread:
        return text + " (no spread over seeds)."
    text += "; mean ± standard deviation over seeds (ddof 1)."
    names = titles(table.shown)
    short = [
        f"{row.name} ({row.checkpoint}), {names[column]}: {', '.join(map(str, cell.seeds))}"
        for row in table.rows
        for column, cell in row.cells.items()
        if cell.seeds != row.seeds
    ]
    return text + (f" Fewer seeds in {'; '.join(short)}." if short else "")


def selection_note(table: Table) -> str:
    """What the checkpoints in the table are."""
    kinds = {part for row in table.rows for part in row.checkpoint.split(" = ")}
    rules = {_rule(row, kind) for row in table.rows for kind in kinds if kind in row.checkpoint}
    return "Checkpoints: " + "; ".join(SELECTION.get(rule, rule) for rule in sorted(rules)) + "."


def _rule(row: Row, kind: str) -> str:
    return "test" if kind == "best" and row.run.facts.get("selection") == "test" else kind


def noise_note(table: Table) -> str:
    """The NSD to expect from sampling alone, at the mean accuracy of each column."""
    names, floors = titles(table.shown), []
    for column in table.columns:
        cells = [row.cells[column] for row in table.rows if column in row.cells]
        floor = metrics.noise_floor(float(np.mean([cell.mean("average") for cell in cells])), cells[0].counts)
        if not np.isnan(floor):
            floors.append(f"{names[column]} {floor:.3f}")
    if not floors:
        return ""
    return f"Noise floor, the NSD from sampling alone if all classes were equally accurate: {', '.join(floors)}."


def stopped_note(table: Table) -> str:
    """Which evaluations were stopped, so that their figures are bounds."""
    names = titles(table.shown)
    stops = [
        f"{names[column]} of {row.name} ({row.checkpoint}) by {'; '.join(bound.reasons)}"
        for row in table.rows
        for column, bound in row.bounds.items()
    ]
    if not stops:
        return ""
    return (
        f"{AT_MOST}: an upper bound and no result. The evaluation was stopped before everything was attacked: "
        f"{'; '.join(stops)}."
    )


def older_notes(rows: Sequence[Row], columns: Sequence[Column], names: Mapping[Column, str]) -> list[str]:
    """Where a newer revision of an attack stands in for older ones, by column; nothing if nowhere."""
    left_out: dict[str, list[str]] = {}
    for column in columns:
        for row in rows:
            if column in row.older:
                instead = " and ".join(map(str, row.older[column]))
                told = f"{names[column]}, revision {column.revision} instead of {instead}"
                left_out.setdefault(told, []).append(f"{row.name} ({row.checkpoint})")
    told = "; ".join(f"{what}, for {', '.join(whose)}" for what, whose in left_out.items())
    return [f"Evaluated under several revisions of an attack, of which the newest is shown: {told}."] if told else []


def _teacher_note(table: Table) -> str:
    return " Teachers take no part in this." if any(row.is_teacher for row in table.rows) else ""


def _data(row: Row) -> dict[str, Any]:
    return row.run.facts.get("data") or {}


def by_row(rows: Sequence[Row], fact: Callable[[Row], str]) -> str:
    """A fact of all rows: once if they agree, else the commonest first and the others with their rows."""
    groups: dict[str, dict[str, None]] = {}
    for row in rows:
        groups.setdefault(fact(row), {})[row.name] = None
    common, *others = sorted(groups.items(), key=lambda group: -len(group[1]))
    return "; ".join([common[0], *(f"{value} for {', '.join(names)}" for value, names in others)])
