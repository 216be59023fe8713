"""Notes on runs that were trained in micro-batches or over several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.report import render
from bench.report.tables.notes import batch_split_facts
from tests.helpers.trees import Spec, write_run

TWO = {"processes": {"count": 2, "batch_norm": "each process"}}
HALVED = {"size": 32, "asked": None, "out_of_memory_at": [0, 0]}
GIVEN = {"size": 32, "asked": 32, "out_of_memory_at": None}
WARNING = ", with which BatchNorm or dropout give other numbers than whole batches"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, []),
        ({"processes": {"count": 1, "batch_norm": None}, "micro_batch": None}, []),
        (TWO, ["2 processes with BatchNorm statistics of each process"]),
        ({"processes": {"count": 2, "batch_norm": "all processes"}},
         ["2 processes with BatchNorm statistics of all processes"]),
        ({"processes": {"count": 4, "batch_norm": None}}, ["4 processes"]),
        ({"micro_batch": {**GIVEN, "exact": True}}, ["micro-batches of 32"]),
        ({"micro_batch": {**HALVED, "exact": True}}, ["micro-batches of 32 since memory ran out"]),
        ({"micro_batch": {**HALVED, "exact": False}}, [f"micro-batches of 32 since memory ran out{WARNING}"]),
    ],
)  # fmt: skip
def test_facts_of_a_run(facts: dict[str, Any], said: list[str]) -> None:
    assert batch_split_facts(facts) == said


def test_the_note_names_the_rows_that_it_concerns(tmp_path: Path) -> None:
    write_run(tmp_path, Spec("trades"))
    write_run(tmp_path, Spec("pgd_at", facts={"micro_batch": {**HALVED, "exact": False}, **TWO}))
    text = render(tmp_path)
    whole = "1,197 samples, recipe digits, 30 epochs"
    cut = f"2 processes with BatchNorm statistics of each process, micro-batches of 32 since memory ran out{WARNING}"
    assert f"Training: {whole}, {cut} for pgd_at" in text or f"Training: {whole}, {cut}; {whole} for trades" in text


@pytest.mark.parametrize(
    ("facts", "rows"),
    [
        ({"micro_batch": {**HALVED, "exact": True}}, 1),
        ({"micro_batch": {**HALVED, "exact": False}}, 2),
        ({"micro_batch": {**GIVEN, "exact": True}}, 2),
        (TWO, 2),
    ],
)
def test_seeds_are_averaged_only_where_a_step_was_the_same(facts: dict[str, Any], rows: int, tmp_path: Path) -> None:
    write_run(tmp_path, Spec(seed=0))
    write_run(tmp_path, Spec(seed=1, facts=facts))
    lines = [line for line in render(tmp_path).splitlines() if line.startswith("| pgd_at")]
    assert len(lines) == rows
