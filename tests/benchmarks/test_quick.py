"""The comparison of autoattack-quick with the full ensemble: its bars, and a page at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import quick


def outcome(verdicts: str, passes: int, right: int = 10) -> dict[str, object]:
    return {"stages": {"last": verdicts}, "passes": {"forward": passes, "input_grad": passes}, "right": right}


def test_differences_are_counted_both_ways_and_passes_per_sample_that_is_right() -> None:
    found = quick.judged(outcome("1101000000", 1000), outcome("1010000000", 50))
    assert (found.full, found.quick) == (30.0, 20.0)
    assert (found.left_by_quick, found.left_by_full) == (1, 2)
    assert found.gap.mean == pytest.approx(-10)
    assert found.passes == (200, 10) and found.ratio == 20


@pytest.mark.parametrize(
    ("ours", "passes", "met"),
    [
        ("1" * 50 + "0" * 50, 100, True), ("1" * 50 + "0" * 50, 101, False),
        ("1" * 51 + "0" * 49, 100, True), ("1" * 57 + "0" * 43, 100, False), ("1" * 43 + "0" * 57, 100, False),
    ],
)  # fmt: skip
def test_a_bar_is_missed_by_many_passes_and_by_verdicts_beyond_chance(ours: str, passes: int, met: bool) -> None:
    assert quick.judged(outcome("1" * 50 + "0" * 50, 1000), outcome(ours, passes)).met is met


def test_a_page(weights: Path, tmp_path: Path) -> None:
    command = ["--checkpoint", str(weights), "--model", "small_cnn", "--dataset", "digits", "--checkpoint-eps", "1/10"]
    command += ["--steps", "2", "--targets", "2", "--queries", "3"]
    command += ["--samples", "10", "--seeds", "3", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path)]
    quick.main(command)
    page = (tmp_path / "quick.md").read_text()
    assert page.startswith("# autoattack-quick against autoattack\n")
    assert page.count("| digits, toy.safetensors, linf 0.1 | 3 |") == 1
    assert "Largest difference" in page
    assert len(list((tmp_path / "cache").glob("*.json"))) == 2
