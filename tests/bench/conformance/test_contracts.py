"""Every registered method and attack keeps the contract, and every check of the contract bites."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from attacks.pgd import PGD
from attacks.plugins.registry import UnknownName
from attacks.registry import ATTACKS
from bench.cli.app import main
from bench.conformance import (
    ATTACK_CHECKS,
    METHOD_CHECKS,
    AttackCase,
    MethodCase,
    attack_cases,
    check_all,
    check_options,
    fault,
    method_cases,
)
from bench.conformance.exemptions import CHECK_OPTIONS
from bench.conformance.loop import EPOCHS, STEPS, Loop
from methods.base import Adversarial, Batch, Context, Method
from methods.pgd_at import PGDAT
from methods.recipes import digits
from methods.registry import COMPOSITIONS, METHODS
from tests.helpers.faulty_plugins import FAULTY_ATTACKS, FAULTY_METHODS, RoundsItsWeights
from tests.helpers.jobs import plan, train_all

EXEMPT = [(kind, name, check) for (kind, name), known in CHECK_OPTIONS.items() for check in known.exempt]


# One of each composition, around hosts with a teacher, held-out samples, dropped rows, and around one another.
COMPOSED = ("awp:trades", "fawa:frl", "fair_weight:absld", "awp:ema:ham", "swa:ard")


@pytest.mark.parametrize(
    ("name", "check"),
    [
        (name, check)
        for name in [*METHODS.names(), *COMPOSED]
        for check in METHOD_CHECKS
        if ("method", name, check) not in EXEMPT
    ],
)
def test_method_keeps_the_contract(name: str, check: str) -> None:
    for case in method_cases(name):
        assert fault(METHOD_CHECKS[check], case) is None


@pytest.mark.parametrize(
    ("name", "check"),
    [(name, check) for name in ATTACKS.names() for check in ATTACK_CHECKS if ("attack", name, check) not in EXEMPT],
)
def test_attack_keeps_the_contract(name: str, check: str) -> None:
    cases = attack_cases(name)
    assert cases
    for case in cases:
        assert fault(ATTACK_CHECKS[check], case) is None


@pytest.mark.parametrize(("kind", "name", "check"), EXEMPT)
def test_what_is_exempt_would_fail(kind: str, name: str, check: str) -> None:
    if kind == "method":
        found = [fault(METHOD_CHECKS[check], case) for case in method_cases(name)]
    else:
        found = [fault(ATTACK_CHECKS[check], case) for case in attack_cases(name)]
    assert any(sentence is not None for sentence in found)


@pytest.mark.parametrize(("check", "faulty"), FAULTY_METHODS, ids=lambda value: getattr(value, "__name__", value))
def test_a_faulty_method_is_caught(check: str, faulty: type[Method]) -> None:
    assert fault(METHOD_CHECKS[check], MethodCase("faulty", faulty, 3)) is not None


@pytest.mark.parametrize(("check", "faulty"), FAULTY_ATTACKS, ids=lambda value: getattr(value, "__name__", value))
def test_a_faulty_attack_is_caught(check: str, faulty: type[PGD]) -> None:
    assert fault(ATTACK_CHECKS[check], AttackCase("faulty", faulty, 11, "linf")) is not None


def test_rounding_decides_nothing_when_classes_are_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    check, case = METHOD_CHECKS["label_permutation_equivariance"], MethodCase("rounding", RoundsItsWeights, 3)
    assert fault(check, case) is None
    monkeypatch.setattr("bench.conformance.methods.EXACT", torch.float32)
    assert fault(check, case) is not None


def test_every_check_has_a_planted_fault() -> None:
    assert {check for check, _ in FAULTY_METHODS} == set(METHOD_CHECKS)
    assert {check for check, _ in FAULTY_ATTACKS} == set(ATTACK_CHECKS)


def test_every_check_option_names_a_plug_in_and_its_reason() -> None:
    for (kind, name), known in CHECK_OPTIONS.items():
        assert name in (METHODS.names() if kind == "method" else ATTACKS.names())
        assert known.reason and all(known.exempt.values())
        assert set(known.exempt) <= set({"method": METHOD_CHECKS, "attack": ATTACK_CHECKS}[kind])


def test_check_all_runs_every_check_in_any_spelling() -> None:
    lines = list(check_all(["Natural", "FGSM"]))
    assert [line.split()[:3] for line, _ in lines] == [
        *(["ok", "natural", check] for check in METHOD_CHECKS),
        *(["ok", "fgsm", check] for check in ATTACK_CHECKS),
    ]
    assert all(passed for _, passed in lines)


def test_check_all_runs_on_compositions_with_what_their_parts_need() -> None:
    assert check_options(METHODS, "awp:ema:ham").arguments == {"steps": 5, "begin_epoch_index": 0}
    lines = list(check_all(["AWP:natural"]))
    assert [line.split()[:3] for line, _ in lines] == [["ok", "awp:natural", check] for check in METHOD_CHECKS]


def test_every_composition_is_among_those_that_are_checked() -> None:
    assert {part for name in COMPOSED for part in name.split(":")[:-1]} == set(COMPOSITIONS.builtin)


def test_check_all_gives_the_reason_of_an_exemption() -> None:
    lines = [line for line, passed in check_all(["square"]) if passed and line.startswith("none")]
    reason = CHECK_OPTIONS["attack", "square"].exempt["linear_model_closed_form"]
    assert lines == [f"none  square  linear_model_closed_form: {reason}"]


def test_an_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownName, match="unknown method or attack 'abslt'; did you mean 'absld'"):
        list(check_all(["natural", "abslt"]))


PLUGIN = '''
from methods import register
from methods.pgd_at import PGDAT
from methods.recipes import digits
from methods.base import Terms


@register("mine", check_arguments={"factor": 2.0})
class Mine(PGDAT):
    """Mine."""

    def __init__(self, *, factor=None, **inner):
        super().__init__(**inner)
        self.factor = factor

    def loss(self, model, batch, adv, ctx):
        terms = super().loss(model, batch, adv, ctx)
        return Terms(self.factor * terms.loss.mean(), terms.logits)
'''


@pytest.fixture
def room_for_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered in a test is gone after it."""
    monkeypatch.setattr(METHODS, "_objects", dict(METHODS._objects))
    monkeypatch.setattr(METHODS, "_facts", dict(METHODS._facts))


@pytest.mark.usefixtures("room_for_methods")
def test_a_plug_in_is_checked_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "mine_for_checks.py"
    file.write_text(PLUGIN)
    result = CliRunner().invoke(main, ["check", "mine", "--plugin", str(file)])
    assert result.exit_code == 1
    assert "FAIL  mine  loss_per_sample_finite: expected a loss of shape" in result.output
    assert "ok    mine  default_constructible" in result.output
    assert check_options(METHODS, "mine").arguments == {"factor": 2.0}


HOOKS = ("setup", "begin_epoch", "perturb", "loss", "observe", "after_step", "end_epoch")


class Recorder(PGDAT):
    """Notes the order in which its hooks are called, and how the optimiser's step lies among them."""

    recipes = {"digits": digits(epochs=EPOCHS, batch_size=128)}
    calls: ClassVar[list[str]] = []

    def __getattribute__(self, name: str) -> Any:
        if name in HOOKS:
            type(self).calls.append(name)
        return super().__getattribute__(name)

    @contextmanager
    def around_step(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Iterator[None]:
        before = [weight.detach().clone() for weight in model.parameters()]
        self.calls.append("enter")
        yield
        moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        self.calls.append("leave after the step" if moved else "leave before the step")


@pytest.mark.usefixtures("room_for_methods")
def test_the_loop_of_the_checks_calls_hooks_in_the_order_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    METHODS.register("recorder")(Recorder)
    monkeypatch.setattr(Recorder, "calls", [])
    Loop(Recorder(num_classes=10), 10).run()
    checked = list(Recorder.calls)
    Recorder.calls.clear()
    # 200 samples in batches of 128: two steps an epoch, as in the checks.
    train_all(plan(methods=("recorder",), train_limit=200, attacks=("fgsm",)), tmp_path)
    step = ["perturb", "enter", "loss", "observe", "leave after the step", "after_step"]
    assert checked == ["setup", *(["begin_epoch", *step * STEPS, "end_epoch"] * EPOCHS)]
    assert Recorder.calls == checked


def test_what_a_plug_in_raises_is_the_finding() -> None:
    class Broken(PGDAT):
        def begin_epoch(self, model: object, ctx: object) -> None:
            raise KeyError("table")

    found = fault(METHOD_CHECKS["resume_is_bitwise"], MethodCase("broken", Broken, 3))
    assert found == "KeyError: 'table' (3 classes)"
