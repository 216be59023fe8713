"""The committed outcomes: the tables follow from them, and the pages beside them show those tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.report import against, gains, load_results, render, verify
from methods import METHODS
from methods.registry import COMPOSITIONS

TABLES = Path(__file__).parents[3] / "results" / "reference"
REFERENCE = TABLES / "digits"
both = pytest.mark.parametrize("folder", [REFERENCE, TABLES / "cifar10"], ids=lambda folder: folder.name)


@both
def test_the_table_is_recomputed_from_the_outcomes(folder: Path) -> None:
    assert render(folder).strip() == (folder / "table.md").read_text(encoding="utf-8").strip()


def test_published_figures_stand_beside_those_on_cifar10() -> None:
    folder = TABLES / "cifar10"
    assert against(folder, "rslad").strip() == (folder / "against_rslad.md").read_text(encoding="utf-8").strip()


@both
@pytest.mark.parametrize("baseline", ["trades", "rslad"])
def test_gains_over_a_baseline_are_recomputed_as_well(folder: Path, baseline: str) -> None:
    text = gains(folder, baseline, attacks=["pgd", "autoattack"])
    assert text.strip() == (folder / f"over_{baseline}.md").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize(
    ("folder", "attacks"),
    [(REFERENCE, ["autoattack"]), (TABLES / "cifar10", ["pgd", "autoattack"])],
    ids=["digits", "cifar10"],
)
def test_the_page_shows_the_table(folder: Path, attacks: list[str]) -> None:
    shown = (folder / "README.md").read_text(encoding="utf-8")
    lines = [line for line in render(folder, attacks=attacks).splitlines() if line.startswith("|")]
    assert len(lines) > 9
    assert "\n".join(lines) in shown


@both
def test_every_file_is_sound(folder: Path) -> None:
    assert verify(folder) == []


def test_on_cifar10_every_class_keeps_some_robustness() -> None:
    """PGD-20 after PGD-AT: at least a quarter on average, and a worst class above zero."""
    frame = load_results(TABLES / "cifar10")
    (row,) = frame[frame["method"].eq("pgd_at") & frame["attack"].eq("pgd")].itertuples()
    assert row.average >= 0.25 and row.worst > 0


@both
def test_no_method_and_no_attack_is_missing(folder: Path) -> None:
    frame = load_results(folder)
    students = frame[frame["role"].eq("student")]
    assert set(METHODS.builtin) <= set(students["method"])
    for _, row in students.groupby("label"):
        assert {"clean", "fgsm", "pgd", "cw", "autoattack"} <= set(row["attack"])


def test_digits_have_every_composition_and_three_seeds() -> None:
    frame = load_results(REFERENCE)
    students = frame[frame["role"].eq("student")]
    assert {name.partition(":")[0] for name in students["method"] if ":" in name} == set(COMPOSITIONS.builtin)
    assert all(set(row["seed"]) == {0, 1, 2} for _, row in students.groupby("label"))


def test_the_teacher_beats_plain_adversarial_training() -> None:
    average = load_results(REFERENCE).groupby(["role", "method", "attack"])["average"].mean()
    ahead = average["teacher", "trades"] - average["student", "pgd_at"]
    assert ahead["autoattack"] > 0 and ahead["pgd"] >= 0


def test_weights_are_not_committed() -> None:
    assert not [*TABLES.rglob("*.safetensors"), *TABLES.rglob("*.pt")]
