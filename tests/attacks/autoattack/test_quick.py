"""autoattack-quick: the ensemble's verdicts, what it spends on whom, and that nobody takes it for AutoAttack."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.autoattack import quick
from attacks.autoattack.quick import Quick
from attacks.passes import Passes
from attacks.registry import ATTACKS
from attacks.threat import Norm, ThreatModel, distance
from bench.evaluation.stages import run_attack
from bench.report.tables.columns import Column
from tests.attacks.autoattack.test_ensemble import NORMS, TINY, Network, Without, counted, scaled
from tests.helpers.jobs import plan
from tests.helpers.watched import labelled, robust, stream, watch

PROBE, SWEEP = Passes(forward=21, input_grad=20), Passes(forward=9, input_grad=8)
CHASE = [Passes(forward=16, input_grad=15), Passes(forward=41, input_grad=40)]
RESTART, APPROACH = Passes(forward=26, input_grad=25), Passes(forward=100, input_grad=50)
GUARD = Passes(forward=102)  # 100 queries, the start and the original


def total(*parts: Passes) -> Passes:
    return sum(parts, Passes())


def short(norm: Norm = "linf", eps: float = 0.03, **settings: Any) -> Quick:
    return Quick(ThreatModel(norm, eps), **{"queries": 120, "starts": 3, **settings})


class Line(nn.Module):
    """Two classes, told apart by the mean of the image."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2), whose difference is the distance to the boundary in Linf, times ten."""
        far = x.flatten(1).mean(1) - 0.5
        return torch.stack([10 * far, torch.zeros_like(far)], 1)


def at(*far: float) -> tuple[Tensor, Tensor]:
    """Images at a distance from the boundary of `Line`, and their class."""
    x = 0.5 + torch.tensor(far, dtype=torch.float64)[:, None, None, None].repeat(1, 1, 6, 6)
    return x, torch.zeros(len(far), dtype=torch.int64)


@pytest.mark.parametrize("classes", [2, 3, 12])
@NORMS
def test_what_nothing_brings_near_costs_a_probe_a_sweep_and_a_guard(classes: int, norm: Norm) -> None:
    model, x, y = labelled(classes)
    sweep = SWEEP * min(9, classes - 1)
    assert counted(model, Quick(ThreatModel(norm, TINY)), x, y) == total(PROBE, sweep, GUARD)


@pytest.mark.parametrize(
    ("share", "rounds", "restarts", "near"),
    [(0.5, 0, 0, 0), (0.3, 1, 0, 0), (0.15, 2, 6, 1), (0.06, 2, 12, 1), (0.01, 2, 24, 1)],
)
def test_the_nearer_a_sample_is_brought_the_more_is_spent(share: float, rounds: int, restarts: int, near: int) -> None:
    x, y = at(0.05 / (1 - share))
    spent = total(PROBE, SWEEP, *CHASE[:rounds], RESTART * restarts, APPROACH * near, GUARD)
    assert counted(Line(), Quick(ThreatModel("linf", 0.05), queries=100), x, y) == spent


@pytest.mark.parametrize("classes", [2, 4, 12])
def test_no_sample_costs_more_than_is_declared(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = labelled(classes)
    monkeypatch.setattr(quick, "NEAR", math.inf)
    monkeypatch.setattr(quick, "REVIEWS", ())
    monkeypatch.setattr(quick, "ROUNDS", tuple((math.inf, *others) for _, *others in quick.ROUNDS))
    attack = short(eps=TINY, targets=5, starts=6)
    found = counted(model, attack, x, y)
    untargeted = RESTART * ((min(5, classes - 1, 3) - 1) * 2)  # a third of the restarts has no target
    assert total(found, untargeted) == attack.passes(classes)


def test_a_sample_that_fell_is_never_asked_about_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick, "FAB", 0)  # it looks at gradients where it does not judge
    model, x, y = labelled(5, n=40)
    y[:3] = (y[:3] + 1) % 5
    attack = short(eps=0.04)
    queries, x_adv = watch(model, attack, x, y)
    fell = torch.zeros(len(x), dtype=torch.bool)
    for points, fooled, rows in zip(queries.points, queries.fooled, queries.rows, strict=True):
        assert not fell[rows].any()
        assert attack.threat.contains(points, x[rows]).all()
        fell[rows[fooled]] = True
    assert 3 < fell.sum() < 40
    assert torch.equal(robust(model, x_adv, y), ~fell)
    assert torch.equal(x_adv[~fell], x[~fell]) and torch.equal(x_adv[:3], x[:3])


@NORMS
def test_what_happens_to_a_sample_does_not_depend_on_the_others(norm: Norm) -> None:
    model, x, y = labelled(5, n=20)
    attack = short(norm, scaled(norm))
    together = attack(model, x, y, generator=stream())
    other = y.clone()
    other[::3] = (other[::3] + 1) % 5
    apart = attack(model, x, other, generator=stream())
    rest = torch.arange(20) % 3 > 0
    torch.testing.assert_close(together[rest], apart[rest], rtol=0, atol=1e-9)
    assert torch.equal(apart[~rest], x[~rest])


def test_the_same_seed_gives_the_same_points_and_another_one_others() -> None:
    model, x, y = labelled(5, n=20)
    first, again, other = (short()(model, x, y, generator=stream(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("classes", "shape"), [(2, (1, 8, 8)), (3, (2, 5, 9)), (4, (3, 9, 5)), (9, (3, 4, 17))])
def test_few_classes_any_shape_either_precision(
    classes: int, shape: tuple[int, int, int], dtype: torch.dtype, norm: Norm
) -> None:
    model = Network(shape[0], classes).to(dtype).eval()
    attack = short(norm, scaled(norm, 0.02), queries=15)
    for n in (7, 1, 0):
        x = torch.rand(n, *shape, generator=stream(n), dtype=dtype)
        y = model(x).argmax(1) if n else torch.zeros(0, dtype=torch.int64)
        x_adv = attack(model, x, y, generator=stream())
        assert x_adv.shape == x.shape and x_adv.dtype == dtype and attack.threat.contains(x_adv, x).all()


@NORMS
@pytest.mark.parametrize("kind", ["detached", "elsewhere", "rounded", "not a number"])
def test_models_without_gradient_are_searched_all_the_same(kind: str, norm: Norm) -> None:
    inner, x, _ = labelled(5)
    model = Without(inner, kind)
    y = robust_classes(model, x)
    attack = short(norm, scaled(norm, 0.1))
    x_adv = attack(model, x, y, generator=stream())
    assert torch.isfinite(x_adv).all() and attack.threat.contains(x_adv, x).all()
    assert not robust(model, x_adv, y).all()


def robust_classes(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        classes: Tensor = model(x).argmax(1)
    return classes


def test_a_sample_between_two_classes_is_swept_too() -> None:
    x, y = at(0.0)
    assert not robust(Line(), short()(Line(), x, y, generator=stream()), y).any()


def test_where_gradients_are_masked_square_goes_on_while_it_can_still_get_there() -> None:
    inner, x, _ = labelled(5, n=60)
    model = Without(inner, "rounded")
    y = robust_classes(model, x)
    threat = ThreatModel("linf", 0.08)
    square = ATTACKS["square"](threat=threat, queries=1000)
    alone = robust(model, square(model, x, y, generator=stream()), y)
    attack = Quick(threat, queries=1000)
    queries, x_adv = watch(model, attack, x, y)
    both = robust(model, x_adv, y)
    briefly = robust(model, Quick(threat, queries=100)(model, x, y, generator=stream()), y)
    assert both.sum() <= alone.sum() + 3 < briefly.sum()
    asked = torch.stack([torch.bincount(rows, minlength=60) for rows in queries.rows]).sum(0)
    assert asked[both].median() < 400, "most of what Square is not about to fool is given up"


def test_its_verdicts_are_those_of_the_full_ensemble_for_a_tenth_of_the_passes() -> None:
    model, x, y = labelled(5, n=40)
    model, x = model.float(), x.float()
    found = {}
    for name in ("autoattack", "autoattack-quick"):
        attack = ATTACKS[name](threat=ThreatModel("linf", 0.03), queries=1000)
        verdicts = run_attack(model, x, y, attack, name, block=40)
        found[name] = [*verdicts.stages.values()][-1][1], sum(verdicts.passes.values())
    (full, dear), (ours, cheap) = found.values()
    assert 5 < full.sum() < 35
    assert (full != ours).sum() <= 1
    assert cheap <= dear / 10


@NORMS
def test_points_lie_inside_box_and_ball(norm: Norm) -> None:
    model, x, y = labelled(5, n=20)
    eps = scaled(norm, 0.05)
    x_adv = short(norm, eps)(model, x, y, generator=stream())
    assert 0 < robust(model, x_adv, y).sum() < 20
    assert (distance(x_adv, x, norm) <= eps * (1 + 1e-6)).all() and x_adv.min() >= 0 and x_adv.max() <= 1


def test_nobody_takes_it_for_autoattack() -> None:
    assert Column("autoattack-quick", samples="", n=1).title == "Quick"
    found = plan(methods=("natural",), attacks=("autoattack", "autoattack-quick"), limit=100, autoattack_limit=40)
    limits = {job.attack: job.limit for job in found.evaluate}
    assert limits == {"autoattack": 40, "autoattack-quick": 100}
