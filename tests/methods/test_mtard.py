"""MTARD: which teacher sees what, the balance of its terms, and what it is without the natural teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.training.trainer import train
from methods.adaad import AdaAD
from methods.base import Adversarial, Method, Terms
from methods.mtard import MTARD
from tests.helpers import formulas
from tests.helpers.jobs import StopAt, history, job_of, parts_of, run_with_interruptions, small, train_all, tree
from tests.helpers.stubs import StubStudent, StubTeacher, make_batch, make_context, random_logits

BATCH = make_batch()
CLEAN, ADV, TEACHER, NATURAL = (random_logits(seed) for seed in range(4))


def observed(method: MTARD, robust: Tensor, natural: Tensor, epoch: int = 0, **ctx: Any) -> float:
    """The share of the natural term after a step with given terms."""
    terms = Terms(torch.zeros(len(robust)), {}, extras={"robust": robust, "natural": natural})
    context = make_context(epoch=epoch)
    for name, value in ctx.items():
        setattr(context, name, value)
    method.observe(BATCH, Adversarial(BATCH.x), terms, context)
    method.after_step(nn.Identity(), context)
    return method.natural_share.item()


def test_the_robust_teacher_sees_the_adversarial_and_the_natural_one_the_clean_input() -> None:
    robust, natural = StubTeacher(TEACHER), StubTeacher(NATURAL)
    student = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).double()
    adv = MTARD().perturb(student, BATCH, make_context(robust, natural=natural))
    assert [x is adv.x for x in robust.seen] == [True] and [x is BATCH.x for x in natural.seen] == [True]
    assert not torch.equal(adv.x, BATCH.x)
    assert torch.equal(adv.extras["soft_adv"], TEACHER.softmax(1))
    assert torch.equal(adv.extras["soft_clean"], NATURAL.softmax(1))


def test_the_balance_follows_the_terms_relative_to_their_first_values() -> None:
    method, share = MTARD(), 0.5
    draws = np.random.default_rng(0).random((6, 2, len(BATCH.y))) + 0.1
    first = draws[0].mean(axis=1)
    for step, (robust, natural) in enumerate(draws):
        share = formulas.mtard_update(share, first, draws[step].mean(axis=1), 0.025)
        found = observed(method, torch.tensor(robust), torch.tensor(natural))
        assert found == pytest.approx(share, rel=1e-12)
        if step == 0:
            assert found == pytest.approx(0.5, rel=1e-12), "both are at their first values"
    assert method.first.tolist() == pytest.approx(first.tolist(), rel=1e-12)


def test_the_term_that_has_fallen_less_gains_weight_up_to_its_share() -> None:
    method, one = MTARD(weight_rate=0.5), torch.ones(4)
    observed(method, one, one)
    shares = [observed(method, 0.25 * one, 0.75 * one) for _ in range(30)]
    assert all(a < b for a, b in zip(shares[:20], shares[1:20], strict=False))
    assert shares[-1] == pytest.approx(0.75)


@pytest.mark.parametrize(("epoch", "rate"), [(214, 0.025), (215, 0.0025), (260, 0.00025), (285, 0.000025)])
def test_the_rate_drops_with_the_learning_rate(epoch: int, rate: float) -> None:
    method, one = MTARD(), torch.ones(4)
    observed(method, one, one)
    assert observed(method, 0 * one, one, epoch=epoch) == pytest.approx(0.5 + rate * 0.5, rel=1e-12)


def test_terms_of_zero_leave_the_balance_and_wait_for_a_first_value() -> None:
    method, one = MTARD(natural_weight=0.3), torch.ones(4)
    assert observed(method, 0 * one, 0 * one) == 0.3 and not method.first.any()
    observed(method, 2 * one, one)
    assert method.first.tolist() == [2.0, 1.0]


def test_processes_agree_on_the_balance_of_the_whole_step() -> None:
    robust, natural = torch.rand(2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole, part = MTARD(), MTARD()
    for method, size in ((whole, 12), (part, 5)):
        for scale in (1.0, 0.5):
            rest = torch.tensor([scale * robust[size:].sum(), natural[size:].sum(), 12.0 - size], dtype=torch.float64)
            reduce = lambda tensor, rest=rest: tensor + rest  # noqa: E731
            observed(method, scale * robust[:size], natural[:size], reduce=reduce)
    assert whole.natural_share.item() != 0.5
    torch.testing.assert_close(part.natural_share, whole.natural_share, rtol=1e-12, atol=0)


def gradients(method: Method) -> tuple[Tensor, dict[str, Tensor | None]]:
    student = StubStudent({"clean": (BATCH.x, CLEAN), "adv": (BATCH.x.clone(), ADV)})
    soft = {"soft_adv": TEACHER.softmax(1), "soft_clean": NATURAL.softmax(1)}
    terms = method.loss(student, BATCH, Adversarial(student.inputs["adv"], extras=soft), make_context())
    terms.loss.mean().backward()
    return terms.loss.detach(), {name: logits.grad for name, logits in student.logits.items()}


def test_without_weight_on_the_natural_teacher_it_has_the_loss_of_adaad() -> None:
    loss, found = gradients(MTARD(natural_weight=0.0))
    expected_loss, expected = gradients(AdaAD())
    assert torch.equal(loss, expected_loss)
    assert found["adv"] is not None and expected["adv"] is not None and torch.equal(found["adv"], expected["adv"])
    assert found["clean"] is not None and not found["clean"].any() and expected["clean"] is None


@pytest.mark.parametrize("settings", [{"natural_weight": 1.5}, {"natural_weight": -0.1}, {"weight_rate": 2.0}], ids=str)
def test_weights_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="MTARD: .*: expected a number from 0 to 1, got"):
        MTARD(**settings)


def test_a_run_of_the_plan_learns_the_balance_and_resumes_with_it(tmp_path: Path) -> None:
    plan = small(methods=("mtard",), epochs=2)
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    train_all(plan, whole)
    job = job_of(plan, "mtard")
    assert [(j.method, j.role) for j in plan.train[:2]] == [("trades", "teacher"), ("natural", "teacher")]
    shares = [line["state"]["natural_share"] for line in history(whole / job.folder)]
    assert len(set(shares)) == 2 and all(0 < share < 1 for share in shares)
    for teacher in plan.train[:2]:
        (pieces / teacher.folder.parent).mkdir(parents=True)
        (pieces / teacher.folder).symlink_to(whole / teacher.folder)

    def start(progress: StopAt) -> None:
        train(job, parts_of(job), pieces, Path("data"), progress)

    assert run_with_interruptions(start, n=3) > 1
    assert tree(pieces / job.folder) == tree(whole / job.folder)
