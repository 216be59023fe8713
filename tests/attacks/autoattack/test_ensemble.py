"""The native ensemble and what all its members promise: budget, compaction, independence, odd inputs, parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.autoattack.apgd import APGDCE, APGDT
from attacks.autoattack.ensemble import AutoAttack
from attacks.autoattack.fab import FABT
from attacks.autoattack.square import Square
from attacks.autoattack.stage import Stage
from attacks.passes import Passes
from attacks.registry import ATTACKS
from attacks.threat import Norm, ThreatModel, distance
from bench.core.pass_counter import PassCounter
from bench.evaluation.stages import run_attack
from tests.helpers.watched import labelled, robust, stream, watch

NAMES = ["apgd-ce", "apgd-t", "fab-t", "square"]
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
TINY = 1e-7


def short(name: str, norm: Norm = "linf", eps: float = 0.03) -> Any:
    settings: dict[str, Any] = {"square": {"queries": 70}, "apgd-ce": {"steps": 12}}.get(
        name, {"steps": 6, "targets": 3}
    )
    return ATTACKS[name](threat=ThreatModel(norm, eps), **settings)


def scaled(norm: Norm, eps: float = 0.03) -> float:
    """A radius in a norm of about the same effect as eps in Linf."""
    return eps if norm == "linf" else 5 * eps


def counted(model: nn.Module, attack: Any, x: Tensor, y: Tensor) -> Passes:
    counter = PassCounter()
    handle = counter.watch(model, "model")
    attack(model, x, y, generator=stream())
    handle.remove()
    column = counter.counts["model"]
    return Passes(forward=column["forward"] / len(x), input_grad=column["input_grad"] / len(x))


def test_the_standard_version_has_four_native_stages_in_order() -> None:
    threat = ThreatModel("l2", 0.5)
    attack = AutoAttack(threat)
    assert attack.stages == (APGDCE(threat, 100), APGDT(threat, 100, 9), FABT(threat, 100, 9), Square(threat, 5000))
    assert [stage.name for stage in attack.stages] == NAMES
    assert {stage.implementation for stage in attack.stages} == {attack.implementation} == {"native"}
    assert [stage.revision for stage in attack.stages] == [3, 3, 3, 3]
    assert attack.revision == 3


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 100])
def test_the_declared_passes_are_those_of_the_stages_and_a_verdict_each(classes: int) -> None:
    attack = AutoAttack(steps=7, targets=5, queries=11)
    run = [stage for stage in attack.stages if stage.left_out(classes) is None]
    total = sum((stage.passes(classes) for stage in run), Passes())
    assert attack.passes(classes) == total + Passes(forward=1 + len(run))


@pytest.mark.parametrize("classes", [3, 5])
def test_the_ensemble_on_a_sample_that_stands_costs_exactly_what_is_declared(classes: int) -> None:
    model, x, y = labelled(classes)
    attack = AutoAttack(ThreatModel("linf", TINY), steps=5, targets=3, queries=9)
    assert counted(model, attack, x, y) == attack.passes(classes)


@NORMS
@pytest.mark.parametrize("classes", [4, 12])
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_that_stands_costs_exactly_what_is_declared(name: str, classes: int, norm: Norm) -> None:
    model, x, y = labelled(classes)
    attack = short(name, norm, TINY)
    assert counted(model, attack, x, y) == attack.passes(classes)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_that_fell_is_never_asked_about_again(name: str) -> None:
    model, x, y = labelled(5, n=40)
    y[:3] = (y[:3] + 1) % 5  # wrong from the start
    attack = short(name, eps=0.04)
    queries, x_adv = watch(model, attack, x, y)
    inside = torch.zeros(len(x), dtype=torch.bool)  # fooled by a point of box and ball
    for number, (points, fooled, rows) in enumerate(zip(queries.points, queries.fooled, queries.rows, strict=True)):
        assert number == 0 or len(rows) <= len(x) - inside.sum(), "more samples than stand were asked about"
        close = distance(points, x[rows], "linf") < 0.1  # FAB strays further, where the original cannot be told
        assert not inside[rows[close]].any(), "a sample that had fallen was asked about"
        near = attack.threat.contains(points, x[rows])
        if name != "fab-t" or number % 2 == 0:  # FAB takes gradients and checks in turn, and only checks are verdicts
            inside[rows[fooled & near]] = True
    assert 3 < inside.sum() < 40, "some are expected to fall and some to stand"
    assert torch.equal(robust(model, x_adv, y), ~inside)
    assert torch.equal(x_adv[~inside], x[~inside]) and torch.equal(x_adv[:3], x[:3])
    assert attack.threat.contains(x_adv, x).all() and x_adv.min() >= 0 and x_adv.max() <= 1


@NORMS
@pytest.mark.parametrize("name", NAMES)
def test_what_happens_to_a_sample_does_not_depend_on_the_others(name: str, norm: Norm) -> None:
    model, x, y = labelled(5, n=20)
    attack = short(name, norm, scaled(norm))
    together = attack(model, x, y, generator=stream())
    other = y.clone()
    other[::3] = (other[::3] + 1) % 5  # these are out from the start, the draws of the rest stay
    apart = attack(model, x, other, generator=stream())
    rest = torch.arange(20) % 3 > 0
    torch.testing.assert_close(together[rest], apart[rest], rtol=0, atol=1e-9)
    assert torch.equal(apart[~rest], x[~rest])


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "square"])
def test_other_seeds_give_other_points_and_the_same_seed_the_same(name: str) -> None:
    model, x, y = labelled(5, n=20)
    first, again, other = (short(name)(model, x, y, generator=stream(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


class Network(nn.Module):
    """Convolution, pooling, head: for images of any shape."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, classes)
            )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


@NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("classes", "shape"),
    [(2, (1, 8, 8)), (3, (2, 5, 9)), (4, (3, 9, 5)), (5, (4, 6, 6)), (6, (3, 4, 17)), (7, (1, 3, 3)), (9, (3, 8, 8))],
)
def test_few_classes_any_shape_either_precision(
    classes: int, shape: tuple[int, int, int], dtype: torch.dtype, norm: Norm
) -> None:
    model = Network(shape[0], classes).to(dtype).eval()
    attack = AutoAttack(ThreatModel(norm, scaled(norm, 0.02)), steps=4, queries=15)
    for n in (7, 1, 0):
        x = torch.rand(n, *shape, generator=stream(n), dtype=dtype)
        y = model(x).argmax(1) if n else torch.zeros(0, dtype=torch.int64)
        x_adv = attack(model, x, y, generator=stream())
        assert x_adv.shape == x.shape and x_adv.dtype == dtype and attack.threat.contains(x_adv, x).all()
    reason = f"needs at least 4 classes, the model has {classes}" if classes < 4 else None
    assert [stage.left_out(classes) for stage in attack.stages] == [None, reason, None, None]


@pytest.mark.parametrize("name", NAMES)
def test_strided_images_give_the_same_points(name: str) -> None:
    model = Network(3, 5).eval()
    x = torch.rand(6, 3, 8, 8, generator=stream())
    y = model(x).argmax(1)
    expected = short(name)(model, x, y, generator=stream())
    found = short(name)(model, x.to(memory_format=torch.channels_last), y, generator=stream())
    assert torch.equal(expected, found)


class Without(nn.Module):
    """A model whose gradient is zero, absent, or not a number."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "detached":
            return self.inner(x).detach()  # type: ignore[no-any-return]
        if self.kind == "elsewhere":
            return self.inner(x.detach())  # type: ignore[no-any-return]
        if self.kind == "rounded":
            return self.inner((x * 8).round() / 8)  # type: ignore[no-any-return]
        return self.inner(x) + 0 * (x - x).flatten(1).norm(dim=1, keepdim=True).sqrt()  # type: ignore[no-any-return]


@NORMS
@pytest.mark.parametrize("kind", ["detached", "elsewhere", "rounded", "not a number"])
@pytest.mark.parametrize("name", NAMES)
def test_models_without_gradient_are_searched_all_the_same(name: str, kind: str, norm: Norm) -> None:
    inner, x, _ = labelled(5)
    model = Without(inner, kind)
    with torch.no_grad():
        y = model(x).argmax(1)
    attack = short(name, norm, scaled(norm, 0.1))
    x_adv = attack(model, x, y, generator=stream())
    assert torch.isfinite(x_adv).all() and attack.threat.contains(x_adv, x).all()
    assert all(p.grad is None for p in inner.parameters())


@pytest.mark.parametrize("name", [*NAMES[1:2]])
def test_too_few_classes_are_refused_in_one_sentence(name: str) -> None:
    model, x, y = labelled(3)
    with pytest.raises(ValueError, match="^apgd-t: needs at least 4 classes, the model has 3$"):
        short(name)(model, x, y, generator=stream())


def test_each_stage_gets_what_is_still_standing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = labelled(5, n=30)
    y[:2] = (y[:2] + 1) % 5
    met: list[tuple[str, list[int]]] = []
    call = Stage.__call__

    def watched(self: Stage, model: nn.Module, z: Tensor, labels: Tensor, *, generator: torch.Generator) -> Tensor:
        met.append((self.name, [int((image == x).flatten(1).all(1).nonzero()) for image in z]))
        return call(self, model, z, labels, generator=generator)

    monkeypatch.setattr(Stage, "__call__", watched)
    x_adv = AutoAttack(ThreatModel("linf", 0.03), steps=4, targets=2, queries=15)(model, x, y, generator=stream())
    assert [name for name, _ in met] == NAMES and met[0][1] == list(range(2, 30))
    for (_, earlier), (_, later) in zip(met, met[1:], strict=False):
        assert set(later) <= set(earlier)
    standing = robust(model, x_adv, y).nonzero().flatten().tolist()
    assert set(standing) <= set(met[-1][1]) and torch.equal(x_adv[standing], x[standing])


@NORMS
def test_native_and_released_ensemble_agree(norm: Norm) -> None:
    model, x, y = labelled(5, n=60)
    model, x = model.float(), x.float()
    threat = ThreatModel(norm, scaled(norm, 0.035))
    left = {}
    for name in ("autoattack", "autoattack-reference"):
        attack = ATTACKS[name](threat=threat, steps=20, targets=4, queries=100)
        verdicts = run_attack(model, x, y, attack, name, block=60)
        left[name] = [int(robust.sum()) for _, robust in verdicts.stages.values()]
    assert 5 < left["autoattack"][-1] < 55
    # Twenty steps leave the first stage to the luck of its start; what the ensemble leaves standing is steadier.
    assert all(abs(a - b) <= 3 for a, b in zip(left["autoattack"], left["autoattack-reference"], strict=True)), left
    assert abs(left["autoattack"][-1] - left["autoattack-reference"][-1]) <= 1, left
