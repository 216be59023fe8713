"""The one ascent loop, against closed forms on linear models and against itself."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from attacks import objectives
from attacks.ascent import ascend
from attacks.contexts import mode
from attacks.cw import CW
from attacks.fgsm import FGSM
from attacks.pgd import PGD, TRADES_RATIO, PGDTrades
from attacks.threat import Norm, ThreatModel, distance, project
from bench.conformance.fixtures import freeze_first_batch_norm, gradients_of, images, modes_of, network, state_of
from bench.core.pass_counter import PassCounter

X = images(12, 3)
Y = torch.arange(12) % 5


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model() -> nn.Sequential:
    return network(5, 0).eval()


def linear(weight: Tensor) -> nn.Module:
    """Two classes, logits -w.x/2 and w.x/2."""
    head = nn.Linear(weight.numel(), 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.stack([-weight.flatten() / 2, weight.flatten() / 2]))
    return nn.Sequential(nn.Flatten(), head)


def total(logits: Tensor, rows: Tensor) -> Tensor:
    return logits[:, 1] - logits[:, 0]


class Shifted(nn.Module):
    """A module x -> logits whose gradient vanishes for some samples."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1).sum(1)
        return torch.stack([flat, -flat], 1)


@pytest.mark.parametrize("steps", [1, 5])
def test_linf_gain_on_a_linear_model_is_eps_times_the_l1_norm(steps: int) -> None:
    weight = torch.randn(64, generator=stream())
    x = 0.4 + 0.2 * X
    x_adv = ascend(linear(weight), x, total, eps=0.1, step_size=0.1, steps=steps, start="zero")
    gain = (x_adv - x).flatten(1) @ weight
    torch.testing.assert_close(gain, (0.1 * weight.abs().sum()).expand(12), rtol=1e-5, atol=1e-5)


def test_l2_gain_on_a_linear_model_is_eps_times_the_l2_norm() -> None:
    weight = torch.randn(64, generator=stream())
    x = 0.4 + 0.2 * X
    x_adv = ascend(linear(weight), x, total, eps=0.3, step_size=0.3, steps=1, start="zero", norm="l2")
    torch.testing.assert_close((x_adv - x).flatten(1), (0.3 * weight / weight.norm()).expand(12, 64))
    uphill = ascend(
        linear(weight), x, total, eps=0.3, step_size=0.1, steps=60, start="uniform", norm="l2", generator=stream()
    )
    torch.testing.assert_close((uphill - x).flatten(1) @ weight, (0.3 * weight.norm()).expand(12), rtol=1e-4, atol=0)


def test_a_step_is_as_long_as_it_says() -> None:
    weight = torch.linspace(-1, 1, 64)
    x = 0.4 + 0.2 * X
    linf = ascend(linear(weight), x, total, eps=1.0, step_size=0.01, steps=3, start="zero")
    torch.testing.assert_close((linf - x).abs(), torch.full_like(x, 0.03))
    l2 = ascend(linear(weight), x, total, eps=1.0, step_size=0.01, steps=3, start="zero", norm="l2")
    torch.testing.assert_close(distance(l2, x, "l2"), torch.full((12,), 0.03))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ten_steps_are_four_and_then_six(model: nn.Module, norm: Norm) -> None:
    def go(steps: int, start: Tensor) -> Tensor:
        loss = objectives.cross_entropy(Y)
        return ascend(model, X, loss, eps=0.1, step_size=0.03, steps=steps, start=start, norm=norm)

    start = ThreatModel(norm, 0.1).start(X, "uniform", stream())
    assert torch.equal(go(10, start), go(6, go(4, start)))


def test_fgsm_is_one_step_of_eps_from_the_image(model: nn.Module) -> None:
    threat = ThreatModel("linf", 0.1)
    one = PGD(threat, steps=1, step_size=0.1, start="zero")
    assert torch.equal(FGSM(threat)(model, X, Y, generator=stream()), one(model, X, Y, generator=stream()))


def test_the_step_sizes_of_the_registered_attacks(model: nn.Module) -> None:
    threat = ThreatModel("linf", 8 / 255)
    assert TRADES_RATIO * threat.eps == pytest.approx(0.003)
    x = 0.4 + 0.2 * X
    for attack, size in (
        (PGD(threat, steps=1, start="zero"), 2 / 255),
        (PGDTrades(threat, steps=1, start="zero"), 0.003),
    ):
        x_adv = attack(model, x, Y, generator=stream())
        torch.testing.assert_close((x_adv - x).abs().flatten(1).amax(1), torch.full((12,), size), rtol=1e-4, atol=0)
    assert (CW(threat).steps, CW(threat).start, PGD(threat).steps) == (30, "zero", 20)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_each_sample_has_its_own_radius_and_step(model: nn.Module, norm: Norm) -> None:
    eps = torch.linspace(0.0, 0.2, 12)
    loss = objectives.cross_entropy(Y)
    together = ascend(model, X, loss, eps=eps, step_size=eps / 2, steps=5, start="zero", norm=norm)
    assert (distance(together, X, norm) <= eps + 1e-6).all()
    assert torch.equal(together[0], X[0])
    for i in (3, 11):
        own = objectives.cross_entropy(Y[i : i + 1])
        radius = float(eps[i])
        alone = ascend(model, X[i : i + 1], own, eps=radius, step_size=radius / 2, steps=5, start="zero", norm=norm)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-5)


def test_observe_sees_the_iterate_before_each_step(model: nn.Module) -> None:
    seen: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def observe(step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> None:
        assert not (x_adv.requires_grad or logits.requires_grad)
        seen.append((step, x_adv.clone(), logits.clone(), rows.clone()))

    loss = objectives.cross_entropy(Y)
    options: dict[str, Any] = {"eps": 0.1, "step_size": 0.03}
    watched = ascend(model, X, loss, steps=3, start="zero", observe=observe, **options)
    assert [step for step, *_ in seen] == [0, 1, 2]
    for step, x_adv, logits, rows in seen:
        assert torch.equal(x_adv, ascend(model, X, loss, steps=step, start="zero", **options))
        with torch.no_grad():
            torch.testing.assert_close(logits, model(x_adv))
        assert rows.tolist() == list(range(12))
    assert torch.equal(watched, ascend(model, X, loss, steps=3, start="zero", **options))


@pytest.mark.parametrize("dropped_at", [0, 2])
def test_a_dropped_row_stays_where_it_is_and_costs_nothing(model: nn.Module, dropped_at: int) -> None:
    keep = torch.arange(12) % 3 == 0
    counter = PassCounter()
    handle = counter.watch(model, "student")
    sizes = []

    def observe(step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> Tensor | None:
        sizes.append(rows.tolist())
        return keep if step == dropped_at else None

    loss = objectives.cross_entropy(Y)
    options: dict[str, Any] = {"eps": 0.1, "step_size": 0.03, "start": "zero"}
    x_adv = ascend(model, X, loss, steps=5, observe=observe, **options)
    handle.remove()
    assert torch.equal(x_adv[~keep], ascend(model, X, loss, steps=dropped_at, **options)[~keep])
    torch.testing.assert_close(x_adv[keep], ascend(model, X, loss, steps=5, **options)[keep], rtol=0, atol=1e-6)
    assert sizes == [list(range(12))] * (dropped_at + 1) + [[0, 3, 6, 9]] * (4 - dropped_at)
    whole, rest = 12 * (dropped_at + 1), 4 * (4 - dropped_at)
    assert counter.counts["student"]["forward"] == whole + rest
    assert counter.counts["student"]["input_grad"] == whole + rest


def test_rows_can_be_dropped_twice(model: nn.Module) -> None:
    def observe(step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> Tensor:
        return rows % (step + 2) == 0

    loss = objectives.cross_entropy(Y)
    options: dict[str, Any] = {"eps": 0.1, "step_size": 0.03, "start": "zero"}
    x_adv = ascend(model, X, loss, steps=3, observe=observe, **options)
    for row, steps in ((1, 0), (2, 1), (4, 1), (6, 2), (3, 0)):
        expected = ascend(model, X, loss, steps=steps, **options)
        torch.testing.assert_close(x_adv[row], expected[row], rtol=0, atol=1e-6)


def test_dropping_every_row_ends_the_ascent(model: nn.Module) -> None:
    counter = PassCounter()
    counter.watch(model, "student")
    x_adv = ascend(
        model, X, objectives.cross_entropy(Y), eps=0.1, step_size=0.03, steps=9, start="zero",
        observe=lambda step, x_adv, logits, rows: torch.zeros(len(rows), dtype=torch.bool),
    )  # fmt: skip
    assert torch.equal(x_adv, X)
    assert counter.counts["student"] == {"forward": 12, "input_grad": 0, "backward": 0}


def test_what_stops_at_its_start_lies_inside_the_ball(model: nn.Module) -> None:
    x_adv = ascend(
        model, X, objectives.cross_entropy(Y), eps=1e-4, step_size=1e-4, steps=3, start="gaussian", generator=stream(),
        observe=lambda step, x_adv, logits, rows: rows > 5,
    )  # fmt: skip
    assert ThreatModel("linf", 1e-4).contains(x_adv, X).all()


def test_eval_mode_leaves_statistics_and_train_mode_moves_them(model: nn.Sequential) -> None:
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked is not None
    loss = objectives.cross_entropy(Y)
    for bn, passes in (("eval", 0), ("train", 4)):
        before = state_of(model)
        ascend(model.train(), X, loss, eps=0.1, step_size=0.03, steps=4, start="zero", bn=bn)  # type: ignore[arg-type]
        assert int(norm.num_batches_tracked - before["1.num_batches_tracked"]) == passes
        assert torch.equal(norm.get_buffer("running_mean"), before["1.running_mean"]) is (bn == "eval")


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_modes_and_gradients_are_left_as_they_were(model: nn.Sequential, bn: Literal["eval", "train"]) -> None:
    freeze_first_batch_norm(model)
    weight = model.get_parameter("0.weight")
    weight.grad = torch.ones_like(weight)
    before = {**modes_of(model), **gradients_of(model)}
    ascend(model, X, objectives.cross_entropy(Y), eps=0.1, step_size=0.03, steps=2, start="zero", bn=bn)
    after = {**modes_of(model), **gradients_of(model)}
    assert all(torch.equal(v, after[k]) if isinstance(v, Tensor) else v == after[k] for k, v in before.items())


def test_an_objective_without_a_derivative_is_differentiated(model: nn.Module) -> None:
    objective = objectives.kl(torch.full((12, 5), 0.2))
    ways = [objective, lambda logits, rows: objective(logits, rows)]
    points = [
        ascend(model.double(), X.double(), way, eps=0.1, step_size=0.03, steps=4, start="uniform", generator=stream())
        for way in ways
    ]
    torch.testing.assert_close(*points)


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_no_parameter_asks_for_a_gradient_meanwhile_and_all_do_afterwards(
    model: nn.Sequential, bn: Literal["eval", "train"]
) -> None:
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    asked: list[bool] = []

    def watch(step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> None:
        asked.extend(parameter.requires_grad for parameter in parameters)

    ascend(model, X, objectives.cross_entropy(Y), eps=0.1, step_size=0.03, steps=2, start="zero", observe=watch, bn=bn)
    assert len(asked) == 2 * len(parameters)
    assert not any(asked)
    assert [parameter.requires_grad for parameter in parameters] == [False] + [True] * (len(parameters) - 1)


def test_the_ball_is_found_once_and_equals_a_projection_after_each_step(model: nn.Module) -> None:
    """Images outside the box end inside it, as `project` would have them."""
    outside = (3 * X - 1).double()
    stride, eps = 0.05, torch.linspace(0.01, 0.2, 12, dtype=torch.float64)
    model, objective, x_adv = model.double(), objectives.cross_entropy(Y), outside
    for _ in range(3):
        here = x_adv.clone().requires_grad_()
        (grad,) = torch.autograd.grad(objective(model(here), torch.arange(12)).sum(), here)
        x_adv = project(x_adv + stride * grad.sign(), outside, eps, "linf")
    found = ascend(model, outside, objective, eps=eps, step_size=stride, steps=3, start="zero")
    torch.testing.assert_close(found, x_adv, rtol=0, atol=1e-12)


def test_modes_are_restored_after_an_error(model: nn.Sequential) -> None:
    freeze_first_batch_norm(model)
    before = modes_of(model)
    with pytest.raises(RuntimeError, match="stop"), mode(model, train=True):
        raise RuntimeError("stop")
    assert modes_of(model) == before


def test_it_works_under_no_grad_and_the_result_is_detached(model: nn.Module) -> None:
    loss = objectives.cross_entropy(Y)
    options: dict[str, Any] = {"eps": 0.1, "step_size": 0.03, "steps": 2, "start": "zero"}
    expected = ascend(model, X.clone().requires_grad_(), loss, **options)
    with torch.no_grad():
        assert torch.equal(ascend(model, X, loss, **options), expected)
    assert not expected.requires_grad


def test_a_joint_module_sees_the_iterate() -> None:
    student, teacher = network(5, 0).eval(), network(5, 1).eval()

    class Joint(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = student, teacher

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.student(x), self.teacher(x)], 1)

    def apart(logits: Tensor, rows: Tensor) -> Tensor:
        s, t = logits.unbind(1)
        return (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1)

    joint = Joint()
    x_adv = ascend(joint, X, apart, eps=0.1, step_size=0.03, steps=4, start="gaussian", generator=stream())
    with torch.no_grad():
        rows = torch.arange(12)
        assert apart(joint(x_adv), rows).sum() > apart(joint(X), rows).sum()


def test_a_vanishing_gradient_moves_nothing() -> None:
    x_adv = ascend(Shifted(), X, lambda z, rows: 0 * z.sum(1), eps=0.1, step_size=0.1, steps=2, start="zero", norm="l2")
    assert torch.equal(x_adv, X)
