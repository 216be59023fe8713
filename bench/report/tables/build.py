"""Which rows stand in one table.

Rows stand together if they agree in data set, model and threat model; the teachers of its students stand there as
well, whatever their model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from attacks.plugins.registry import canonical
from bench.errors import UsageError
from bench.report.tables.cells import Row, Table
from bench.report.tables.columns import Column
from bench.report.tables.rows import BEST, Threat, build_rows, newest_alone, threat_of
from bench.results.outcomes import CLEAN
from bench.results.tree import Roots, Run, read_runs


class Filters(TypedDict, total=False):
    """Which part of the results a report is on; see `build_tables`. None restricts nothing."""

    dataset: str | None
    methods: Sequence[str] | None
    checkpoint: str | None
    attacks: Sequence[str] | None


def build_tables(
    results: Roots,
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
        methods: only these methods or row labels, in this order; the teachers of what remains stay.
        checkpoint: only "last" or only "best".
        attacks: only these columns beside the clean one.
        runs: the runs of the folders, where they have been read already.

    Raises:
        UsageError: if nothing has been evaluated there, or nothing is left of it.
    """
    runs = [run for run in (read_runs(results) if runs is None else runs) if run.evaluations]
    if not runs:
        raise UsageError(
            f"report: no finished evaluation in {_places(results)}; see `bench status` for what is missing"
        )
    if dataset is not None:
        runs = _keep(runs, "data set", "dataset", [dataset])
    chosen = runs if not methods else _keep(runs, "method", "method", methods)
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
        raise UsageError(f"report: no evaluation of the checkpoint {checkpoint!r} in {_places(results)}")
    if attacks:
        tables = _with_attacks(tables, attacks)
    return [_ordered(table, methods) for table in tables]


def _places(results: Roots) -> str:
    return str(results) if isinstance(results, (str, Path)) else ", ".join(map(str, results))


def _keep(runs: list[Run], kind: str, fact: str, names: Sequence[str]) -> list[Run]:
    def spellings(run: Run) -> set[str]:
        return {canonical(run.text(fact))} | ({canonical(run.label)} if fact == "method" else set())

    there = {spelling for run in runs for spelling in spellings(run)}
    for name in names:
        if canonical(name) not in there:
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
    here = [run for run in chosen if run.text("dataset") == dataset]
    students = [run for run in here if not run.is_teacher] or here
    busy = {key for run in students for key in run.teacher_keys}
    idle = [run for run in here if run.is_teacher and run.key not in busy]
    for model in sorted({run.text("model") for run in students}):
        own = [run for run in students if run.text("model") == model]
        keys = {key for run in own for key in run.teacher_keys}
        teachers = [run for run in runs if run.key in keys]
        listed = {run.path: run for run in [*own, *teachers, *idle]}
        built = build_rows(list(listed.values()), threat, model, {run.path for run in own}, checkpoint)
        rows = newest_alone(built)
        if rows:
            columns = sorted({column for row in rows for column in row.cells}, key=lambda column: column.order)
            yield Table(dataset, model, *threat, tuple(columns), tuple(rows))


def _with_attacks(tables: Sequence[Table], attacks: Sequence[str]) -> list[Table]:
    there = {column.attack for table in tables for column in table.shown}
    for name in attacks:
        if canonical(name) not in map(canonical, there):
            listed = ", ".join(sorted(there - {CLEAN}))
            raise UsageError(f"report: no results under the attack {name!r}; there are: {listed}")
    named = {canonical(name) for name in attacks}

    def narrowed(table: Table) -> Table:
        rows = [replace(row, cells=_only(row.cells, named), bounds=_only(row.bounds, named)) for row in table.rows]
        return replace(table, columns=tuple(_only(dict.fromkeys(table.columns), named)), rows=tuple(
            row for row in rows if any(canonical(column.attack) in named for column in (*row.cells, *row.bounds))
        ))  # fmt: skip

    return [table for table in map(narrowed, tables) if table.rows]


def _only(measured: Mapping[Column, Any], named: AbstractSet[str]) -> dict[Column, Any]:
    return {column: found for column, found in measured.items() if canonical(column.attack) in {CLEAN, *named}}


def _ordered(table: Table, methods: Sequence[str] | None) -> Table:
    """Rows in a fixed order: as asked for, else by name; the better known checkpoint order; teachers at the end."""
    asked = [canonical(name) for name in methods or ()]

    def place(row: Row) -> tuple[Any, ...]:
        spellings = [canonical(row.run.label), canonical(row.run.text("method"))]
        wish = min((asked.index(name) for name in spellings if name in asked), default=len(asked))
        return row.is_teacher, wish, _method_place(spellings[1]), row.name, row.checkpoint != BEST

    return Table(table.dataset, table.model, table.norm, table.eps, table.columns, tuple(sorted(table.rows, key=place)))


def _method_place(method: str) -> tuple[int, int, str]:
    """A composition stands behind the method that it wraps."""
    from methods import METHODS

    names = [canonical(name) for name in METHODS.builtin]
    *wrappers, host = method.split(":")
    return (names.index(host) if host in names else len(names)), len(wrappers), method
