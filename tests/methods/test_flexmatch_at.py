"""Robust self-training: the loss, the curriculum of thresholds, whose predictions are taken, and its limits."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.conformance.fixtures import difference, state_of
from bench.conformance.loop import Loop
from bench.core.pass_counter import PassCounter
from methods.base import HIDDEN, Adversarial, Batch, Terms
from methods.flexmatch_at import FlexMatchAT
from methods.registry import METHODS
from tests.helpers import formulas
from tests.helpers.formulas import Array
from tests.helpers.method_runs import fixed_labels
from tests.helpers.stubs import CLASSES, StubStudent, make_batch, make_context, random_logits

BATCH = make_batch()
N = len(BATCH.y)
CLEAN, ADV = random_logits(0, scale=1.5), random_logits(1)
SIGMA = np.array([9.0, 0, 8, 9, 0, 7, 9, 4, 1, 6])


def ready(seen: Tensor | None = None, **settings: Any) -> tuple[FlexMatchAT, Batch]:
    """A method that takes pseudo-labels from the student, and its batch, in which every third label is visible."""
    method = FlexMatchAT(**{"labeller": "student", "labelled_fraction": 0.5, **settings})
    visible = torch.arange(N) % 3 == 0 if seen is None else seen
    with fixed_labels(visible):
        y = method.visible_labels(BATCH.y)
    return method, replace(BATCH, y=y, step_labels=y)


# The loss


@pytest.mark.parametrize("host", ["pgd_at", "trades"])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_loss_and_gradient_are_those_of_the_formula(host: str, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x_adv = BATCH.x.clone()
    monkeypatch.setattr("methods.base.ascend", lambda *args, **options: x_adv)
    method, batch = ready(host=host, weight=weight, tau=0.7)
    method.sigma.copy_(torch.tensor(SIGMA))
    method.unlabelled_size = 55
    student = StubStudent({"clean": (BATCH.x, CLEAN), "adv": (x_adv, ADV)})
    adv = method.perturb(student, batch, make_context())
    terms = method.loss(student, batch, adv, make_context())
    terms.loss.mean().backward()

    threshold = formulas.flexmatch_threshold(SIGMA, 55, 0.7)
    np.testing.assert_allclose(method.threshold.numpy(), threshold, rtol=1e-12)
    hidden, y, weak = (batch.y == HIDDEN).numpy(), BATCH.y.numpy(), CLEAN.numpy()
    used = adv.extras["use"].numpy()[hidden]
    assert 0 < used.sum() < len(used), "the thresholds are expected to tell samples apart"

    def formula(z: Array, a: Array) -> float:
        of_host = formulas.ce(a, y)
        if host == "trades":
            of_host = formulas.ce(z, y) + 6.0 * formulas.kl(formulas.softmax(z), a)
        return formulas.flexmatch(of_host, weak, a, hidden, threshold, weight)

    np.testing.assert_allclose(terms.loss.mean().item(), formula(weak, ADV.numpy()), rtol=1e-9)
    expected = {
        "clean": formulas.gradient(lambda z: formula(z, ADV.numpy()), weak),
        "adv": formulas.gradient(lambda a: formula(weak, a), ADV.numpy()),
    }
    for view, logits in student.logits.items():
        found = np.zeros_like(weak) if logits.grad is None else logits.grad.numpy()
        np.testing.assert_allclose(found, expected[view], rtol=1e-5, atol=1e-8)


def test_the_host_attacks_pseudo_labels_where_labels_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def record(model: nn.Module, x: Tensor, objective: Any, **options: Any) -> Tensor:
        asked.update(options, objective=objective)
        return x.clone()

    monkeypatch.setattr("methods.base.ascend", record)
    method, batch = ready()
    method.perturb(StubStudent({"clean": (BATCH.x, CLEAN)}), batch, make_context())
    target = np.where(batch.y == HIDDEN, CLEAN.argmax(1), BATCH.y)
    np.testing.assert_allclose(asked["objective"](ADV, torch.arange(N)), formulas.ce(ADV.numpy(), target), rtol=1e-9)
    assert asked["bn"] == "train" and asked["start"] == "uniform"


def test_a_step_without_a_visible_or_without_a_hidden_label_stays_finite() -> None:
    for visible in (torch.zeros(N, dtype=torch.bool), torch.ones(N, dtype=torch.bool)):
        method, batch = ready(visible)
        method.unlabelled_size = 55
        student = StubStudent({"clean": (BATCH.x, CLEAN), "adv": (BATCH.x.clone(), ADV)})
        extras = {"target": BATCH.y, "use": torch.ones(N, dtype=torch.bool), "learnt": BATCH.y}
        adv = Adversarial(student.inputs["adv"], extras=extras)
        terms = method.loss(student, batch, adv, make_context())
        np.testing.assert_allclose(terms.loss.detach().numpy(), formulas.ce(ADV.numpy(), BATCH.y.numpy()), rtol=1e-9)


# The curriculum


def seen(method: FlexMatchAT, batch: Batch, clean: Tensor) -> None:
    """One step in which the weak views have these logits."""
    student = StubStudent({"clean": (batch.x, clean)})
    adv = method.perturb(student, batch, make_context())
    method.observe(batch, adv, Terms(torch.zeros(N), {}), make_context())
    method.after_step(student, make_context())


@pytest.mark.parametrize("memory", ["latest", "kept"])
@pytest.mark.parametrize("mapping", ["convex", "linear"])
@pytest.mark.parametrize("warm_up", [True, False])
def test_thresholds_follow_what_each_sample_was_last_learnt_as(
    memory: str, mapping: str, warm_up: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("methods.base.ascend", lambda model, x, *args, **options: x.clone())
    method, batch = ready(memory=memory, mapping=mapping, warm_up=warm_up, tau=0.6)
    learnt: dict[int, int] = {}
    hidden = [i for i in range(N) if batch.y[i] == HIDDEN]
    for epoch in range(3):
        clean = random_logits(10 + epoch, scale=3.0)
        probs = formulas.softmax(clean.numpy())
        seen(method, batch, clean)
        for i in hidden:
            if probs[i].max() > 0.6:
                learnt[i] = int(probs[i].argmax())
            elif memory == "latest":
                learnt.pop(i, None)
        sigma = np.bincount(list(learnt.values()), minlength=CLASSES).astype(float)
        unused = len(hidden) - sigma.sum() if warm_up else 0.0
        beta = sigma / max(sigma.max(), unused, 1.0)
        assert method.sigma.tolist() == sigma.tolist()
        expected = 0.6 * (beta / (2 - beta) if mapping == "convex" else beta)
        np.testing.assert_allclose(method.threshold.numpy(), expected, rtol=1e-12)
        method.end_epoch(StubStudent({}), make_context())
        assert not method.moved.any()
        assert {i: int(k) for i, k in enumerate(method.latest) if k != HIDDEN} == learnt
    assert learnt


def test_a_class_that_is_learnt_late_is_let_in_earlier() -> None:
    method, batch = ready(torch.zeros(N, dtype=torch.bool), tau=0.95)
    method.sigma[3], method.sigma[7] = 11.0, 1.0
    probs = torch.full((N, CLASSES), 0.3 / 9, dtype=torch.float64)
    easy = torch.arange(N) % 2 == 0
    probs[:, 3] = torch.where(easy, 0.7, probs[:, 3])
    probs[:, 7] = torch.where(easy, probs[:, 7], 0.7)
    adv = method.perturb(nn.Sequential(Answer(probs.log())), batch, make_context())
    assert method.threshold[3] == pytest.approx(0.95) and method.threshold[7] < 0.1
    assert adv.extras["use"].tolist() == (~easy).tolist()


class Answer(nn.Module):
    """The same logits whatever it sees, as far as a gradient needs an input."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0 * x.flatten(1).sum(1, keepdim=True)


def test_the_used_share_counts_pseudo_labels_of_hidden_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.base.ascend", lambda model, x, *args, **options: x.clone())
    method, batch = ready(tau=0.7)
    method.sigma.copy_(torch.tensor(SIGMA))
    method.unlabelled_size = 55
    adv = method.perturb(StubStudent({"clean": (BATCH.x, CLEAN)}), batch, make_context())
    method.observe(batch, adv, Terms(torch.zeros(N), {}), make_context())
    method.end_epoch(StubStudent({}), make_context())
    hidden, guess, use = (batch.y == HIDDEN).numpy(), CLEAN.argmax(1).numpy(), adv.extras["use"].numpy()
    for k in range(CLASSES):
        given = hidden & (guess == k)
        share = (given & use).sum() / given.sum() if given.any() else 0.0
        assert method.used_share[k].item() == pytest.approx(share)
    assert method.used_share.sum() > 0 and not method.counts.any()


class Exchange:
    """`ctx.reduce` of two threads that stand for two processes."""

    def __init__(self) -> None:
        self.barrier, self.slots = threading.Barrier(2, timeout=20), [torch.zeros(0)] * 2

    def of(self, rank: int) -> Any:
        def reduce(tensor: Tensor) -> Tensor:
            self.slots[rank] = tensor.clone()
            self.barrier.wait()
            total = self.slots[0] + self.slots[1]
            self.barrier.wait()
            return total

        return reduce


def test_two_processes_agree_with_one_on_thresholds_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.base.ascend", lambda model, x, *args, **options: x.clone())
    alone, batch = ready(tau=0.6)
    pair, exchange = [ready(tau=0.6)[0] for _ in range(2)], Exchange()

    def epoch(method: FlexMatchAT, rows: Tensor, number: int, reduce: Any) -> None:
        part = Batch(batch.x[rows], batch.y[rows], batch.index[rows], batch.step_labels)
        ctx = make_context()
        ctx.reduce = reduce
        adv = method.perturb(StubStudent({"clean": (part.x, random_logits(20 + number, scale=3.0)[rows])}), part, ctx)
        if len(rows):  # a process may be left without a sample, and takes part in what is added up all the same
            method.observe(part, adv, Terms(torch.zeros(len(rows)), {}), ctx)
        method.after_step(StubStudent({}), ctx)
        method.end_epoch(StubStudent({}), ctx)

    for number in range(3):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(number))
        epoch(alone, order, number, lambda tensor: tensor)
        shares = (order, order[:0]) if number == 2 else (order[::2], order[1::2])
        threads = [
            threading.Thread(target=epoch, args=(method, rows, number, exchange.of(rank)))
            for rank, (method, rows) in enumerate(zip(pair, shares, strict=True))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for method in pair:
            assert difference(state_of(alone), state_of(method)) is None
    assert alone.sigma.any()


# Whose predictions


def test_the_labeller_is_the_average_in_eval_mode_or_the_student() -> None:
    loop = Loop(FlexMatchAT(num_classes=3, steps=2), 3).run(stop=(1, 0))
    method, batch = loop.method, loop.batch()
    assert isinstance(method, FlexMatchAT)
    before = state_of(loop.model)
    found = method._predict(loop.model, batch.x)
    own = FlexMatchAT(num_classes=3, labeller="student")._predict(loop.model, batch.x)
    assert difference(before, state_of(loop.model)) is None and loop.model.training and not method.average.training
    assert torch.equal(found, method.average(batch.x)) and not found.requires_grad
    assert torch.equal(own, loop.model.eval()(batch.x)) and not torch.equal(own, found)


@pytest.mark.parametrize("host", ["pgd_at", "trades"])
@pytest.mark.parametrize("labeller", ["average", "student"])
def test_declared_passes_are_exact_where_nothing_is_ignored(host: str, labeller: str) -> None:
    settings: dict[str, Any] = {"host": host, "labeller": labeller, "steps": 3}
    loop, counter = Loop(FlexMatchAT(num_classes=3, **settings), 3).begin(0), PassCounter()
    assert isinstance(loop.method, FlexMatchAT)
    for network in (loop.model, *([loop.method.average] if labeller == "average" else [])):
        counter.watch(network, "student")
    batch = loop.batch()
    loop.step(batch)
    declared = loop.method.passes().as_dict()
    assert {kind: n / len(batch.x) for kind, n in counter.counts["student"].items()} == {
        kind: declared[kind] for kind in ("forward", "input_grad", "backward")
    }
    of_host = METHODS[host](steps=3).passes()
    assert declared["forward"] == of_host.forward + 1 and declared["backward"] == of_host.backward


# Limits


@pytest.mark.parametrize("host", ["pgd_at", "trades"])
def test_with_every_label_it_is_its_host_bit_for_bit(host: str) -> None:
    shared: dict[str, Any] = {"num_classes": 5, "steps": 3, "eps": 0.1, "step_size": 0.03}
    plain = Loop(METHODS[host](**shared), 5).run().tensors()
    full, few = (
        Loop(FlexMatchAT(host=host, labelled_fraction=fraction, **shared), 5).run().tensors()  # type: ignore[arg-type]
        for fraction in (1.0, 0.5)
    )
    weights = [name for name in plain if not name.startswith("method/")]
    assert difference(plain, {name: full[name] for name in plain}) is None and weights == list(plain)
    assert difference(plain, {name: few[name] for name in plain}) is not None
    assert FlexMatchAT(host=host, labelled_fraction=1.0, steps=3).passes() == METHODS[host](steps=3).passes()  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["pgd_at", "trades"])
def test_without_the_unlabelled_part_it_is_its_host_on_the_labelled_one(host: str) -> None:
    shared: dict[str, Any] = {"num_classes": 3, "steps": 3, "eps": 0.1, "step_size": 0.03}
    few = Loop(FlexMatchAT(host=host, unlabelled="ignore", labelled_fraction=0.5, **shared), 3).begin(0)  # type: ignore[arg-type]
    plain, counter = Loop(METHODS[host](**shared), 3).begin(0), PassCounter()
    batch = few.batch()
    rows = (batch.y != HIDDEN).nonzero().flatten()
    assert 1 < len(rows) < len(batch.y)
    counter.watch(few.model, "student")
    terms = few.step(batch)
    y = batch.y[rows]
    expected = plain.step(Batch(batch.x[rows], y, batch.index[rows], y))
    assert torch.equal(terms.loss, expected.loss)
    found = {name: tensor for name, tensor in few.tensors().items() if not name.startswith("method/")}
    assert difference(found, plain.tensors()) is None
    assert counter.counts["student"]["forward"] == plain.method.passes().forward * len(rows)


def test_an_ignoring_step_with_one_visible_label_trains_nothing() -> None:
    loop = Loop(FlexMatchAT(num_classes=3, unlabelled="ignore", steps=2), 3).begin(0)
    hidden = torch.full((16,), HIDDEN)
    hidden[0] = 1
    batch = replace(loop.batch(), y=hidden, step_labels=hidden)
    assert len(loop.step(batch).loss) == 0


# What is refused, and what may go around it


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "mart"}, "FlexMatchAT: host: expected pgd_at or trades, got 'mart'"),
        ({"unlabelled": "drop"}, "unlabelled: expected pseudo or ignore, got 'drop'"),
        ({"labelled_fraction": 0.0}, "labelled_fraction: expected a number from above 0 to 1, got 0.0"),
        ({"labelled_fraction": 1.1}, "labelled_fraction: expected a number from above 0 to 1, got 1.1"),
        ({"tau": 1.0}, "tau: expected a number from above 0 to below 1, got 1.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FlexMatchAT(**settings)


def test_weights_by_class_are_not_for_samples_without_one() -> None:
    with pytest.raises(
        ValueError, match="fair_weight: expected a host that reads every label, got one that hides some"
    ):
        Loop(METHODS["fair_weight:flexmatch_at"](num_classes=3), 3)
    Loop(METHODS["fair_weight:flexmatch_at"](num_classes=3, labelled_fraction=1.0), 3)


def test_a_weight_average_around_it_leaves_the_training_alone() -> None:
    settings: dict[str, Any] = {"num_classes": 3, "steps": 2}
    plain, averaged = (Loop(METHODS[name](**settings), 3).run() for name in ("flexmatch_at", "ema:flexmatch_at"))
    assert difference(state_of(plain.model), state_of(averaged.model)) is None
    assert difference(state_of(plain.model), state_of(averaged.method.evaluation_model(averaged.model))) is not None
