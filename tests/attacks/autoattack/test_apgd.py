"""Auto-PGD: checkpoints, steps against the released implementation's, best point, few queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.autoattack import apgd
from attacks.autoattack.apgd import APGDCE, APGDT, SearchState, checkpoints, surface
from attacks.autoattack.reference import fenced, reference_package
from attacks.autoattack.stage import lengths
from attacks.objectives import targeted_dlr
from attacks.threat import Norm, ThreatModel
from tests.helpers.watched import labelled, robust, stream, watch

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def test_the_checkpoints_are_the_papers() -> None:
    assert checkpoints(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}
    assert checkpoints(1) == {1: 1} and checkpoints(3) == {1: 1, 2: 1, 3: 1}


@NORMS
def test_the_start_lies_on_the_surface_of_the_ball_and_in_the_box(norm: Norm) -> None:
    inner = torch.full((6, 2, 5, 3), 0.5)
    torch.testing.assert_close(
        lengths(surface(inner, norm, 0.2, stream()) - inner, norm), torch.full((6, 1, 1, 1), 0.2)
    )
    edge = surface(torch.zeros(6, 2, 5, 3), norm, 0.2, stream())
    assert edge.min() == 0 and edge.max() <= 0.2


def released_points(attack: Any, model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> list[Tensor]:
    """The points at which the released APGD evaluates a model, from given starting points."""
    points: list[Tensor] = []
    handle = model.register_forward_pre_hook(lambda module, inputs: points.append(inputs[0].detach().clone()))
    with fenced(model, x):
        attack.init_hyperparam(x)
        attack.attack_single_run(x, y, x_init=start)
    handle.remove()
    return points


@NORMS
@pytest.mark.parametrize("stage", [APGDCE, APGDT])
def test_every_point_is_that_of_the_released_code(
    stage: type[Any], norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, y = labelled(5)
    threat = ThreatModel(norm, 0.002 if norm == "linf" else 0.01)  # nothing falls
    attack = stage(threat) if stage is APGDCE else stage(threat, targets=1)
    queries, x_adv = watch(model, attack, x, y)
    assert torch.equal(x_adv, x), "nothing is expected to fall here"
    package = reference_package().AutoAttack(
        model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=threat.eps, device="cpu"
    )
    member = package.apgd if stage is APGDCE else package.apgd_targeted
    if stage is APGDCE:
        member.loss = "ce"
    else:
        with torch.no_grad():
            member.y_target = model(x).topk(2, dim=1).indices[:, 1]
    expected = released_points(member, model, x, y, queries.points[1])
    assert len(queries.points) == len(expected) + 1 == 102
    moved = torch.stack(queries.points[1:])
    # The released code keeps losses and step sizes in single precision, so best points may swap with their equals.
    same = ((moved - torch.stack(expected)).abs() < 1e-6).flatten(2).all(2).all(0)
    assert same.float().mean() > 0.9, f"{int(same.sum())} of {len(same)} samples took the same path"


@NORMS
def test_the_best_loss_never_falls_and_belongs_to_the_best_point(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = labelled(5)
    noted: list[tuple[Tensor, Tensor]] = []
    note = SearchState.note

    def watched(self: SearchState, loss: Tensor, along: Tensor) -> None:
        note(self, loss, along)
        assert (self.best_loss >= loss).all()
        noted.append((self.best.clone(), self.best_loss.clone()))

    monkeypatch.setattr(SearchState, "note", watched)
    APGDCE(ThreatModel(norm, 0.002), 40)(model, x, y, generator=stream())
    assert len(noted) == 40
    for (_, before), (best, after) in zip(noted, noted[1:], strict=False):
        assert (after >= before).all()
        torch.testing.assert_close(nn.functional.cross_entropy(model(best), y, reduction="none"), after)


def test_a_step_that_stalls_or_oscillates_halves_and_returns_to_the_best_point() -> None:
    x = torch.rand(3, 1, 2, 2)
    climb = SearchState.begin(x, torch.arange(3), x.clone(), 0.1)
    climb.best, climb.best_along, climb.here = x + 1, x + 2, x + 3
    climb.best_loss = climb.mark = torch.tensor([1.0, 1.0, 1.0])
    climb.mark = torch.tensor([0.5, 1.0, 0.5])
    climb.rises, climb.halved = torch.tensor([6, 8, 8]), torch.zeros(3, dtype=torch.bool)
    climb.checkpoint(8)  # at most 75 % of 8 are 6 rises
    assert climb.halved.tolist() == [True, True, False]  # oscillates; stalled; neither
    assert climb.step_size.flatten().tolist() == pytest.approx([0.1, 0.1, 0.2])
    assert torch.equal(climb.here, torch.cat([(x + 1)[:2], (x + 3)[2:]]))
    assert torch.equal(climb.along[:2], (x + 2)[:2]) and climb.rises.tolist() == [0, 0, 0]
    climb.rises = torch.tensor([7, 7, 7])
    climb.checkpoint(8)  # no second halving for standing still right after the first
    assert climb.halved.tolist() == [False, False, True]


def test_the_targets_are_the_most_likely_wrong_classes_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = labelled(6)
    met: list[Tensor] = []

    def watched(labels: Tensor, target: Tensor) -> Any:
        met.append(target)
        return targeted_dlr(labels, target)

    monkeypatch.setattr(apgd, "targeted_dlr", watched)
    APGDT(ThreatModel("linf", 1e-4), steps=1)(model, x, y, generator=stream())
    with torch.no_grad():
        expected = model(x).sort(1, descending=True).indices[:, 1:]
    assert torch.equal(torch.stack(met, 1), expected)


@NORMS
def test_a_linear_model_is_fooled_exactly_within_its_distance(norm: Norm) -> None:
    weight = torch.linspace(-1, 1.5, 18, dtype=torch.float64)
    head = nn.Linear(18, 4).double()
    with torch.no_grad():
        head.weight.copy_(torch.stack([weight, -weight, 0 * weight, 0 * weight]))
        head.bias.copy_(torch.tensor([0.0, 0.0, -9.0, -9.0]))
    model = nn.Sequential(nn.Flatten(), head)
    dual = (weight.abs().sum() if norm == "linf" else weight.norm()).item()
    distance = torch.tensor([0.02, 0.0499, 0.0501, 0.08], dtype=torch.float64)
    x = 0.5 + (distance * dual - 0.5 * weight.sum())[:, None] * weight / weight.square().sum()
    x, y = x.view(-1, 2, 3, 3), torch.zeros(4, dtype=torch.int64)
    for attack in (APGDCE(ThreatModel(norm, 0.05)), APGDT(ThreatModel(norm, 0.05))):
        x_adv = attack(model, x, y, generator=stream())
        assert robust(model, x_adv, y).tolist() == [False, False, True, True]
