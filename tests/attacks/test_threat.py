"""Balls, boxes and starting points."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attacks.threat import GAUSSIAN_SCALE, Norm, ThreatModel, distance, per_sample, project, starting_point
from bench.conformance.fixtures import images

X = images(200, 5)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("norm", "eps"), [("l1", 0.1), ("linf", -0.1), ("linf", float("nan")), ("l2", float("inf"))])
def test_a_threat_model_refuses_what_is_none(norm: Any, eps: float) -> None:
    with pytest.raises(ValueError, match="threat model: expected"):
        ThreatModel(norm, eps)


def test_linf_projection_is_a_clip_per_pixel() -> None:
    far = X + torch.randn(X.shape, generator=stream())
    expected = torch.minimum(torch.maximum(far, X - 0.1), X + 0.1).clamp(0, 1)
    assert torch.equal(project(far, X, 0.1, "linf"), expected)
    assert torch.equal(project(X, X, 0.1, "linf"), X)


def test_l2_projection_is_radial_and_leaves_the_inside_alone() -> None:
    centre = torch.full_like(X, 0.5)
    direction = torch.randn(X.shape, generator=stream())
    direction = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(project(centre + 0.4 * direction, centre, 0.3, "l2"), centre + 0.3 * direction)
    torch.testing.assert_close(project(centre + 0.2 * direction, centre, 0.3, "l2"), centre + 0.2 * direction)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projections_are_inside_with_a_radius_per_sample(norm: Norm) -> None:
    eps = torch.linspace(0, 0.5, len(X))
    point = project(X + torch.randn(X.shape, generator=stream()), X, eps, norm)
    assert (distance(point, X, norm) <= eps + 1e-6).all()
    assert point.min() >= 0 and point.max() <= 1
    torch.testing.assert_close(project(point, X, eps, norm), point, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_contains_tells_inside_from_outside(norm: Norm) -> None:
    threat = ThreatModel(norm, 0.1)
    x = torch.full((5, 1, 8, 8), 0.5)
    step = 0.1 if norm == "linf" else 0.1 / 8
    shifts = torch.tensor([0.0, step, 1.001 * step, float("nan"), 0.0]).view(-1, 1, 1, 1)
    x_adv = x + shifts
    x_adv[4, 0, 0, 0] = float("inf")
    assert threat.contains(x_adv, x).tolist() == [True, True, False, False, False]
    edge = torch.ones(1, 1, 8, 8)
    assert not threat.contains(edge + 1e-4, edge).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_uniform_starts_fill_the_ball_and_stay_in_the_box(norm: Norm) -> None:
    point = starting_point(X, "uniform", 0.3, norm, stream())
    assert ThreatModel(norm, 0.3).contains(point, X).all()
    assert point.min() >= 0 and point.max() <= 1
    free = starting_point(X, "uniform_unclipped", 0.3, norm, stream())
    assert torch.equal(free.clamp(0, 1), point)
    assert free.min() < 0 and free.max() > 1
    assert (distance(free, X, norm) <= 0.3 + 1e-6).all()
    assert distance(free, X, norm).max() > 0.29


def test_a_uniform_l2_start_has_the_radii_of_a_uniform_draw() -> None:
    x = torch.full((4000, 1, 2, 1), 0.5)
    radii = distance(starting_point(x, "uniform", 0.4, "l2", stream()), x, "l2") / 0.4
    torch.testing.assert_close(radii.square().mean(), torch.tensor(0.5), rtol=0.05, atol=0)


def test_a_gaussian_start_is_small_and_neither_clipped_nor_projected() -> None:
    x = torch.zeros(500, 1, 8, 8)
    point = starting_point(x, "gaussian", 1e-4, "linf", stream())
    torch.testing.assert_close(point.std(), torch.tensor(GAUSSIAN_SCALE), rtol=0.02, atol=0)
    assert GAUSSIAN_SCALE == 0.001 and point.min() < 0 and point.abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["uniform", "uniform_unclipped", "gaussian"])
def test_starts_are_reproducible_and_differ_between_seeds(kind: Any) -> None:
    first, again, other = (starting_point(X, kind, 0.1, "linf", stream(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_given_points_and_zero_are_copies() -> None:
    for kind in ("zero", X):
        point = starting_point(X, kind, 0.1, "linf", None)
        assert torch.equal(point, X) and point.data_ptr() != X.data_ptr()


@pytest.mark.parametrize(
    ("kind", "generator", "words"),
    [
        ("random", stream(), "expected one of zero, uniform"),
        ("uniform", None, "pass a torch.Generator"),
        (X[:3], None, r"expected points of shape \(200, 1, 8, 8\), got \(3, 1, 8, 8\)"),
    ],
)
def test_a_bad_start_is_refused(kind: Any, generator: torch.Generator | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        starting_point(X, kind, 0.1, "linf", generator)


def test_per_sample_values_have_the_right_length() -> None:
    value: Tensor = per_sample(torch.ones(200), X)
    assert value.shape == (200, 1, 1, 1) and per_sample(0.5, X).ndim == 0
    with pytest.raises(ValueError, match=r"one per sample \(200,\), got shape \(3,\)"):
        per_sample(torch.ones(3), X)
