"""The committed outcomes of the demo: its table follows from them, and the README shows that table."""

from __future__ import annotations

from pathlib import Path

from bench.report import load_results, render, verify
from methods import METHODS

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "digits"


def demonstrated() -> set[str]:
    """The methods of `make demo`."""
    line = next(
        line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if line.startswith("DEMO")
    )
    return set(line.partition("?=")[2].strip().split(","))


def test_the_table_is_recomputed_from_the_outcomes() -> None:
    assert render(REFERENCE).strip() == (REFERENCE / "table.md").read_text(encoding="utf-8").strip()


def test_the_readme_shows_that_table() -> None:
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line for line in (REFERENCE / "table.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(lines) > len(demonstrated())
    assert "\n".join(lines) in shown


def test_every_file_is_sound() -> None:
    assert verify(REFERENCE) == []


def test_no_method_and_no_attack_is_missing() -> None:
    frame = load_results(REFERENCE)
    assert {"clean", "fgsm", "pgd", "cw", "autoattack"} <= set(frame["attack"])
    assert demonstrated() == set(frame["method"]) <= set(METHODS.builtin)


def test_the_teacher_beats_plain_adversarial_training() -> None:
    average = load_results(REFERENCE).set_index(["role", "method", "attack"])["average"]
    ahead = average["teacher", "trades"] - average["student", "pgd_at"]
    assert ahead["autoattack"] > 0 and ahead["pgd"] >= 0


def test_weights_are_not_committed() -> None:
    assert not [*REFERENCE.rglob("*.safetensors"), *REFERENCE.rglob("*.pt")]
