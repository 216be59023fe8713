"""Acceptance criteria of the parity benchmark, as functions of verdicts, norms and counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POINTS = 0.1  # how much more robust, in points, native may leave a model, beside chance
ERRORS = 2.0  # standard errors that count as chance
SHARE = 0.02  # how far norms and passes may be apart

Verdicts = NDArray[np.bool_]


@dataclass(frozen=True)
class Gap:
    """The difference of two mean robust accuracies on the same samples.

    Attributes:
        mean: native minus reference, in points.
        error: its standard error over samples, in points; a sample's difference is the mean over seeds.
    """

    mean: float
    error: float

    @property
    def met(self) -> bool:
        """Whether native is at most 0.1 points plus two standard errors weaker."""
        return self.mean <= POINTS + ERRORS * self.error


def accuracies(robust: Verdicts) -> list[float]:
    """Robust accuracy of each seed in percent, from verdicts (seeds, n)."""
    return [float(share) * 100 for share in robust.mean(1)]


def gap(native: Verdicts, reference: Verdicts) -> Gap:
    """Compare verdicts (seeds, n) of both sides on the same samples.

    Raises:
        ValueError: if there are no samples, or not the same number on both sides.
    """
    if native.shape[1] != reference.shape[1] or native.shape[1] == 0:
        raise ValueError(
            f"gap: expected verdicts on the same samples, got {native.shape[1]} and {reference.shape[1]}; "
            "attack the same samples, at least one"
        )
    difference = (native.mean(0) - reference.mean(0)) * 100
    n = len(difference)
    error = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Gap(float(difference.mean()), error)


def ratio(native: float, reference: float) -> float:
    """Native over reference, neither negative: 1 where both are zero or both infinite."""
    if native == reference:
        return 1.0
    return native / reference if reference > 0 else math.inf


def near(native: float, reference: float, share: float = SHARE) -> bool:
    """Whether two figures agree within a share of the reference."""
    return abs(ratio(native, reference) - 1) <= share


def passes_agree(native: Mapping[str, float], reference: Mapping[str, float], *, fewer_forwards: bool = False) -> bool:
    """Whether passes per sample agree within 2 %, forward and input-gradient alike.

    Args:
        native: "forward" and "input_grad" per sample.
        reference: likewise.
        fewer_forwards: native may need fewer forwards (FAB, whose check and next gradient can be one pass).
    """
    forwards = near(native["forward"], reference["forward"])
    forwards |= fewer_forwards and native["forward"] < reference["forward"]
    return forwards and near(native["input_grad"], reference["input_grad"])
