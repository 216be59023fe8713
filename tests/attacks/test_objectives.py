"""Objectives against NumPy in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacks import objectives

Array = NDArray[np.float64]
GENERATOR = np.random.default_rng(0)
LOGITS = 3 * GENERATOR.standard_normal((20, 6))
Y = GENERATOR.integers(0, 6, 20)
ROWS = np.array([3, 7, 8, 15, 19])


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    probs: Array = e / e.sum(1, keepdims=True)
    return probs


def cross_entropy(z: Array, y: NDArray[np.int64]) -> Array:
    return -np.log(softmax(z)[np.arange(len(z)), y])


def margin(z: Array, y: NDArray[np.int64]) -> Array:
    return np.array([np.delete(row, label).max() - row[label] for row, label in zip(z, y, strict=True)])


def dlr(z: Array, y: NDArray[np.int64]) -> Array:
    ordered = -np.sort(-z, axis=1)
    return margin(z, y) / (ordered[:, 0] - ordered[:, 2])


def evaluate(objective: objectives.Objective, rows: NDArray[np.int64]) -> Tensor:
    return objective(torch.tensor(LOGITS[rows]), torch.tensor(rows))


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr"])
@pytest.mark.parametrize("rows", [np.arange(20), ROWS], ids=["all", "some"])
def test_objectives_of_labels(name: str, rows: NDArray[np.int64]) -> None:
    found = evaluate(getattr(objectives, name)(torch.tensor(Y)), rows)
    expected: Array = globals()[name](LOGITS[rows], Y[rows])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_kl_of_fixed_targets() -> None:
    target = softmax(GENERATOR.standard_normal((20, 6)))
    expected = (target * (np.log(target) - np.log(softmax(LOGITS)))).sum(1)[ROWS]
    np.testing.assert_allclose(evaluate(objectives.kl(torch.tensor(target)), ROWS).numpy(), expected, rtol=1e-9)


def test_kl_of_a_target_with_zeros_is_cross_entropy() -> None:
    one_hot = torch.nn.functional.one_hot(torch.tensor(Y), 6).double()
    expected = cross_entropy(LOGITS, Y)
    np.testing.assert_allclose(evaluate(objectives.kl(one_hot), np.arange(20)).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("rows", [np.arange(20), ROWS], ids=["all", "some"])
def test_the_slope_of_kl_is_autograds(rows: NDArray[np.int64]) -> None:
    """Targets need not sum to 1."""
    objective, where = objectives.kl(torch.tensor(softmax(LOGITS[::-1]) * 2)), torch.tensor(rows)
    logits = torch.tensor(LOGITS[rows], requires_grad=True)
    values = objective(logits, where)
    (expected,) = torch.autograd.grad(values.sum(), logits)
    found, slope = objective.with_slope(logits, where)
    assert torch.equal(found, values.detach())
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "kl"])
def test_a_slope_alone_is_the_one_that_comes_with_the_values(name: str) -> None:
    """Also for other rows, and once more for the first."""
    target = torch.tensor(softmax(LOGITS[::-1])) if name == "kl" else torch.tensor(Y)
    objective, logits = getattr(objectives, name)(target), torch.tensor(LOGITS)
    every, some = torch.arange(20), torch.tensor(ROWS)
    for rows in (every, some, every):
        fresh = getattr(objectives, name)(target)
        assert torch.equal(objective.slope(logits[rows], rows), fresh.with_slope(logits[rows], rows)[1])


def test_the_margin_is_positive_exactly_where_misclassified() -> None:
    found = evaluate(objectives.margin(torch.tensor(Y)), np.arange(20))
    assert (found.numpy() > 0).tolist() == (LOGITS.argmax(1) != Y).tolist()


def test_dlr_ignores_scale_and_needs_three_classes() -> None:
    y, rows = torch.tensor(Y), torch.arange(20)
    loss = objectives.dlr(y)
    torch.testing.assert_close(loss(torch.tensor(LOGITS), rows), loss(7 * torch.tensor(LOGITS), rows))
    with pytest.raises(ValueError, match="dlr: expected at least 3 classes, got 2"):
        objectives.dlr(y % 2)(torch.tensor(LOGITS[:, :2]), rows)


@pytest.mark.parametrize("classes", [4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["cross_entropy", "margin", "targeted_margin", "targeted_dlr"])
def test_slopes_are_autograds(name: str, dtype: torch.dtype, classes: int) -> None:
    y, rows = torch.tensor(Y) % classes, torch.tensor(ROWS)
    roles = (y, (y + 1) % classes) if name.startswith("targeted") else (y,)
    objective = getattr(objectives, name)(*roles)
    logits = torch.tensor(LOGITS[ROWS][:, :classes], dtype=dtype).requires_grad_()
    values, slope = objective.with_slope(logits, rows)
    expected = objective(logits, rows)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    assert not values.requires_grad and not slope.requires_grad
    torch.testing.assert_close(values, expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(slope, gradient, rtol=1e-5, atol=1e-7)
    if name == "cross_entropy":
        assert torch.equal(slope, gradient), "training goes by it, and its numbers must not move"


def test_other_rows_have_their_own_labels() -> None:
    objective = objectives.cross_entropy(torch.tensor(Y))
    for rows in (ROWS, ROWS[:2], np.arange(20)):
        np.testing.assert_allclose(evaluate(objective, rows).numpy(), cross_entropy(LOGITS, Y)[rows], rtol=1e-9)
