"""Build tables from stored runs, filtered and sorted, and find rows by name.

A table holds the rows of one data set, model and threat model, and the teachers of its students, whatever their model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from attacks.plugins.registry import canonical
from bench.errors import UsageError
from bench.report.tables.columns import Column
from bench.report.tables.model import Row, Table
from bench.report.tables.rows import BEST, Threat, build_rows, drop_old_revisions, threat_of
from bench.results.outcomes import CLEAN
from bench.results.tree import ResultsFolders, Run, read_runs


class Filters(TypedDict, total=False):
    """The part of the results to report; see `build_tables`. None selects everything."""

    dataset: str | None
    methods: Sequence[str] | None
    checkpoint: str | None
    attacks: Sequence[str] | None


def build_tables(
    results: ResultsFolders,
    *,
    dataset: str | None = None,
    methods: Sequence[str] | None = None,
    checkpoint: str | None = None,
    attacks: Sequence[str] | None = None,
    runs: Sequence[Run] | None = None,
) -> list[Table]:
    """All tables of one or several results folders.

    Args:
        results: a results folder, or several.
        dataset: only this data set.
        methods: only these methods or row labels, in this order, and their teachers.
        checkpoint: only "last" or only "best".
        attacks: only these columns beside the clean one.
        runs: the runs of the folders, where they have been read already.

    Raises:
        UsageError: if nothing has been evaluated there, or nothing is left of it.
    """
    runs = [run for run in (read_runs(results) if runs is None else runs) if run.evaluations]
    if not runs:
        raise UsageError(
            f"report: no finished evaluation in {_folders_text(results)}; see `bench status` for what is missing"
        )
    if dataset is not None:
        runs = _select_runs(runs, "data set", "dataset", [dataset])
    chosen = runs if not methods else _select_runs(runs, "method", "method", methods)
    threats = _threats(runs)
    scopes = {(run.text("dataset"), threat) for run in chosen for threat in threats[run.path]}
    ordered = sorted(scopes, key=lambda scope: (scope[0], scope[1][0], scope[1][1] or -1.0))
    tables = [
        table
        for dataset, threat in ordered
        for table in _tables_of(
            dataset,
            threat,
            [run for run in chosen if threat in threats[run.path]],
            [run for run in runs if threat in threats[run.path]],
            checkpoint,
        )
    ]
    if not tables:
        raise UsageError(f"report: no evaluation of the checkpoint {checkpoint!r} in {_folders_text(results)}")
    if attacks:
        tables = _select_attacks(tables, attacks)
    return [_sort_rows(table, methods) for table in tables]


def _folders_text(results: ResultsFolders) -> str:
    return str(results) if isinstance(results, (str, Path)) else ", ".join(map(str, results))


def _select_runs(runs: list[Run], kind: str, fact: str, names: Sequence[str]) -> list[Run]:
    def spellings(run: Run) -> set[str]:
        return {canonical(run.text(fact))} | ({canonical(run.label)} if fact == "method" else set())

    known = {spelling for run in runs for spelling in spellings(run)}
    for name in names:
        if canonical(name) not in known:
            listed = ", ".join(sorted({run.text(fact) for run in runs}))
            raise UsageError(f"report: no results for the {kind} {name!r}; there are: {listed}")
    wanted = {canonical(name) for name in names}
    return [run for run in runs if spellings(run) & wanted]


def _threats(runs: Sequence[Run]) -> dict[Path, set[Threat]]:
    """Threat models each run was attacked with; without any, those of its data set, or none at all."""
    attacked = {
        run.path: {threat_of(evaluation) for evaluation in run.evaluations if evaluation.attack != CLEAN}
        for run in runs
    }
    of_dataset: dict[str, set[Threat]] = {}
    for run in runs:
        of_dataset.setdefault(run.text("dataset"), set()).update(attacked[run.path])
    return {run.path: attacked[run.path] or of_dataset[run.text("dataset")] or {("", None)} for run in runs}


def _tables_of(
    dataset: str, threat: Threat, chosen: Sequence[Run], runs: Sequence[Run], checkpoint: str | None
) -> Iterator[Table]:
    on_dataset = [run for run in chosen if run.text("dataset") == dataset]
    students = [run for run in on_dataset if not run.is_teacher] or on_dataset
    teacher_keys = {key for run in students for key in run.teacher_keys}
    unused_teachers = [run for run in on_dataset if run.is_teacher and run.key not in teacher_keys]
    for model in sorted({run.text("model") for run in students}):
        competing = [run for run in students if run.text("model") == model]
        keys = {key for run in competing for key in run.teacher_keys}
        teachers = [run for run in runs if run.key in keys]
        listed = {run.path: run for run in [*competing, *teachers, *unused_teachers]}
        built = build_rows(list(listed.values()), threat, model, {run.path for run in competing}, checkpoint)
        rows = drop_old_revisions(built)
        if rows:
            columns = sorted({column for row in rows for column in row.cells}, key=lambda column: column.order)
            yield Table(dataset, model, *threat, tuple(columns), tuple(rows))


def _select_attacks(tables: Sequence[Table], attacks: Sequence[str]) -> list[Table]:
    known = {column.attack for table in tables for column in table.shown}
    for name in attacks:
        if canonical(name) not in map(canonical, known):
            listed = ", ".join(sorted(known - {CLEAN}))
            raise UsageError(f"report: no results under the attack {name!r}; there are: {listed}")
    named = {canonical(name) for name in attacks}

    def narrow(table: Table) -> Table:
        rows = [replace(row, cells=_only(row.cells, named), bounds=_only(row.bounds, named)) for row in table.rows]
        return replace(table, columns=tuple(_only(dict.fromkeys(table.columns), named)), rows=tuple(
            row for row in rows if any(canonical(column.attack) in named for column in (*row.cells, *row.bounds))
        ))  # fmt: skip

    return [table for table in map(narrow, tables) if table.rows]


def _only(measured: Mapping[Column, Any], named: AbstractSet[str]) -> dict[Column, Any]:
    return {column: value for column, value in measured.items() if canonical(column.attack) in {CLEAN, *named}}


def _sort_rows(table: Table, methods: Sequence[str] | None) -> Table:
    """Sort rows: as in `methods`, else in the order of the registry, then by name; best before last, teachers last."""
    wanted = [canonical(name) for name in methods or ()]

    def sort_key(row: Row) -> tuple[Any, ...]:
        spellings = [canonical(row.run.label), canonical(row.run.text("method"))]
        place = min((wanted.index(name) for name in spellings if name in wanted), default=len(wanted))
        return row.is_teacher, place, _method_order(spellings[1]), row.name, row.checkpoint != BEST

    return replace(table, rows=tuple(sorted(table.rows, key=sort_key)))


def _method_order(method: str) -> tuple[int, int, str]:
    """Order of the registry; a composition comes after the method that it wraps."""
    from methods import METHODS

    names = [canonical(name) for name in METHODS.builtin]
    *wrappers, host = method.split(":")
    return (names.index(host) if host in names else len(names)), len(wrappers), method


def find_rows(table: Table, wanted: str, where: str) -> list[Row]:
    """Find rows of a table by row name, else by label, else by method.

    Args:
        table: the table.
        wanted: the name, optionally with a checkpoint: `absld@last`.
        where: what the sentence of an error begins with.

    Raises:
        UsageError: if several rows that differ in more than the checkpoint have this name.
    """
    name, _, checkpoint = wanted.partition("@")
    rows = [row for row in table.rows if not checkpoint or canonical(checkpoint) in row.checkpoints]
    for spellings in (
        [row.name for row in rows],
        [row.run.label for row in rows],
        [row.run.text("method") for row in rows],
    ):
        found = [row for row, text in zip(rows, spellings, strict=True) if canonical(text) == canonical(name)]
        students = [row for row in found if not row.is_teacher] or found
        if len({row.name for row in students}) > 1:
            listed = ", ".join(sorted({repr(row.name) for row in students}))
            raise UsageError(f"{where}: {wanted!r} means several rows; name one of {listed}")
        if students:
            return students
    return []
