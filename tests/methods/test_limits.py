"""Identities between methods where a setting makes one into another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.conformance.fixtures import difference
from bench.conformance.loop import Loop
from methods.absld import ABSLD
from methods.ard import ARD
from methods.base import Adversarial, Batch, Method, Terms
from methods.frl import FRL
from methods.registry import METHODS
from methods.trades import TRADES
from tests.helpers import method_runs
from tests.helpers.faulty_plugins import AliasedTemperatures
from tests.helpers.stubs import CLASSES, StubStudent, make_batch, make_context, random_logits

BATCH = make_batch()
CLEAN, ADV, TEACHER = random_logits(0), random_logits(1), random_logits(2)


def trained(name: str, **settings: Any) -> dict[str, Tensor]:
    """Weights and statistics after six epochs of training."""
    return method_runs.trained(method_runs.build(name, **settings), keep=("model/", "momentum/"))


def gradients(method: Method) -> tuple[Terms, dict[str, Tensor]]:
    """Terms on given logits, and the gradients of the mean loss."""
    return method_runs.gradients(method, extras=dict.fromkeys(("soft", "soft_adv", "soft_clean"), TEACHER.softmax(1)))


def test_absld_at_rate_zero_is_rslad_bit_for_bit() -> None:
    rslad = trained("rslad")
    assert difference(rslad, trained("absld", temperature_rate=0.0)) is None
    assert difference(rslad, trained("absld", temperature_rate=0.0, temperature_mode="product")) is None
    assert difference(rslad, trained("absld", temperature_rate=0.1)) is not None


def test_the_two_modes_of_absld_part_ways_once_temperatures_move() -> None:
    assert difference(trained("absld"), trained("absld", temperature_mode="product")) is not None


def test_trades_at_beta_zero_has_the_gradient_of_standard_training() -> None:
    terms, found = gradients(TRADES(beta=0.0))
    plain, expected = gradients(METHODS["natural"]())
    assert torch.equal(terms.loss, plain.loss)
    assert torch.equal(found["clean"], expected["clean"]) and not found["adv"].any()


@pytest.mark.parametrize("name", ["frl", "frl_remargin"])
def test_frl_without_multipliers_is_trades(name: str) -> None:
    frl, found = gradients(METHODS[name]())
    trades, expected = gradients(TRADES(beta=1.5))
    torch.testing.assert_close(frl.loss, trades.loss, rtol=1e-9, atol=0)
    for view in found:
        torch.testing.assert_close(found[view], expected[view], rtol=1e-9, atol=1e-12)


def test_ard_at_alpha_zero_is_standard_training() -> None:
    ard, found = gradients(ARD(alpha=0.0))
    plain, expected = gradients(METHODS["natural"]())
    torch.testing.assert_close(ard.loss, plain.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found["clean"], expected["clean"], rtol=1e-12, atol=0)
    assert not found["adv"].any()


def test_ham_before_mining_is_adversarial_training_in_eval_mode() -> None:
    settings: dict[str, Any] = {"eps": 0.1, "step_size": 0.03}
    assert difference(trained("ham", begin_epoch_index=1, **settings), trained("ham", begin_epoch_index=0, **settings))
    first = [Loop(METHODS[name](num_classes=5, **settings, **more), 5).run(stop=(1, 0)) for name, more in (
        ("ham", {"begin_epoch_index": 1}), ("pgd_at", {"bn": "eval"}),
    )]  # fmt: skip
    found, expected = ({k: v for k, v in loop.tensors().items() if not k.startswith("method/")} for loop in first)
    assert difference(found, expected) is None


def moved_by_the_clean_temperatures(method: Method) -> bool:
    """Whether the inner points change when the temperatures of the clean branch do."""
    points = []
    for clean in (torch.ones(5), torch.linspace(0.5, 3.0, 5)):
        loop = Loop(method, 5).begin(0)
        method.get_buffer("temperature_clean").copy_(clean)
        points.append(loop.perturb(loop.batch()).x)
    return not torch.equal(*points)


def test_the_branches_of_absld_are_independent_unless_the_released_form_is_asked_for() -> None:
    assert not moved_by_the_clean_temperatures(ABSLD(num_classes=5, temperature_mode="separate"))
    assert moved_by_the_clean_temperatures(ABSLD(num_classes=5, temperature_mode="product"))
    assert moved_by_the_clean_temperatures(AliasedTemperatures(num_classes=5)), "the planted fault must be seen"


def test_the_loss_of_a_micro_batch_is_normalised_over_the_step() -> None:
    method = FRL()
    method.multiplier_clean.copy_(torch.linspace(0, 0.09, CLASSES))
    method.multiplier_boundary.copy_(torch.linspace(0.09, 0, CLASSES) ** 2)
    whole, _ = gradients(method)
    for rows in (slice(0, 5), slice(5, None)):
        part = Batch(BATCH.x[rows], BATCH.y[rows], BATCH.index[rows], BATCH.step_labels)
        student = StubStudent({"clean": (part.x, CLEAN[rows]), "adv": (part.x.clone(), ADV[rows])})
        found = method.loss(student, part, Adversarial(student.inputs["adv"]), make_context()).loss
        torch.testing.assert_close(found, whole.loss[rows], rtol=1e-9, atol=0)
