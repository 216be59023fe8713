"""The benchmark of training steps: what it compares is the same work, and what it counts is what was made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import kept, per_class, timing, train_step
from benchmarks.passes import MOST, BarePasses, Kind, Ledger, kind_of, often
from benchmarks.plain_steps import STEPS, Written
from benchmarks.tables import Page
from benchmarks.trained import Ground, PlainStep, SuiteStep, gradients_differ
from methods.registry import METHODS

GROUND = Ground("digits", "small_cnn", "small_cnn_wide", 40)


@pytest.mark.parametrize("switches", [[], ["channels_last", "fold", "fused"]], ids=["none", "usual"])
@pytest.mark.parametrize("method", STEPS)
def test_a_plain_step_finds_the_gradients_of_the_suites(method: str, switches: list[str]) -> None:
    plain = PlainStep(method, GROUND.trainer(method, []))
    assert gradients_differ(GROUND.trainer(method, switches), plain) < 1e-9


@pytest.mark.parametrize("method", ["pgd_at", "trades"])
@pytest.mark.parametrize("how", [Written(once=True), Written(frozen=True)])
def test_however_it_is_written(method: str, how: Written) -> None:
    base = GROUND.trainer(method, [])
    assert gradients_differ(base, PlainStep(method, base, how)) < 1e-9


@pytest.mark.parametrize("method", [name for name in METHODS.names() if not METHODS.sketch(name).fact("drops_rows")])
def test_the_passes_that_are_seen_are_the_declared_ones(method: str) -> None:
    step = SuiteStep(GROUND.trainer(method, None))
    made = {name: samples / GROUND.batch for name, samples in step.counted().totals().items()}
    assert made == step.trainer.method.passes().as_dict()


@pytest.mark.parametrize(
    ("method", "made"),
    [("pgd_at", (11, 0, 11, 0)), ("trades", (23, 10, 13, 0)), ("ard", (12, 10, 2, 1)), ("rslad", (12, 10, 2, 1))],
)
def test_plain_steps_make_the_passes_of_their_releases(method: str, made: tuple[int, ...]) -> None:
    """PGD-AT accumulates weight gradients in the attack; TRADES recomputes its reference and keeps a graph of it."""
    totals = PlainStep(method, GROUND.trainer(method, [])).counted().totals()
    expected = dict(zip(("forward", "input_grad", "backward", "teacher"), made, strict=True))
    if method == "pgd_at":
        expected |= {"input_grad": 10, "backward": 1}  # a pass to the input as well is noted as such
    assert {name: totals[name] / GROUND.batch for name in expected} == expected


def test_a_floor_is_the_sum_of_what_each_kind_costs() -> None:
    ledger, model, x = Ledger(), nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(3, 4)
    with ledger.watching({("student", "as it is"): model}):
        with torch.no_grad():
            model(x)
        model(x).sum().backward()
        model.eval()(x[:2].requires_grad_())
    kinds = {(kind.training, kind.gradient): samples for kind, samples in ledger.samples.items()}
    assert kinds == {(True, "none"): 3, (True, "weights"): 3, (False, "input"): 2}
    assert ledger.seconds(dict.fromkeys(ledger.samples, 2.0)) == 16.0
    assert ledger.totals() == {"forward": 8, "input_grad": 2, "backward": 3, "teacher": 0, "teacher_grad": 0}


class Noting(nn.Linear):
    """Notes the kind of each pass, wherever it is called from."""

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.seen: list[Kind] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(kind_of("student", "as it is", self, x))
        return super().forward(x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("gradient", ["none", "input", "weights"])
def test_bare_passes_are_of_their_kind(gradient: str, training: bool) -> None:
    model = Noting()
    kind = Kind("student", "as it is", training, gradient)  # type: ignore[arg-type]
    BarePasses(kind, model, torch.zeros(3, 4))()
    assert model.seen == [kind]
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (model.weight.grad is not None) == (gradient == "weights")


class Here:
    """Stands for a pool of processes, and runs everything in this one."""

    def __init__(self, processes: int, **_: object) -> None:
        self.processes = processes

    def submit(self, work: Callable[..., float], *arguments: Any) -> Here:
        self.found = work(*arguments)
        return self

    def result(self) -> float:
        return self.found

    def shutdown(self) -> None:
        pass


def test_a_whole_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONG_ENOUGH", 0.0)
    monkeypatch.setattr(kept, "ProcessPoolExecutor", Here)
    train_step.main([
        "--grounds", "digits", "--batch", "32", "--methods", "natural,frl_remargin", "--switched", "trades",
        "--switches", "fold,fused", "--rounds", "1", "--out", str(tmp_path),
    ])  # fmt: skip
    page = (tmp_path / "train_step.md").read_text()
    rows = {
        cells[1].strip(): [c.strip() for c in cells] for line in page.splitlines() if len(cells := line.split("|")) > 3
    }
    assert rows["natural"][2] == "1 + 0 + 1, 0 + 0"
    assert rows["frl_remargin"][8] == "23 + 10 + 13, 0 + 0"
    lines = {"all off: the plain step", "frozen parameters in the attack", "fold", "fused", "together, all"}
    assert lines | {kept.PLAIN, kept.SUITE} <= rows.keys()


def test_work_per_class_is_a_share_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_class, "TURNS", 1)
    page = Page("title", None, "name")
    per_class.table(page, GROUND, list(per_class.WORK), lambda task: float(task() is not None) + 1)
    assert [line.split("|")[1].strip() for line in page.text.splitlines()[-4:-1]][1:] == list(per_class.WORK)


def test_a_clock_that_stands_still_is_not_believed() -> None:
    assert often(lambda: None, 1.0, lambda task: 0.0) == MOST
    assert often(lambda: None, 1.0, lambda task: 0.25) == 4
    assert often(lambda: None, 1.0, lambda task: 9.0) == 1


def test_turns_alternate() -> None:
    seen: list[str] = []
    tasks = {name: lambda name=name: seen.append(name) for name in "ab"}
    found = train_step.turns(tasks, 2, timing.clock)
    assert "".join(seen) == "abba"
    assert [set(turn) for turn in found] == [{"a", "b"}] * 2


def test_the_floor_of_a_method_that_drops_samples_is_that_of_the_passes_it_declares() -> None:
    step = SuiteStep(GROUND.trainer("bat", None))
    ledger, declared = step.counted(), (step.trainer.method.passes() * GROUND.batch).as_dict()
    assert ledger.totals()["input_grad"] < declared["input_grad"]
    one = dict.fromkeys(ledger.samples, 1.0)
    assert ledger.seconds(one) == ledger.totals()["forward"]
    assert ledger.seconds(one, ledger.short_of(declared)) == pytest.approx(declared["forward"])
