"""Accuracy and class fairness of per-sample outcomes, with confidence intervals: arrays in, floats out.

`correct` (n,) bool says which test samples were classified right (under an attack: robustly), `y` (n,) their
labels in 0..K-1, and `a` (K,) the class accuracies as fractions. NSD is the standard deviation of the class
accuracies over their mean; lower is fairer. Its default divisor is K (`ddof=0`), as in NumPy.

Uncertainty: test samples are resampled within their classes, so every resample keeps the class sizes. The worst
class and the NSD are biased by sampling (the first downwards, the second upwards), and a resample repeats that
bias; intervals are therefore the reflected ones, [2t - q_high, 2t - q_low] around the estimate t, which subtract it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DRAWS = 2000
SEEDS = 0  # of the stream that picks training seeds
LEVEL = 0.95
# From this number of classes on, the worst class alone says little and `worst10` stands beside it.
MANY_CLASSES = 20


class Interval(NamedTuple):
    """A two-sided interval, in the unit of the statistic."""

    low: float
    high: float


@dataclass(frozen=True)
class McNemar:
    """The exact McNemar test of two models on the same samples.

    Attributes:
        only_a: samples that only the first model gets right.
        only_b: samples that only the second model gets right.
        p_value: two-sided; 1 if the models never disagree.
    """

    only_a: int
    only_b: int
    p_value: float


@dataclass(frozen=True)
class Difference:
    """A statistic of the first model minus that of the second, with its interval."""

    estimate: float
    interval: Interval

    @property
    def settled(self) -> bool:
        """Whether the interval leaves out zero, so that the samples tell the two models apart."""
        return self.interval.low > 0 or self.interval.high < 0


def class_counts(y: npt.ArrayLike, num_classes: int, class_names: Sequence[str] | None = None) -> Ints:
    """Number of samples of each class, (K,).

    Raises:
        ValueError: if a label is out of range, or a class has no sample (the message names it).
    """
    labels = np.asarray(y)
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        found = f"{labels.min()} to {labels.max()}"
        raise ValueError(f"class_accuracy: expected labels in 0..{num_classes - 1}, got {found}; check num_classes")
    counts = np.bincount(labels.astype(np.int64), minlength=num_classes)
    if not counts.all():
        empty = int(np.flatnonzero(counts == 0)[0])
        name = f" ({class_names[empty]})" if class_names is not None else ""
        raise ValueError(
            f"class_accuracy: class {empty}{name} has no sample in {labels.size:,}; use a stratified part of the test"
        )
    return counts


def class_accuracy(
    correct: npt.ArrayLike, y: npt.ArrayLike, num_classes: int, class_names: Sequence[str] | None = None
) -> Floats:
    """Accuracy of each class, (K,), from `correct` (n,) bool and labels `y` (n,).

    >>> class_accuracy([True, True, False, True], [0, 0, 1, 1], num_classes=2).tolist()
    [1.0, 0.5]

    Raises:
        ValueError: if the shapes differ, a label is out of range, or a class has no sample.
    """
    right, labels = np.asarray(correct, dtype=bool), np.asarray(y)
    if right.ndim != 1 or right.shape != labels.shape:
        raise ValueError(f"class_accuracy: expected correct and y of shape (n,), got {right.shape} and {labels.shape}")
    counts = class_counts(labels, num_classes, class_names)
    return np.bincount(labels[right], minlength=num_classes) / counts


def average(correct: npt.ArrayLike) -> float:
    """Accuracy over the samples, classes weighted by their size.

    Raises:
        ValueError: if there is no sample.
    """
    right = np.asarray(correct, dtype=bool)
    if not right.size:
        raise ValueError("average: expected at least one sample, got none")
    return float(right.mean())


def worst(a: npt.ArrayLike) -> float:
    """Accuracy of the worst class, from class accuracies (K,).

    >>> worst([0.75, 0.25, 0.5])
    0.25
    """
    return float(_vector("worst", a).min())


def nsd(a: npt.ArrayLike, ddof: int = 0) -> float:
    """Normalised standard deviation: standard deviation of the class accuracies over their mean.

    NaN if the mean is 0.

    >>> nsd([0.25, 0.75])
    0.5

    Args:
        a: class accuracies (K,).
        ddof: 0 divides by K, 1 by K - 1; the two differ by sqrt(K / (K - 1)).
    """
    return float(_nsd(_vector("nsd", a), ddof=ddof))


def worst10(a: npt.ArrayLike) -> float:
    """Mean accuracy of the lowest tenth of the classes, ceil(K / 10) of them."""
    return float(_worst10(_vector("worst10", a)))


def gap(a: npt.ArrayLike) -> float:
    """Best class minus worst class."""
    return float(np.ptp(_vector("gap", a)))


def noise_floor(accuracy: float, counts: npt.ArrayLike) -> float:
    """NSD (ddof 0) to expect from sampling alone if every class had the same true accuracy.

    A class of n_k samples has standard error sqrt(p (1 - p) / n_k), so NSD is about sqrt((1 - p) / (p n_k)). For few
    classes the expected standard deviation of K normal values is lower than its root mean square; the factor
    sqrt(2 / K) Gamma(K / 2) / Gamma((K - 1) / 2) holds for ddof 0.

    Args:
        accuracy: the common accuracy p, a fraction; 0 gives NaN.
        counts: samples of each class (K,).
    """
    sizes = np.asarray(counts, dtype=np.float64)
    if not 0 < accuracy <= 1 or sizes.size < 2:
        return 0.0 if sizes.size == 1 and accuracy > 0 else math.nan
    k = sizes.size
    few = math.sqrt(2 / k) * math.exp(math.lgamma(k / 2) - math.lgamma((k - 1) / 2))
    return few * math.sqrt((1 - accuracy) / accuracy * float(np.mean(1 / sizes)))


def _vector(where: str, a: npt.ArrayLike) -> Floats:
    values = np.asarray(a, dtype=np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{where}: expected class accuracies of shape (K,), got {values.shape}")
    return values


def _nsd(a: Floats, ddof: int = 0) -> Floats:
    mean = a.mean(axis=-1)
    spread: Floats = np.divide(a.std(axis=-1, ddof=ddof), mean, out=np.full_like(mean, np.nan), where=mean > 0)
    return spread


def _worst10(a: Floats) -> Floats:
    lowest = math.ceil(a.shape[-1] / 10)
    return np.asarray(np.partition(a, lowest - 1, axis=-1)[..., :lowest].mean(axis=-1))


# Name -> function of class accuracies (..., K) and class sizes (K,); leading axes (draws, models) are kept.
STATISTICS: Mapping[str, Callable[[Floats, Ints], Floats]] = {
    "average": lambda a, counts: np.asarray(a @ (counts / counts.sum())),
    "worst": lambda a, counts: np.asarray(a.min(axis=-1)),
    "nsd": lambda a, counts: _nsd(a),
    "worst10": lambda a, counts: _worst10(a),
    "gap": lambda a, counts: np.asarray(np.ptp(a, axis=-1)),
}


def higher_is_better(statistic: str) -> bool:
    """Whether a larger value of this statistic is the better one."""
    return statistic not in ("nsd", "gap")


def bootstrap(
    correct: npt.ArrayLike,
    y: npt.ArrayLike,
    num_classes: int,
    *,
    generator: np.random.Generator,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Intervals of all statistics for one model, from resampling the test samples within their classes.

    Resampling n_k outcomes of which a share a_k is right is a binomial draw, so nothing is resampled one by one.
    """
    counts = class_counts(y, num_classes)
    a = class_accuracy(correct, y, num_classes)
    resampled = generator.binomial(counts, a, size=(draws, num_classes)) / counts
    return {name: reflected_interval(f(a, counts), f(resampled, counts), name, level) for name, f in STATISTICS.items()}


def resample(
    correct: npt.ArrayLike, y: npt.ArrayLike, num_classes: int, *, generator: np.random.Generator, draws: int = DRAWS
) -> Floats:
    """Class accuracies of several models on the same resamples of the test set.

    Every draw takes the same samples for all models, so differences between models are paired. What is drawn
    depends on `y` and the generator only, not on how many models there are.

    Args:
        correct: (M, n) bool, one row per model.
        y: labels (n,).
        num_classes: K.
        generator: source of the draws.
        draws: number of resamples D.

    Returns:
        (D, M, K) fractions.
    """
    right, labels = np.asarray(correct, dtype=np.float32), np.asarray(y)
    counts = class_counts(labels, num_classes)
    order = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    accuracy = np.empty((draws, right.shape[0], num_classes))
    for k, (members, size) in enumerate(zip(order, counts, strict=True)):
        drawn = generator.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
        times = np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size)
        # Counts are exact in float32; a quotient is not, and NumPy 1 would divide in the type of the counts.
        accuracy[:, :, k] = (times.astype(np.float32) @ right[:, members].T).astype(np.float64) / size
    return accuracy


def mcnemar(a: npt.ArrayLike, b: npt.ArrayLike) -> McNemar:
    """Exact two-sided McNemar test; `a` and `b` (n,) bool say which samples each model gets right.

    Raises:
        ValueError: if the two do not cover the same samples.
    """
    from scipy.stats import binom

    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"mcnemar: expected outcomes on the same samples, got {first.shape} and {second.shape}")
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    p_value = min(1.0, 2 * float(binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)))
    return McNemar(only_a, only_b, p_value)


def paired_bootstrap(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    y: npt.ArrayLike,
    num_classes: int,
    *,
    generator: np.random.Generator,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> dict[str, Difference]:
    """Differences of all statistics, first model minus second, on the same samples.

    Args:
        a: (n,) or (S, n) bool: outcomes of the first model, or of its S training seeds.
        b: the same for the second model; its number of seeds may differ.
        y: labels (n,).
        num_classes: K.
        generator: source of the draws.
        draws: number of resamples.
        level: coverage of the intervals.
    """
    first, second = np.atleast_2d(np.asarray(a, dtype=bool)), np.atleast_2d(np.asarray(b, dtype=bool))
    counts = class_counts(y, num_classes)
    both = np.concatenate([first, second])
    resampled = resample(both, y, num_classes, generator=generator, draws=draws)
    exact = np.stack([class_accuracy(row, y, num_classes) for row in both])
    split = len(first)
    return {
        name: difference(
            (f(exact[:split], counts), f(resampled[:, :split], counts)),
            (f(exact[split:], counts), f(resampled[:, split:], counts)),
            level,
        )
        for name, f in STATISTICS.items()
    }


def resample_seeds(first: int, second: int, *, draws: int = DRAWS) -> tuple[Ints, Ints]:
    """Resampled positions of the training seeds of two models, (draws, S) each; shared if S is equal.

    They have a fixed random stream, so that the interval between two models is the same wherever they are compared.
    """
    generator = np.random.default_rng(SEEDS)
    one = generator.integers(first, size=(draws, first))
    return one, one if first == second else generator.integers(second, size=(draws, second))


def difference(a: tuple[Floats, Floats], b: tuple[Floats, Floats], level: float = LEVEL) -> Difference:
    """Mean over seeds of a statistic, first model minus second.

    Args:
        a: the statistic of the first model: exact (S,) and resampled (D, S).
        b: the same of the second model.
        level: coverage of the interval.
    """
    picks = resample_seeds(len(a[0]), len(b[0]), draws=len(a[1]))
    estimate = float(a[0].mean() - b[0].mean())
    resampled = [
        np.take_along_axis(draws, pick, axis=1).mean(axis=1) for (_, draws), pick in zip((a, b), picks, strict=True)
    ]
    return Difference(estimate, reflected_interval(np.asarray(estimate), resampled[0] - resampled[1], None, level))


def reflected_interval(estimate: Floats, resampled: Floats, statistic: str | None, level: float = LEVEL) -> Interval:
    """The reflected bootstrap interval of an estimate, cut to the range of the statistic (None: a difference)."""
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(estimate) or not resampled.size:
        return Interval(math.nan, math.nan)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    bounds = (-math.inf, math.inf) if statistic is None else (0.0, math.inf if statistic == "nsd" else 1.0)
    ends = np.clip([2 * estimate - high, 2 * estimate - low], *bounds)
    # Rounding takes off what floating-point sums add to an exact zero, which decides whether a difference is settled;
    # adding zero takes off its sign.
    return Interval(round(float(ends[0]), 12) + 0.0, round(float(ends[1]), 12) + 0.0)
