"""Notes below the main table: how its values were measured and what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bench import metrics
from bench.core.environment import Environment, differing, environment_of, environment_text
from bench.report.formats.text_table import UPPER_BOUND_SIGN
from bench.report.tables.columns import Column, column_titles, settings_text
from bench.report.tables.model import Row, Table
from bench.report.tables.protocol_notes import protocol_note, uniform_note
from bench.results.outcomes import CLEAN

DEFINITIONS_NOTE = (
    "Accuracies in percent. Average: over the test samples. Worst: the worst class. NSD: standard deviation of the "
    "class accuracies over their mean, ddof 0, lower is fairer. Under an attack a sample counts as right only if its "
    "clean and its attacked prediction are both right."
)
WORST10_NOTE = "Worst 10 %: mean of the lowest tenth of the classes."
RANKING_NOTE = (
    "Bold: the best, and what the outcomes cannot tell from it (the 95 % interval of the difference, from a paired "
    f"bootstrap of {metrics.DRAWS:,} draws over the same test samples within classes{{seeds}}, holds zero; no "
    "correction for the number of comparisons). Underlined: the second."
)
INTERVALS_NOTE = (
    "In brackets: 95 % intervals of the mean over seeds from a bootstrap of the test samples within classes "
    f"({metrics.DRAWS:,} draws, reflected around the figure, which takes off the bias that sampling puts on worst and "
    "NSD: with few samples a class these two can lie outside)."
)
SELECTION = {
    "last": "last: the weights after the last epoch",
    "best": "best: the epoch with the highest average plus worst class on held-out training samples",
    "test": "best (test): the epoch chosen ON THE TEST SET, for replication only",
}


def table_notes(table: Table, *, intervals: bool, has_ranking: bool) -> list[str]:
    """The notes of the main table."""
    several = any(len(row.seeds) > 1 for row in table.rows)
    notes = [DEFINITIONS_NOTE + (f" {WORST10_NOTE}" if "worst10" in table.statistics else "")]
    notes += [sample_note(table), *attack_notes(table), protocol_note(table)]
    notes += [training_note(table), uniform_note(table), seeds_note(table), selection_note(table)]
    notes += [noise_note(table), stopped_note(table)]
    notes += closing_notes(table.rows, table.shown, column_titles(table.shown))
    if has_ranking:
        notes.append(RANKING_NOTE.format(seeds=" and over seeds" if several else "") + _teacher_note(table))
    return [note for note in [*notes, *([INTERVALS_NOTE] if intervals else [])] if note]


def sample_note(table: Table) -> str:
    """Number of test samples, and which attacks cover a part of them only."""
    names, most = column_titles(table.shown), max(column.n for column in table.columns)
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
    names, blocks, notes = column_titles(table.shown), _blocks(table), []
    for column in table.shown:
        if column.attack == CLEAN:
            continue
        facts = [column.implementation or "unknown implementation", settings_text(json.loads(column.settings))]
        if column.stages not in ((), (column.attack,)):
            facts.append("stages " + ", ".join(column.stages))
        if len({other.revision_text for other in table.shown if other.title == column.title}) > 1:
            facts.append(column.revision_text or "no stated revision")
        if column.block is not None and len(blocks) > 1:
            facts.append(f"blocks of {column.block:,}")
        notes.append(f"{names[column]}: " + ", ".join(fact for fact in facts if fact) + ".")
        notes += [f"{names[column]} without {stage}: {reason}." for stage, reason in column.left_out]
    return notes


def training_note(table: Table) -> str:
    """Training size, recipe and epochs, by row where they differ."""

    def facts(row: Row) -> str:
        size, epochs, recipe = _data(row).get("train_size"), row.run.facts.get("epochs"), row.run.text("recipe")
        labelled = _data(row).get("labelled_size")
        labels = f", labels of {labelled:,} of them" if labelled is not None else ""
        samples = f"{size:,} samples{labels}" if size else ""
        known = [samples, f"recipe {recipe}" if recipe else ""]
        known += [f"{epochs} epochs" if epochs else "", *_schedule(row), *batch_split_facts(row.run.facts)]
        known.append(_precision(row))
        return ", ".join(fact for fact in known if fact) or "unknown"

    return f"Training: {summarize_by_row(table.rows, facts)}."


def _precision(row: Row) -> str:
    """Numerical precision of training, if it was not float32."""
    precision = str((row.run.facts.get("arithmetic") or {}).get("precision", "float32"))
    return "" if precision == "float32" else precision


def _schedule(row: Row) -> list[str]:
    """Unusual parts of the schedule: one-cycle learning rate, averaged weights."""
    training = row.run.facts.get("training") or {}
    facts = ["one-cycle rate"] if training.get("schedule") == "one_cycle" else []
    return facts + ([f"weights averaged (EMA {training['ema']:g})"] if training.get("ema") else [])


def batch_split_facts(facts: Mapping[str, Any]) -> list[str]:
    """Number of processes and size of micro-batches of a training; nothing for whole batches in one process."""
    processes, micro, found = facts.get("processes") or {}, facts.get("micro_batch"), []
    if processes.get("count", 1) > 1:
        scope = processes.get("batch_norm")
        found.append(f"{processes['count']} processes" + (f" with BatchNorm statistics of {scope}" if scope else ""))
    if micro:
        cause = "" if micro.get("asked") == micro["size"] else " since memory ran out"
        differs = (
            "" if micro.get("exact") else ", with which BatchNorm or dropout give other numbers than whole batches"
        )
        found.append(f"micro-batches of {micro['size']}{cause}{differs}")
    return found


def seeds_note(table: Table) -> str:
    """The seeds, and the meaning of the printed spread."""
    spread = any(len(row.seeds) > 1 for row in table.rows)
    text = f"Seeds: {summarize_by_row(table.rows, lambda row: ', '.join(map(str, row.seeds)))}"
    if not spread:
        return text + " (no spread over seeds)."
    text += "; mean ± standard deviation over seeds (ddof 1)."
    names = column_titles(table.shown)
    short = [
        f"{row.name} ({row.checkpoint}), {names[column]}: {', '.join(map(str, cell.seeds))}"
        for row in table.rows
        for column, cell in row.cells.items()
        if cell.seeds != row.seeds
    ]
    return text + (f" Fewer seeds in {'; '.join(short)}." if short else "")


def selection_note(table: Table) -> str:
    """How the checkpoints in the table were selected."""
    kinds = {kind for row in table.rows for kind in row.checkpoints}
    rules = {_rule(row, kind) for row in table.rows for kind in kinds if kind in row.checkpoint}
    return "Checkpoints: " + "; ".join(SELECTION.get(rule, rule) for rule in sorted(rules)) + "."


def _rule(row: Row, kind: str) -> str:
    return "test" if kind == "best" and row.run.facts.get("selection") == "test" else kind


def noise_note(table: Table) -> str:
    """The NSD to expect from sampling alone, at the mean accuracy of each column."""
    names, floors = column_titles(table.shown), []
    for column in table.columns:
        cells = [row.cells[column] for row in table.rows if column in row.cells]
        floor = metrics.noise_floor(float(np.mean([cell.mean("average") for cell in cells])), cells[0].counts)
        if not np.isnan(floor):
            floors.append(f"{names[column]} {floor:.3f}")
    if not floors:
        return ""
    return f"Noise floor, the NSD from sampling alone if all classes were equally accurate: {', '.join(floors)}."


def stopped_note(table: Table) -> str:
    """Which evaluations were stopped early and give upper bounds."""
    names = column_titles(table.shown)
    stops = [
        f"{names[column]} of {row.name} ({row.checkpoint}) by {'; '.join(bound.reasons)}"
        for row in table.rows
        for column, bound in row.bounds.items()
    ]
    if not stops:
        return ""
    return (
        f"{UPPER_BOUND_SIGN}: an upper bound and no result. The evaluation was stopped before everything was attacked: "
        f"{'; '.join(stops)}."
    )


def old_revision_notes(rows: Sequence[Row], columns: Sequence[Column], names: Mapping[Column, str]) -> list[str]:
    """Which old revisions of attacks are left out in favour of newer ones, by column."""
    left_out: dict[str, list[str]] = {}
    for column in columns:
        for row in rows:
            if column in row.older_revisions:
                instead = " and ".join(map(str, row.older_revisions[column]))
                text = f"{names[column]}, revision {column.revision} instead of {instead}"
                left_out.setdefault(text, []).append(f"{row.name} ({row.checkpoint})")
    text = "; ".join(f"{change}, for {', '.join(names)}" for change, names in left_out.items())
    return [f"Evaluated under several revisions of an attack, of which the newest is shown: {text}."] if text else []


def sanity_notes(rows: Sequence[Row]) -> list[str]:
    """Results of the sanity checks; nothing if no row was checked."""
    flagged = [(row, row.sanity) for row in rows if row.sanity and row.sanity.mark != "reliable"]
    unchecked = [f"{row.name} ({row.checkpoint})" for row in rows if not row.sanity]
    if len(unchecked) == len(rows):
        return []
    notes = ["Sanity checks: no row shows signs of masked gradients."]
    if flagged:
        lead = "Sanity checks, signs that gradients are masked and robust accuracies too high"
        notes = [f"{lead}: † suspicious, ‡ unreliable; rows without a sign passed all."]
        notes += [f"{row.flagged_name} ({row.checkpoint}): {'; '.join(sanity.reasons)}." for row, sanity in flagged]
    return notes + ([f"Without sanity checks: {', '.join(unchecked)}."] if unchecked else [])


def environment_notes(rows: Sequence[Row]) -> list[str]:
    """In which environments rows were measured, where these differ; nothing if all agree in what they state."""
    names = differing(environment for row in rows for environment in _environments(row))
    if not names:
        return []
    text = summarize_by_row(rows, lambda row: environment_text(_environments(row), names))
    return [f"Environments differ, and numbers with them by rounding: {text}."]


def _environments(row: Row) -> Iterator[Environment]:
    """Those of its runs, every one if a run was resumed elsewhere, and of their evaluations."""
    for run in row.runs:
        yield from run.facts.get("environments") or [environment_of(run.facts)]
        for evaluation in run.evaluations:
            yield from evaluation.facts.get("environments") or [environment_of(evaluation.facts)]


def closing_notes(rows: Sequence[Row], columns: Sequence[Column], names: Mapping[Column, str]) -> list[str]:
    """Notes that every view of these rows and columns ends with."""
    return [*old_revision_notes(rows, columns, names), *environment_notes(rows), *sanity_notes(rows)]


def _teacher_note(table: Table) -> str:
    return " Teachers take no part in this." if any(row.is_teacher for row in table.rows) else ""


def _data(row: Row) -> dict[str, Any]:
    return row.run.facts.get("data") or {}


def summarize_by_row(rows: Sequence[Row], fact: Callable[[Row], str]) -> str:
    """Summarize a fact of all rows: once if they agree, else the commonest value first, others with their rows."""
    groups: dict[str, dict[str, None]] = {}
    for row in rows:
        groups.setdefault(fact(row), {})[row.name] = None
    common, *others = sorted(groups.items(), key=lambda group: -len(group[1]))
    return "; ".join([common[0], *(f"{value} for {', '.join(names)}" for value, names in others)])
