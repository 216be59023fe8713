"""BAT: which iterates x_last and x_first are, against a walk through every iterate, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks import objectives
from attacks.ascent import ascend
from attacks.contexts import mode
from attacks.passes import Passes
from bench.conformance.fixtures import OperationCounter, images, network
from bench.core.pass_counter import PassCounter
from methods.base import Adversarial, Batch
from methods.bat import BAT, EarlyExit
from tests.helpers import formulas
from tests.helpers.method_runs import ADV, BATCH, CLEAN, Y, build, count_passes, resume_differences
from tests.helpers.stubs import StubStudent, make_context, random_logits

CLASSES, SAMPLES, EPS, STEP = 5, 64, 0.5, 0.06
LAST = random_logits(5)


@dataclass
class Walk:
    """All iterates of an ascent that nothing leaves, and which of them are misclassified."""

    points: list[Tensor]
    wrong: Tensor

    def last_correct(self, row: int) -> Tensor:
        """The definition of x_last, sample by sample."""
        wrong = [k for k in range(len(self.wrong)) if self.wrong[k, row]]
        return self.points[max(wrong[0] - 1, 0) if wrong else -1][row]

    def first_wrong(self, row: int, grace: int) -> Tensor:
        """The definition of x_first."""
        wrong = [k for k in range(len(self.wrong)) if self.wrong[k, row]]
        return self.points[wrong[grace] if len(wrong) > grace else -1][row]


def scene() -> tuple[torch.nn.Module, Batch]:
    """A network in double precision, and labels of which an eighth is wrong from the start."""
    model, x = network(CLASSES, 0).double().eval(), images(SAMPLES, 3).double()
    with torch.no_grad():
        y = model(x).topk(2, dim=1).indices[:, 0]
        y[::8] = model(x[::8]).topk(2, dim=1).indices[:, 1]
    return model, Batch(x, y, torch.arange(SAMPLES), y)


def walked(model: torch.nn.Module, batch: Batch, generator: torch.Generator, steps: int = 10) -> Walk:
    """Every iterate of the attack on TRADES' divergence from a clipped Gaussian start."""
    start = (batch.x + 0.001 * torch.randn(batch.x.shape, dtype=torch.float64, generator=generator)).clamp(0, 1)
    points: list[Tensor] = []
    wrong: list[Tensor] = []

    def note(step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> None:
        points.append(x_adv.clone())
        wrong.append(logits.argmax(1) != batch.y)

    with torch.no_grad():
        objective = objectives.kl(model(batch.x).softmax(1))
    end = ascend(model, batch.x, objective, eps=EPS, step_size=STEP, steps=steps, start=start, observe=note)
    return Walk([*points, end], torch.stack(wrong))


def perturbed(**options: Any) -> tuple[Adversarial, list[Walk]]:
    """What BAT finds, and the walks from the same one or two starts."""
    model, batch = scene()
    method = BAT(num_classes=CLASSES, eps=EPS, step_size=STEP, **options)
    adv = method.perturb(model, batch, make_context())
    generator = make_context().generator
    return adv, [walked(model, batch, generator) for _ in range(2)]


def test_the_scene_has_every_kind_of_sample() -> None:
    _, (walk, _) = perturbed()
    times, first = walk.wrong.sum(0), walk.wrong.int().argmax(0)
    since = torch.stack([walk.wrong[k:, row].all() for row, k in enumerate(first.tolist())])
    crosses = ~walk.wrong[0] & walk.wrong.any(0)
    for kind in (walk.wrong[0], times == 0, times == 1, crosses & since, crosses & ~since):
        assert kind.any()


@pytest.mark.parametrize("grace", [0, 1, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_x_last_and_x_first_are_the_iterates_of_their_definitions(grace: int, shared: bool) -> None:
    adv, walks = perturbed(grace=grace, shared_trace=shared)
    for_last, for_first = walks[0], walks[0 if shared else 1]
    expected_last = torch.stack([for_last.last_correct(row) for row in range(SAMPLES)])
    expected_first = torch.stack([for_first.first_wrong(row, grace) for row in range(SAMPLES)])
    torch.testing.assert_close(adv.extras["last"], expected_last, rtol=0, atol=1e-9)
    torch.testing.assert_close(adv.x, expected_first, rtol=0, atol=1e-9)


def test_the_default_is_the_second_misclassified_iterate_of_two_attacks() -> None:
    adv, _ = perturbed()
    explicit, _ = perturbed(grace=1, shared_trace=False)
    assert torch.equal(adv.x, explicit.x) and torch.equal(adv.extras["last"], explicit.extras["last"])


def test_on_a_shared_trace_without_grace_the_two_points_are_neighbours() -> None:
    adv, (walk, _) = perturbed(grace=0, shared_trace=True)
    apart = (adv.x - adv.extras["last"]).flatten(1).abs().amax(1)
    crossed = walk.wrong.any(0) & ~walk.wrong[0]
    assert crossed.any() and (apart[crossed] > 0.9 * STEP).all() and (apart <= STEP + 1e-9).all()
    assert not apart[~crossed].any(), "what never falls, or falls at once, has one point"


def test_scripted_logits() -> None:
    """Right, right, wrong, right, wrong: the last before the first wrong is the second, the second wrong the fifth."""
    y = torch.zeros(3, dtype=torch.int64)
    right = torch.tensor([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]], dtype=torch.bool)
    exits, rows, left = EarlyExit(y, grace=1), torch.arange(3), {}
    for step in range(6):
        logits = torch.stack([right[rows, step].double(), (~right[rows, step]).double()], 1)
        keep = exits(step, torch.full((len(rows), 1, 1, 1), float(step)), logits, rows)
        left.update({int(row): step for row in rows[~keep]})
        rows = rows[keep]
    assert left == {0: 4}, "one grace step each, and no third"
    assert exits.last_correct(torch.full((3, 1, 1, 1), 9.0)).flatten().tolist() == [1.0, 0.0, 4.0]


def test_loss_and_gradient_of_three_different_points() -> None:
    student = StubStudent({"clean": (BATCH.x, CLEAN), "first": (BATCH.x.clone(), ADV), "last": (BATCH.x.clone(), LAST)})
    adv = Adversarial(student.inputs["first"], extras={"last": student.inputs["last"]})
    terms = BAT(beta=2.5, uniform_weight=0.4).loss(student, BATCH, adv, make_context())
    terms.loss.mean().backward()
    assert student.calls == ["last", "first", "clean"]
    assert terms.logits == {"adv": student.logits["first"], "clean": student.logits["clean"]}
    at = {"clean": CLEAN.numpy(), "first": ADV.numpy(), "last": LAST.numpy()}

    def formula(**z: formulas.Array) -> float:
        return formulas.bat(z["clean"], z["first"], z["last"], Y, 2.5, 0.4)

    np.testing.assert_allclose(terms.loss.mean().item(), formula(**at), rtol=1e-6)
    for view, logits in student.logits.items():
        expected = formulas.gradient(lambda z, view=view: formula(**{**at, view: z}), at[view])  # type: ignore[misc]
        assert logits.grad is not None
        np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=1e-5, atol=1e-8)


def step_of(method: BAT, rows: int = SAMPLES) -> tuple[Passes, int]:
    """Passes per sample, and tensor operations, of a step in which no sample leaves."""
    model, batch = scene()
    with torch.no_grad():
        y = model(batch.x).argmax(1)
    batch = replace(batch, x=batch.x[:rows], y=y[:rows])
    counter = PassCounter()
    counter.watch(model, "student")
    with OperationCounter() as operations:
        adv = method.perturb(model, batch, make_context())
        with mode(model, train=False):
            method.loss(model, batch, adv, make_context()).loss.mean().backward()
    counts = counter.counts["student"]
    return Passes(**{kind: count / rows for kind, count in counts.items()}), operations.count


@pytest.mark.parametrize(("shared", "steps"), [(False, 20), (True, 10)])
def test_the_declared_passes_are_reached_where_nothing_leaves(shared: bool, steps: int) -> None:
    method = BAT(num_classes=CLASSES, eps=1e-9, step_size=1e-10, shared_trace=shared)
    passes, _ = step_of(method)
    assert passes == method.passes() == Passes(forward=steps + 4, input_grad=steps, backward=3)


def test_operations_do_not_grow_with_the_batch_where_nothing_leaves() -> None:
    method = BAT(num_classes=CLASSES, eps=1e-9, step_size=1e-10)
    assert step_of(method, rows=8)[1] == step_of(method, rows=SAMPLES)[1]


def test_samples_that_leave_cost_nothing_more() -> None:
    found, declared = count_passes(build("bat", eps=EPS, step_size=STEP)), BAT().passes()
    assert 4 < found.forward < declared.forward and found.input_grad < declared.input_grad
    assert found.backward == declared.backward


@pytest.mark.parametrize("shared", [False, True])
def test_resuming_at_any_step_changes_nothing(shared: bool) -> None:
    assert resume_differences(lambda: build("bat", shared_trace=shared, steps=3)) == []


def test_a_negative_grace_is_refused() -> None:
    with pytest.raises(ValueError, match="BAT: grace: expected a whole number of at least 0, got -1"):
        BAT(grace=-1)
