"""Metrics: values worked out by hand, invariances, published class vectors, and intervals against known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from bench import metrics

# FAAL (CVPR 2024), the authors' evaluation logs: class accuracies on CIFAR-10, PreActResNet-18, and the average and
# worst class that the logs themselves print.
FAAL = {
    "AT, clean": ([0.825, 0.906, 0.703, 0.799, 0.836, 0.659, 0.798, 0.77, 0.894, 0.875], 0.8065, 0.659),
    "AT, PGD-20": ([0.537, 0.665, 0.363, 0.458, 0.439, 0.395, 0.416, 0.468, 0.581, 0.561], 0.4883, 0.363),
    "AT, CW": ([0.519, 0.664, 0.339, 0.403, 0.364, 0.388, 0.389, 0.453, 0.566, 0.549], 0.4634, 0.339),
    "AT, AutoAttack": ([0.524, 0.678, 0.311, 0.318, 0.339, 0.369, 0.376, 0.468, 0.592, 0.576], 0.4551, 0.311),
    "TRADES, AutoAttack": ([0.552, 0.692, 0.316, 0.288, 0.299, 0.363, 0.384, 0.488, 0.546, 0.582], 0.4510, 0.288),
}


def sample(accuracies: list[float], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes with exactly these class accuracies."""
    y = np.repeat(np.arange(len(accuracies)), size)
    correct = np.concatenate([np.arange(size) < round(a * size) for a in accuracies])
    return correct, y


def test_by_hand() -> None:
    y = [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    correct = [1, 1, 1, 0, 1, 0, 0, 0, 0, 1]
    a = metrics.class_accuracy(correct, y, 3)
    assert a.tolist() == [0.75, 0.5, 0.25]
    assert metrics.average(correct) == 0.5
    assert metrics.worst(a) == 0.25
    assert metrics.gap(a) == 0.5
    assert metrics.worst10(a) == 0.25
    # Deviations 0.25, 0, -0.25: variance 0.125 / 3 with ddof 0, 0.125 / 2 with ddof 1, over the mean 0.5.
    assert metrics.nsd(a) == pytest.approx(math.sqrt(0.125 / 3) / 0.5, rel=1e-12)
    assert metrics.nsd(a, ddof=1) == pytest.approx(0.5, rel=1e-12)


def test_average_weighs_samples_and_nsd_weighs_classes() -> None:
    y = np.array([0] * 9 + [1])
    correct = np.array([True] * 9 + [False])
    a = metrics.class_accuracy(correct, y, 2)
    assert metrics.average(correct) == 0.9
    assert metrics.nsd(a) == 1.0


def test_worst10_rounds_the_tenth_up() -> None:
    a = np.arange(25) / 100
    assert metrics.worst10(a[::-1]) == pytest.approx((0.00 + 0.01 + 0.02) / 3)


@pytest.mark.parametrize("name", FAAL)
def test_published_class_vectors(name: str) -> None:
    a, average, worst = FAAL[name]
    correct, y = sample(a, 1000)
    found = metrics.class_accuracy(correct, y, 10)
    assert found.tolist() == a
    assert metrics.average(correct) == pytest.approx(average, abs=5e-5)
    assert metrics.worst(found) == worst
    mean = sum(a) / 10
    for ddof in (0, 1):
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in a) / (10 - ddof))
        assert metrics.nsd(found, ddof) == pytest.approx(spread / mean, rel=1e-9)


def test_published_autoattack_nsd_by_divisor() -> None:
    a = FAAL["AT, AutoAttack"][0]
    assert round(metrics.nsd(a), 3) == 0.273
    assert round(metrics.nsd(a, ddof=1), 3) == 0.288


def test_invariances() -> None:
    rng = np.random.default_rng(3)
    y = np.repeat(np.arange(7), 30)
    correct = rng.random(len(y)) < np.linspace(0.2, 0.9, 7)[y]
    a = metrics.class_accuracy(correct, y, 7)
    order, names = rng.permutation(len(y)), rng.permutation(7)
    np.testing.assert_array_equal(metrics.class_accuracy(correct[order], y[order], 7), a)
    relabelled = metrics.class_accuracy(correct, names[y], 7)
    for function in (metrics.worst, metrics.nsd, metrics.worst10, metrics.gap):
        assert function(relabelled) == pytest.approx(function(a), rel=1e-12)
    assert metrics.worst(a) <= metrics.average(correct)
    assert metrics.nsd(0.37 * a) == pytest.approx(metrics.nsd(a), rel=1e-12)
    assert metrics.nsd(np.full(7, 0.3)) == pytest.approx(0, abs=1e-12)


def test_mean_zero_is_nan_without_a_warning() -> None:
    assert math.isnan(metrics.nsd(np.zeros(4)))
    assert math.isnan(metrics.noise_floor(0.0, [10, 10]))


def test_an_empty_class_is_named() -> None:
    with pytest.raises(ValueError, match=r"class 1 \(cat\) has no sample in 3; use"):
        metrics.class_accuracy([True, False, True], [0, 0, 2], 3, ["dog", "cat", "cow"])


@pytest.mark.parametrize(
    ("correct", "y", "message"),
    [
        ([True], [0, 1], r"shape \(n,\), got \(1,\) and \(2,\)"),
        ([True, True], [0, 2], r"labels in 0\.\.1, got 0 to 2"),
        ([True, True], [-1, 1], r"labels in 0\.\.1, got -1 to 1"),
    ],
)
def test_wrong_input_is_refused(correct: list[bool], y: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.class_accuracy(correct, y, 2)


def test_nothing_has_no_average_and_no_worst() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        metrics.average([])
    with pytest.raises(ValueError, match=r"shape \(K,\)"):
        metrics.worst([])


@pytest.mark.parametrize(("classes", "size", "accuracy", "stated"), [(10, 1000, 0.3, 0.045), (100, 100, 0.3, 0.15)])
def test_noise_floor_against_simulation(classes: int, size: int, accuracy: float, stated: float) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.binomial(size, accuracy, size=(2000, classes)) / size
    simulated = float((drawn.std(axis=1) / drawn.mean(axis=1)).mean())
    floor = metrics.noise_floor(accuracy, np.full(classes, size))
    assert floor == pytest.approx(simulated, rel=0.02)
    assert floor == pytest.approx(stated, rel=0.03)


def test_bootstrap_covers_the_truth() -> None:
    rng = np.random.default_rng(11)
    truth = np.linspace(0.4, 0.9, 10)
    y = np.repeat(np.arange(10), 200)
    known = {"average": truth.mean(), "worst": truth.min(), "nsd": metrics.nsd(truth)}
    hits = dict.fromkeys(known, 0)
    trials = 300
    for _ in range(trials):
        correct = rng.random(len(y)) < truth[y]
        intervals = metrics.bootstrap(correct, y, 10, generator=rng, draws=400)
        for name, value in known.items():
            hits[name] += intervals[name].low <= value <= intervals[name].high
    coverage = {name: count / trials for name, count in hits.items()}
    assert 0.91 <= coverage["average"] <= 0.98, coverage
    assert 0.89 <= coverage["worst"] <= 0.99, coverage
    assert 0.89 <= coverage["nsd"] <= 0.99, coverage


def test_reflected_intervals_cover_the_worst_class_where_samples_are_few() -> None:
    rng = np.random.default_rng(12)
    y = np.repeat(np.arange(10), 40)
    hits = 0
    for _ in range(200):
        interval = metrics.bootstrap(rng.random(len(y)) < 0.8, y, 10, generator=rng, draws=300)["worst"]
        hits += interval.low <= 0.8 <= interval.high
    assert hits / 200 >= 0.85


def test_bootstrap_is_narrower_within_classes_than_across_them() -> None:
    correct, y = sample([1.0, 0.0], 100)
    interval = metrics.bootstrap(correct, y, 2, generator=np.random.default_rng(0))["average"]
    assert interval == (0.5, 0.5)


def test_bootstrap_repeats_with_its_generator() -> None:
    correct, y = sample([0.3, 0.8, 0.5], 40)
    first, again, other = (
        metrics.bootstrap(correct, y, 3, generator=np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


def test_resample_keeps_class_sizes_and_pairs_models() -> None:
    rng = np.random.default_rng(2)
    y = rng.permutation(np.repeat(np.arange(4), 25))
    a = rng.random(100) < 0.6
    drawn = metrics.resample(np.stack([a, a, ~a]), y, 4, generator=np.random.default_rng(0), draws=500)
    assert drawn.shape == (500, 3, 4)
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])
    np.testing.assert_allclose(drawn[:, 0] + drawn[:, 2], 1, atol=1e-6)
    exact = metrics.class_accuracy(a, y, 4)
    np.testing.assert_allclose(drawn[:, 0].mean(axis=0), exact, atol=0.02)
    np.testing.assert_allclose(drawn[:, 0].std(axis=0), np.sqrt(exact * (1 - exact) / 25), rtol=0.15)


def test_resample_does_not_depend_on_the_company() -> None:
    rng = np.random.default_rng(2)
    y = np.repeat(np.arange(3), 20)
    right = rng.random((4, 60)) < 0.5
    alone = metrics.resample(right[2:3], y, 3, generator=np.random.default_rng(9), draws=50)
    joint = metrics.resample(right, y, 3, generator=np.random.default_rng(9), draws=50)
    np.testing.assert_array_equal(alone[:, 0], joint[:, 2])


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (7, 2), (30, 41), (5, 5), (0, 12)])
def test_mcnemar_against_the_binomial_test(only_a: int, only_b: int) -> None:
    both = 10
    a = np.array([True] * (both + only_a) + [False] * only_b)
    b = np.array([True] * both + [False] * only_a + [True] * only_b)
    found = metrics.mcnemar(a, b)
    assert (found.only_a, found.only_b) == (only_a, only_b)
    expected = binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert found.p_value == pytest.approx(expected, rel=1e-9)


def test_mcnemar_needs_the_same_samples() -> None:
    with pytest.raises(ValueError, match="same samples"):
        metrics.mcnemar([True], [True, False])


def test_paired_bootstrap_is_antisymmetric_and_settles_only_what_differs() -> None:
    rng = np.random.default_rng(4)
    y = np.repeat(np.arange(5), 100)
    a = rng.random(500) < 0.5
    b = a | (rng.random(500) < 0.3)
    forth = metrics.paired_bootstrap(a, b, y, 5, generator=np.random.default_rng(1))
    back = metrics.paired_bootstrap(b, a, y, 5, generator=np.random.default_rng(1))
    for name in metrics.STATISTICS:
        assert forth[name].estimate == pytest.approx(-back[name].estimate)
        assert forth[name].interval == pytest.approx((-back[name].interval.high, -back[name].interval.low), abs=1e-9)
    assert forth["average"].settled
    assert forth["average"].estimate == pytest.approx(a.mean() - b.mean())
    same = metrics.paired_bootstrap(a, a, y, 5, generator=np.random.default_rng(1))
    assert not any(difference.settled for difference in same.values())
    assert same["worst"].interval == (0.0, 0.0)


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(8)
    y = np.repeat(np.arange(4), 100)
    a = rng.random(400) < 0.5
    b = a ^ (rng.random(400) < 0.05)
    unrelated = rng.permutation(b)
    paired = metrics.paired_bootstrap(a, b, y, 4, generator=np.random.default_rng(1))["average"].interval
    loose = metrics.paired_bootstrap(a, unrelated, y, 4, generator=np.random.default_rng(1))["average"].interval
    assert paired.high - paired.low < 0.6 * (loose.high - loose.low)


def test_seeds_that_disagree_widen_the_interval() -> None:
    y = np.repeat(np.arange(2), 200)
    agreeing = np.stack([np.arange(400) % 2 == 0] * 3)
    wild = np.stack([np.arange(400) % 10 < share for share in (1, 5, 9)])
    base = np.stack([np.arange(400) % 2 == 1] * 3)
    narrow, wide = (
        metrics.paired_bootstrap(a, base, y, 2, generator=np.random.default_rng(1))["average"].interval
        for a in (agreeing, wild)
    )
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_an_end_at_zero_has_no_sign() -> None:
    ends = metrics.reflected_interval(np.asarray(0.25), np.array([0.5, 0.5 + 1e-16, 0.5 - 1e-16, 0.5 + 4e-16]), None)
    assert [str(end) for end in (ends.low, ends.high)] == ["0.0", "0.0"]
