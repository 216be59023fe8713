"""Integrity check: no findings in a sound folder; each planted fault has one that names the file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bench.errors import UsageError
from bench.report import render, verify
from tests.helpers.trees import Spec, demo, write_run


def evaluation(run: Path, attack: str = "pgd") -> Path:
    return next(f.parent for f in run.glob("eval/*/eval.json") if json.loads(f.read_text())["attack"] == attack)


def edit(file: Path, **facts: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **facts}))


def test_a_sound_folder_has_no_findings(tmp_path: Path) -> None:
    demo(tmp_path, checkpoints=("best", "last"), subset={"autoattack": 10})
    for name, format in {"table.md": "markdown", "table.tex": "latex", "table.csv": "csv"}.items():
        (tmp_path / name).write_text(render(tmp_path, format=format))
    assert verify(tmp_path) == []


def flip_clean(run: Path) -> None:
    file = evaluation(run) / "outcomes.parquet"
    table = pq.read_table(file)
    values = table["clean"].to_pylist()
    wrong = next(i for i, (c, y) in enumerate(zip(values, table["label"].to_pylist(), strict=True)) if c != y)
    values[wrong] = (values[wrong] + 1) % 10
    values[wrong] = (values[wrong] + 1) % 10 if values[wrong] == table["label"][wrong].as_py() else values[wrong]
    pq.write_table(table.set_column(2, "clean", [values]), file)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "unfinished": (lambda run: (run / "done").unlink(), "not finished"),
    "failed": (
        lambda run: ((run / "done").unlink(), (run / "failed").write_text("loss is not finite")),
        "failed: loss is not finite",
    ),
    "weights": (lambda run: (run / "last.safetensors").write_bytes(b"other"), "its SHA-256 is not that of the weights"),
    "history": (lambda run: (run / "history.jsonl").write_text('{"epoch": 0}\n{'), r"history\.jsonl, line 2: expected"),
    "epochs": (lambda run: (run / "history.jsonl").write_text("{}\n"), r"expected 30 epochs, got 1"),
    "no history": (lambda run: (run / "history.jsonl").unlink(), r"history\.jsonl: missing"),
    "run.json": (lambda run: (run / "run.json").write_text("["), r"run\.json: expected JSON"),
    "key": (lambda run: edit(run / "run.json", key="0"), "the name of its folder, got 0"),
    "eval unfinished": (lambda run: (evaluation(run) / "done").unlink(), "not finished"),
    "eval.json": (lambda run: (evaluation(run) / "eval.json").write_text('{"classes": 10}'), "expected the entries"),
    "parquet": (lambda run: (evaluation(run) / "outcomes.parquet").write_bytes(b"PAR1"), "cannot be read"),
    "n": (lambda run: edit(evaluation(run) / "eval.json", n=7), "says n = 7, the outcomes have 400"),
    "attack": (lambda run: edit(evaluation(run) / "eval.json", attack="cw2"), "says attack 'cw2', the outcomes hold"),
    "stages": (
        lambda run: edit(evaluation(run, "autoattack") / "eval.json", stages=["apgd-ce", "more"]),
        "stages whose outcomes are missing: autoattack/more",
    ),
    "clean": (flip_clean, "labels or clean predictions differ"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found(tmp_path: Path, fault: str) -> None:
    plant, message = FAULTS[fault]
    run = write_run(tmp_path, Spec())
    write_run(tmp_path, Spec(method="ham"))
    assert verify(tmp_path) == []
    plant(run)
    findings = verify(tmp_path)
    assert [finding for finding in findings if str(run) in finding] == findings != []
    assert any(re.search(message, finding) for finding in findings), findings


def test_missing_weights_are_a_finding_unless_none_were_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path, Spec(checkpoints=("best", "last"), attacks={"pgd": 0.5}))
    (run / "best.safetensors").unlink()
    (finding,) = verify(tmp_path)
    assert "best.safetensors: missing" in finding
    (run / "last.safetensors").unlink()
    assert verify(tmp_path) == []


def test_a_table_that_was_changed_is_found(tmp_path: Path) -> None:
    write_run(tmp_path, Spec())
    (tmp_path / "table.md").write_text(render(tmp_path).replace("pgd_at", "ours"))
    (finding,) = verify(tmp_path)
    assert "table.md: differs from the table recomputed" in finding


def test_nothing_to_verify(tmp_path: Path) -> None:
    assert verify(tmp_path) == [f"{tmp_path}: expected at least one run, found none"]
    with pytest.raises(UsageError, match="no folder"):
        verify(tmp_path / "nowhere")
