"""FAB: projections onto hyperplanes in the box, minimal norms, and the released implementation's path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.autoattack.fab import FABT, approach, minimal_norms, to_hyperplane
from attacks.autoattack.reference import fenced, reference_package
from attacks.threat import Norm, ThreatModel, distance
from bench.conformance.fixtures import images, network
from tests.helpers.watched import labelled, robust, stream

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def bisected(point: Tensor, normal: Tensor, value: float, norm: Norm) -> Tensor:
    """The same projection for one point, by halving the time at which each coordinate stops."""
    sense = -1 if value > 0 else 1
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        push = normal.sign() if norm == "linf" else normal
        move = torch.where(normal == 0, 0, (point + sense * middle * push).clamp(0, 1) - point)
        low, high = (middle, high) if abs(float(move @ normal)) < abs(value) else (low, middle)
    return move


@NORMS
def test_projections_solve_their_optimality_conditions(norm: Norm) -> None:
    generator = stream(3)
    point = torch.rand(40, 12, generator=generator, dtype=torch.float64)
    point[:, 0], point[:, 1] = 0, 1
    normal = torch.randn(40, 12, generator=generator, dtype=torch.float64)
    normal[:, 2], normal[5] = 0, 0
    value = torch.randn(40, generator=generator, dtype=torch.float64) * torch.logspace(-3, 1.5, 40, dtype=torch.float64)
    move = to_hyperplane(point, normal, value, norm)
    assert (point + move >= -1e-12).all() and (point + move <= 1 + 1e-12).all()
    assert (move[:, 2] == 0).all() and (move[5] == 0).all()
    for i in range(40):
        torch.testing.assert_close(move[i], bisected(point[i], normal[i], float(value[i]), norm), atol=1e-7, rtol=1e-6)
    reached = (value + (move * normal).sum(1)).abs() < 1e-9
    assert 10 < reached.sum() < 40, "both reachable and unreachable hyperplanes are expected"


@NORMS
def test_far_from_the_box_the_projection_is_the_closed_form(norm: Norm) -> None:
    normal = torch.tensor([[1.0, -2.0, 0.5, 0.0]], dtype=torch.float64)
    move = to_hyperplane(torch.full_like(normal, 0.5), normal, torch.tensor([-0.07], dtype=torch.float64), norm)
    expected = 0.07 * (normal.sign() / normal.abs().sum() if norm == "linf" else normal / normal.square().sum())
    torch.testing.assert_close(move, expected)


def test_a_point_on_the_hyperplane_stays() -> None:
    move = to_hyperplane(torch.rand(3, 5), torch.randn(3, 5), torch.zeros(3), "l2")
    assert torch.equal(move, torch.zeros(3, 5))


def linear(norm: Norm, gaps: Tensor) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model of three classes and images at given distances from its nearest boundary."""
    weight = torch.linspace(-1, 1.5, 18, dtype=torch.float64)
    head = nn.Linear(18, 3).double()
    with torch.no_grad():
        head.weight.copy_(torch.stack([weight / 2, -weight / 2, 0 * weight]))
        head.bias.copy_(torch.tensor([0.0, 0.0, -9.0]))
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    x = 0.5 + (gaps * dual - 0.5 * weight.sum())[:, None] * weight / weight.square().sum()
    return nn.Sequential(nn.Flatten(), head), x.view(-1, 2, 3, 3), torch.zeros(len(gaps), dtype=torch.int64)


@NORMS
def test_minimal_norms_on_a_linear_model_are_the_distances(norm: Norm) -> None:
    gaps = torch.tensor([0.01, 0.03, 0.1], dtype=torch.float64)
    model, x, y = linear(norm, gaps)
    found = minimal_norms(model, x, y, norm=norm)
    assert (found >= gaps * (1 - 1e-9)).all() and (found <= gaps * 1.051).all()
    x_adv = FABT(ThreatModel(norm, 0.03 * 1.06))(model, x, y, generator=stream())
    assert robust(model, x_adv, y).tolist() == [False, False, True]


@NORMS
def test_points_fool_at_the_distance_that_is_reported_and_more_steps_come_nearer(norm: Norm) -> None:
    model, x, y = labelled(5)
    target = (y + 1) % 5
    before = torch.full((len(x),), torch.inf, dtype=x.dtype)
    for steps in (1, 5, 25):
        nearest = torch.full_like(before, torch.inf)

        def found(rows: Tensor, points: Tensor, sizes: Tensor, fooled: Tensor, nearest: Tensor = nearest) -> None:
            assert torch.equal(~robust(model, points, y[rows]), fooled)
            assert points.min() >= 0 and points.max() <= 1
            assert torch.equal(distance(points, x[rows], norm), sizes)
            nearest[rows] = nearest[rows].minimum(sizes.where(fooled, torch.inf))

        with torch.no_grad():
            approach(model, x, y, target, norm=norm, steps=steps, found=found)
        assert (nearest <= before).all()
        before = nearest
    assert before.isfinite().all()


def test_samples_that_leave_are_not_moved_again() -> None:
    model, x, y = labelled(5)
    seen: list[list[int]] = []

    def found(rows: Tensor, points: Tensor, sizes: Tensor, fooled: Tensor) -> Tensor:
        seen.append(rows.tolist())
        return rows % 3 == len(seen) - 1

    with torch.no_grad():
        approach(model, x, y, (y + 1) % 5, norm="linf", steps=9, found=found)
    everyone = list(range(len(x)))
    assert seen == [everyone, [r for r in everyone if r % 3], [r for r in everyone if r % 3 == 2]]


def test_samples_that_are_wrong_already_have_norm_zero() -> None:
    model, x, y = labelled(4)
    y[0] = (y[0] + 1) % 4
    found = minimal_norms(model, x, y, steps=5)
    assert found[0] == 0 and (found[1:] > 0).all()


@NORMS
def test_minimal_norms_are_those_of_the_released_code(norm: Norm) -> None:
    model, x = network(6, 1).eval(), images(24, 9)
    with torch.no_grad():
        y = model(x).argmax(1)
    package: Any = reference_package().AutoAttack(
        model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=0.1, device="cpu", version="custom", attacks=["fab-t"]
    )
    released = torch.full((len(x),), torch.inf)
    with fenced(model, x):
        for rank in range(2, 7):
            package.fab.target_class, package.fab.n_iter = rank, 30
            points = package.fab.attack_single_run(x, y, is_targeted=True)
            released = torch.where(robust(model, points, y), released, released.minimum(distance(points, x, norm)))
    ours = minimal_norms(model, x, y, norm=norm, steps=30)
    assert ours.median() == pytest.approx(released.median().item(), rel=0.02)
    assert (ours / released - 1).abs().median() < 0.01, "sample by sample, not only in the middle"
