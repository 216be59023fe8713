"""The bars of the benchmarks, against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks import bars

NAN = math.nan


def test_equal_verdicts_leave_no_gap() -> None:
    robust = np.array([[True, False, True]])
    assert bars.gap(robust, robust) == bars.Gap(0.0, 0.0)
    assert bars.gap(robust, robust).met


def test_gap_and_its_error_over_samples() -> None:
    native = np.array([[True, True, False, False], [True, True, True, False]])
    reference = np.array([[True, False, False, False], [True, False, False, False]])
    gap = bars.gap(native, reference)  # differences per sample, mean over seeds: 0, 100, 50, 0 points
    assert gap.mean == pytest.approx(37.5)
    assert gap.error == pytest.approx(math.sqrt((37.5**2 + 62.5**2 + 12.5**2 + 37.5**2) / 3) / 2)


def test_seeds_need_not_be_as_many_but_samples_must_be_the_same() -> None:
    assert bars.gap(np.ones((1, 2), bool), np.ones((5, 2), bool)).mean == 0
    with pytest.raises(ValueError, match="2 and 3"):
        bars.gap(np.ones((1, 2), bool), np.ones((1, 3), bool))
    with pytest.raises(ValueError, match="at least one"):
        bars.gap(np.ones((1, 0), bool), np.ones((1, 0), bool))


@pytest.mark.parametrize(
    ("mean", "error", "met"),
    [(0.1, 0.0, True), (0.11, 0.0, False), (0.3, 0.1, True), (0.31, 0.1, False), (-5.0, 0.0, True), (9.0, NAN, False)],
)
def test_only_a_weaker_native_side_misses_the_bar(mean: float, error: float, met: bool) -> None:
    assert bars.Gap(mean, error).met is met


def test_accuracies_by_seed() -> None:
    assert bars.accuracies(np.array([[True, False], [True, True]])) == [50.0, 100.0]


@pytest.mark.parametrize(
    ("native", "reference", "ratio", "near"),
    [
        (1.019, 1.0, 1.019, True), (1.021, 1.0, 1.021, False), (0.981, 1.0, 0.981, True), (0.979, 1.0, 0.979, False),
        (0.0, 0.0, 1.0, True), (math.inf, math.inf, 1.0, True), (math.inf, 1.0, math.inf, False),
        (1.0, math.inf, 0.0, False), (1.0, 0.0, math.inf, False),
    ],
)  # fmt: skip
def test_ratios(native: float, reference: float, ratio: float, near: bool) -> None:
    assert bars.ratio(native, reference) == pytest.approx(ratio)
    assert bars.near(native, reference) is near


def test_passes_agree_in_both_kinds() -> None:
    reference = {"forward": 200.0, "input_grad": 100.0}
    assert bars.passes_agree({"forward": 198.0, "input_grad": 99.0}, reference)
    assert not bars.passes_agree({"forward": 100.0, "input_grad": 100.0}, reference)
    assert bars.passes_agree({"forward": 100.0, "input_grad": 100.0}, reference, fewer_forwards=True)
    assert not bars.passes_agree({"forward": 300.0, "input_grad": 100.0}, reference, fewer_forwards=True)
    assert not bars.passes_agree({"forward": 100.0, "input_grad": 50.0}, reference, fewer_forwards=True)
