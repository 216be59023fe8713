"""Compositions: their names, what they declare, their formulas, and that at strength 0 they are their hosts."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.ascent import mode
from attacks.passes import Passes
from attacks.registry import UnknownName
from bench.conformance.loop import Loop, Scene, part_of
from bench.conformance.material import difference, values
from methods.averaging import frozen_copy, move, warm
from methods.awp import AWP, perturbed_tensors
from methods.base import Adversarial, Method, Terms
from methods.fair_weight import KAPPA, FairWeight, Kappa
from methods.losses import of_class, step_share, tempered
from methods.tables import COMPOSITIONS, METHODS
from methods.wrapper import Wrapper, compose
from tests.bench.jobs import own_registrations
from tests.methods.scripted import CLASSES, Scripted, make_batch, make_context, random_logits

K = 5
BATCH = make_batch()


def loop_of(name: str, **settings: Any) -> Loop:
    return Loop(METHODS[name](num_classes=K, **settings), K)


# Names and declarations


def test_a_composition_is_named_in_any_spelling_and_looked_up_from_the_outside_in() -> None:
    assert METHODS.resolve("AWP:Fair-Weight:frl-remargin") == "awp:fair_weight:frl_remargin"
    assert "awp:trades" in METHODS and "awp:nothing" not in METHODS and "npz:toy" not in METHODS
    made: Any = METHODS["awp:ema:trades"]
    order = [base.__name__ for base in made.__mro__]
    assert order.index("AWP") < order.index("EMA") < order.index("TRADES") < order.index("Method")
    assert METHODS["awp:ema:trades"] is made, "one class, whoever asks"
    assert [part for _, part in METHODS.parts("awp:ema:trades")] == ["awp", "ema", "trades"]
    assert "awp:trades" not in METHODS.names()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("awp:tradez", "unknown method 'tradez'; did you mean 'trades'"),
        ("apw:trades", "unknown composition 'apw'; did you mean 'awp'? available: awp, fawa, ema, swa"),
        ("awp", "'awp' is a composition, expected a method behind it: awp:trades"),
        ("ema:awp", "'awp' is a composition, expected a method behind it: awp:trades"),
        ("awp:ema:awp:trades", "awp:ema:awp:trades: awp stands there twice; leave one out"),
    ],
)
def test_a_name_that_fits_nothing_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(UnknownName, match=f"^{sentence.replace('?', '[?]')}"):
        METHODS.resolve(name)


class Doubled(Wrapper):
    """Twice the host's loss."""

    reported = ("doubled",)
    epoch_settings = ("until",)
    revision = 4

    doubled: Tensor

    def __init__(self, *, factor: float = 2.0, until: int = 3, **host: Any) -> None:
        super().__init__(**host)
        self.factor, self.until = factor, until
        self.register_buffer("doubled", torch.ones(self.num_classes))

    def added_passes(self, host: Passes) -> Passes:
        return Passes(forward=host.backward * self.factor)

    def loss(self, model: nn.Module, batch: Any, adv: Adversarial, ctx: Any) -> Terms:
        terms = super().loss(model, batch, adv, ctx)
        return Terms(self.factor * terms.loss, terms.logits)


class Takes(Wrapper):
    """Has a setting that TRADES has."""

    def __init__(self, *, beta: float = 1.0, **host: Any) -> None:
        super().__init__(**host)
        self.beta = beta


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is registered in a test is gone after it."""
    with own_registrations(monkeypatch):
        yield


@pytest.mark.usefixtures("room")
def test_a_composition_of_ones_own_goes_around_any_method() -> None:
    COMPOSITIONS.register("doubled")(Doubled)
    made = METHODS["awp:doubled:absld"](factor=3.0, gamma=0.0, num_classes=7)
    parts = COMPOSITIONS["awp"].revision + 4 + METHODS["absld"].revision
    assert (made.revision, made.epoch_settings) == (parts, ("rate_milestones", "until"))
    assert made.reported == ("temperature_adv", "temperature_clean", "doubled")
    assert made.passes() == METHODS["absld"]().passes() + Passes(forward=6)
    assert METHODS.sketch("awp:doubled:absld").call("passes", {"factor": 3.0, "gamma": 0.0}) == made.passes()
    assert made.settings()["factor"] == 3.0 and METHODS["doubled:natural"]().teachers == ()
    plain, doubled = (loop_of(name).begin(0) for name in ("natural", "doubled:natural"))
    assert torch.equal(2 * plain.step(plain.batch()).loss, doubled.step(doubled.batch()).loss)


@pytest.mark.usefixtures("room")
def test_a_setting_that_both_halves_have_is_refused() -> None:
    COMPOSITIONS.register("takes")(Takes)
    with pytest.raises(UnknownName, match="takes:ema:trades: takes and ema:trades both have the setting 'beta', and"):
        METHODS["takes:ema:trades"]
    assert METHODS["takes:natural"](beta=2.0).settings()["beta"] == 2.0


def test_what_is_no_class_of_a_method_cannot_be_wrapped() -> None:
    with pytest.raises(ValueError, match="AWP: expected the class of a method without it to wrap, got <function"):
        compose(AWP, make_method)
    with pytest.raises(ValueError, match="AWP: expected the class of a method without it to wrap"):
        compose(AWP, METHODS["awp:natural"])


def make_method() -> Method:
    return METHODS["natural"]()


COMPOSED = [*(f"awp:{host}" for host in METHODS.builtin), *(f"{name}:trades" for name in COMPOSITIONS.builtin)]


@pytest.mark.parametrize("name", [*COMPOSED, "awp:ema:fair_weight:absld", "fawa:awp:ham"])
def test_a_sketched_composition_has_the_settings_facts_and_passes_of_the_class(name: str) -> None:
    sketch, method = METHODS.sketch(name), METHODS[name]()
    assert dict(sketch.settings) == method.settings()
    host = METHODS[name.partition(":")[2]]()
    assert set(method.settings()) > set(host.settings()) and set(method.reported) >= set(host.reported)
    for fact in ("teachers", "warm_start", "epoch_settings", "reported", "drops_rows", "averages_weights", "revision"):
        assert sketch.facts[fact] == getattr(method, fact), fact
    assert dict(sketch.facts["recipes"]) == dict(method.recipes)
    assert sketch.facts["recipes"]["paper"] == host.recipes["paper"]
    for changed in ({}, {"steps": 4}, {"gamma": 0.0} if "gamma" in sketch.settings else {}):
        assert sketch.call("passes", changed) == METHODS[name](**changed).passes()


@pytest.mark.parametrize("name", COMPOSITIONS.builtin)
def test_every_composition_documents_its_problems_and_departures(name: str) -> None:
    doc = COMPOSITIONS.sketch(name).doc
    for part in ("Inner problem:", "Outer problem:", "State:", "Defaults:", "Departures:", "bit for bit"):
        assert part in doc.replace("At gamma 0 no trial pass", "bit for bit"), f"{name} has no {part!r}"


# Strength 0

BARE: list[tuple[str, dict[str, Any]]] = [
    ("awp", {"gamma": 0.0}), ("awp", {"awp_start": 1.0}), ("ema", {"ema_decay": 0.0}), ("swa", {"swa_start": 1.0}),
    ("fawa", {"fawa_decay": 0.0, "fawa_threshold": 0.0, "fawa_start": 0.0}), ("fawa", {"fawa_threshold": 1.1}),
    ("fair_weight", {"fair_power": 0.0}),
]  # fmt: skip


@pytest.mark.parametrize("host", ["natural", "frl", "absld", "ham"])
@pytest.mark.parametrize(("wrapper", "settings"), BARE, ids=str)
def test_at_strength_zero_a_composition_is_its_host_bit_for_bit(
    wrapper: str, settings: dict[str, Any], host: str
) -> None:
    own = {"begin_epoch_index": 1} if host == "ham" else {}
    bare, wrapped = loop_of(host, **own).run(), loop_of(f"{wrapper}:{host}", **own, **settings).run()
    expected, found = bare.tensors(), wrapped.tensors()
    assert difference(expected, {name: found[name] for name in expected}) is None
    judged = wrapped.method.evaluation_model(wrapped.model)
    assert difference(values(bare.model), values(judged)) is None
    assert wrapped.method.passes() == bare.method.passes() or settings.get("awp_start") == 1.0


@pytest.mark.parametrize(
    ("name", "settings"),
    [("awp:trades", {}), ("ema:trades", {}), ("swa:trades", {"swa_start": 0.0}),
     ("fawa:trades", {"fawa_threshold": 0.0, "fawa_start": 0.0}), ("fair_weight:trades", {})],
)  # fmt: skip
def test_at_its_usual_strength_a_composition_changes_what_is_evaluated(name: str, settings: dict[str, Any]) -> None:
    bare, wrapped = loop_of("trades").run(), loop_of(name, **settings).run()
    judged = wrapped.method.evaluation_model(wrapped.model)
    assert difference(values(bare.model), values(judged)) is not None


# AWP


def begun(name: str = "awp:trades", scene: Scene | None = None, **settings: Any) -> Loop:
    """A loop in whose first epoch the weights have been trained a little."""
    loop = Loop(METHODS[name](num_classes=K, **settings), K, scene or Scene()).begin(0)
    loop.step(loop.batch())
    return loop


def test_awp_moves_every_weight_tensor_by_gamma_times_its_norm_along_the_gradient() -> None:
    loop = begun(gamma=0.02)
    batch = loop.batch(1)
    adv = loop.perturb(batch)
    before = {name: weight.detach().clone() for name, weight in loop.model.named_parameters()}
    proxy = copy.deepcopy(loop.model)
    METHODS["trades"]().loss(proxy, batch, adv, loop.ctx).loss.mean().backward()
    with loop.method.around_step(loop.model, batch, adv, loop.ctx):
        for (name, weight), copied in zip(loop.model.named_parameters(), proxy.parameters(), strict=True):
            moved = (weight.detach() - before[name]).double().numpy()
            grad, old = copied.grad.double().numpy(), before[name].double().numpy()  # type: ignore[union-attr]
            ratio = 0.02 * np.sqrt((old**2).sum()) / np.sqrt((grad**2).sum()) if weight.ndim > 1 else 0.0
            np.testing.assert_allclose(moved, ratio * grad, atol=2e-7 + 1e-5 * np.abs(moved).max())


def test_awp_equals_the_released_way_with_a_proxy_network() -> None:
    """A second network takes an SGD step on minus the loss; what it moved is normalised, added, and taken off again."""
    found, plain = begun(gamma=0.01, scene=Scene(batch_norm=False)), begun("trades", scene=Scene(batch_norm=False))
    plain.model.load_state_dict(found.model.state_dict())
    for (_, state), theirs in zip(plain.optimiser.state.items(), found.optimiser.state.values(), strict=True):
        state["momentum_buffer"].copy_(theirs["momentum_buffer"])
    batch = found.batch(1)
    adv, expected = found.perturb(batch), plain.model
    proxy = copy.deepcopy(expected)
    sgd = torch.optim.SGD(proxy.parameters(), lr=0.1)
    sgd.zero_grad()
    (-plain.method.loss(proxy, batch, adv, plain.ctx).loss.mean()).backward()
    sgd.step()
    moves = []
    with torch.no_grad():
        for weight, theirs in zip(expected.parameters(), proxy.parameters(), strict=True):
            delta = theirs - weight
            moves.append(0.01 * weight.norm() / (delta.norm() + 1e-20) * delta if weight.ndim > 1 else 0 * delta)
            weight.add_(moves[-1])
    plain.optimiser.zero_grad()
    plain.method.loss(expected, batch, adv, plain.ctx).loss.mean().backward()
    plain.optimiser.step()
    with torch.no_grad():
        for weight, move_ in zip(expected.parameters(), moves, strict=True):
            weight.sub_(move_)
    with found.method.around_step(found.model, batch, adv, found.ctx):
        found._backward(batch, adv)
        found.optimiser.step()
    for weight, theirs in zip(found.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(weight, theirs, rtol=1e-5, atol=1e-6)


def test_a_step_that_moves_nothing_gets_every_weight_back_and_no_statistic_moves() -> None:
    loop = begun(gamma=0.1)
    batch = loop.batch(1)
    adv = loop.perturb(batch)
    before = values(loop.model)
    with loop.method.around_step(loop.model, batch, adv, loop.ctx):
        assert difference(before, values(loop.model)) is not None
        statistics = {name: tensor for name, tensor in values(loop.model).items() if "running" in name}
        assert statistics and difference(statistics, {name: before[name] for name in statistics}) is None
    assert difference(before, values(loop.model)) is None
    assert all(parameter.grad is None or parameter.requires_grad for parameter in loop.model.parameters())


def test_batch_norm_moves_once_a_step_around_which_weights_are_perturbed() -> None:
    counts = []
    for name in ("trades", "awp:trades"):
        loop = begun(name)
        counts.append(loop.model.state_dict()["1.num_batches_tracked"].item())
    assert counts == [2, 2], "the clean and the adversarial pass of the loss, and none of the trial"


def test_awp_raises_the_hosts_loss_and_leaves_gradients_alone() -> None:
    loop = begun(gamma=0.01)
    batch = loop.batch(1)
    adv = loop.perturb(batch)
    grads = [None if p.grad is None else p.grad.clone() for p in loop.model.parameters()]

    def loss() -> float:
        with mode(loop.model, train=True), torch.no_grad():
            return loop.method.loss(copy.deepcopy(loop.model), batch, adv, loop.ctx).loss.mean().item()

    before = loss()
    with loop.method.around_step(loop.model, batch, adv, loop.ctx):
        assert loss() > before + 1e-3
        for grad, parameter in zip(grads, loop.model.parameters(), strict=True):
            assert grad is None or torch.equal(grad, parameter.grad)  # type: ignore[arg-type]


def test_awp_waits_for_its_start_and_for_two_rows() -> None:
    loop = begun(gamma=0.1, awp_start=0.5)
    batch = loop.batch(1)
    adv = loop.perturb(batch)

    def moved(adversarial: Adversarial) -> bool:
        before = values(loop.model)
        with loop.method.around_step(loop.model, batch, adversarial, loop.ctx):
            return difference(before, values(loop.model)) is not None

    assert not moved(adv), "epoch 0 of 2 is before half of the run"
    loop.ctx.epoch = 1
    assert moved(adv)
    assert not moved(Adversarial(adv.x[:1], rows=torch.tensor([0]), extras=adv.extras))


def test_awp_finds_the_same_perturbation_in_parts_and_over_processes() -> None:
    """Parts of a step add up, and so do processes, of which each has a share of the step."""
    points = []
    for parts, processes in ((1, 1), (3, 1), (1, 2)):
        loop = begun(scene=Scene(batch_norm=False))
        batch = loop.batch(1)
        adv = loop.perturb(batch)
        spans = [(len(batch.x) * i // parts, len(batch.x) * (i + 1) // parts) for i in range(parts)]
        loop.ctx.split = lambda b, a, spans=spans: [part_of(b, a, *span) for span in spans]  # type: ignore[misc]
        loop.ctx.reduce = lambda total, count=processes: count * total  # type: ignore[misc]
        with loop.method.around_step(loop.model, batch, adv, loop.ctx):
            points.append(values(loop.model))
    for name, tensor in points[0].items():
        torch.testing.assert_close(points[1][name], tensor)
        torch.testing.assert_close(points[2][name], tensor)


def test_statistics_are_put_back_also_where_the_trial_pass_fails() -> None:
    loop = begun()
    batch = loop.batch(1)
    adv, before = loop.perturb(batch), values(loop.model)

    def fail(b: Any, a: Any) -> Iterator[Any]:
        yield b, a
        raise torch.OutOfMemoryError("no room")

    loop.ctx.split = fail
    with pytest.raises(torch.OutOfMemoryError), loop.method.around_step(loop.model, batch, adv, loop.ctx):
        raise AssertionError("the step must not begin")
    assert difference(before, values(loop.model)) is None


def test_awp_perturbs_trained_weights_of_two_and_more_dimensions_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3), nn.Linear(3, 3))
    model[4].weight.requires_grad_(False)  # type: ignore[union-attr]
    found = {id(weight) for weight in perturbed_tensors(model)}
    assert found == {id(model[0].weight), id(model[3].weight)}


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("awp:natural", {"gamma": -0.1}, "awp: expected gamma >= 0 and awp_start from 0 to 1, got -0.1 and 0.0"),
        ("ema:natural", {"ema_decay": 1.0}, "ema: expected ema_decay from 0 to below 1, got 1.0"),
        ("swa:natural", {"swa_start": 2}, "swa: expected swa_start, a share of the run, from 0 to 1, got 2"),
        ("fawa:natural", {"fawa_start": 2}, "fawa: expected fawa_decay from 0 to below 1 and fawa_start from 0 to 1"),
        ("fair_weight:natural", {"fair_min": 2}, "fair_weight: expected 0 < fair_min <= 1 <= fair_max, got 2 and 2.5"),
    ],
)
def test_a_strength_out_of_range_is_refused(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        METHODS[name](**settings)


# Averages


def test_an_average_moves_by_a_share_of_the_way_and_copies_counters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = frozen_copy(model)
    assert not average.training and not any(p.requires_grad for p in average.parameters())
    start, there = values(average), {}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
        model(torch.randn(4, 2))
        there = values(model)
    move(average, model, 0.25)
    for name, tensor in values(average).items():
        expected = there[name] if "num_batches" in name else 0.75 * start[name] + 0.25 * there[name]
        torch.testing.assert_close(tensor, expected)
    held = values(average)
    move(average, model, 0.0)
    held["1.num_batches_tracked"] = there["1.num_batches_tracked"]
    assert difference(held, values(average)) is None
    move(average, model, 1.0)
    assert difference(there, values(average)) is None


def test_a_decay_is_warmed_up() -> None:
    assert [warm(0.999, step) for step in (0, 8)] == [0.1, 0.5]
    assert warm(0.5, 8) == 0.5 and warm(0.5, 100) == 0.5 and warm(0.999, 10**6) == 0.999


def test_ema_is_the_recursion_over_the_weights_after_each_step() -> None:
    loop = loop_of("ema:trades", ema_decay=0.3)
    average = {name: tensor.double().numpy() for name, tensor in values(loop.model).items()}
    for step, _ in enumerate(loop.train()):
        decay = min(0.3, (1 + step) / (10 + step))
        for name, tensor in values(loop.model).items():
            average[name] = decay * average[name] + (1 - decay) * tensor.double().numpy()
            if "num_batches" in name:
                average[name] = tensor.numpy()
    assert step == 3
    for name, tensor in values(loop.method.evaluation_model(loop.model)).items():
        np.testing.assert_allclose(tensor.numpy(), average[name], rtol=1e-5, atol=1e-6)


def test_swa_is_the_mean_of_the_weights_after_the_epochs_from_its_start_on() -> None:
    loop = loop_of("swa:trades", swa_start=0.0)
    seen = []
    for step, _ in enumerate(loop.train()):
        assert (loop.method.evaluation_model(loop.model) is loop.model) == (step <= 1), "nothing is averaged yet"
        if step % 2 == 1:
            seen.append(values(loop.model))
    mean = values(loop.method.evaluation_model(loop.model))
    for name in (name for name in mean if "num_batches" not in name):
        torch.testing.assert_close(mean[name], (seen[0][name] + seen[1][name]) / 2)
    late = loop_of("swa:trades", swa_start=0.5).run()
    assert difference(values(late.model), values(late.method.evaluation_model(late.model))) is None


def judged_at(worst: list[float]) -> tuple[Method, nn.Module, list[float]]:
    """FAWA after epochs whose lowest class accuracy is given; the weight it evaluates after each."""
    method, ctx = METHODS["fawa:natural"](num_classes=2, fawa_threshold=0.5, fawa_start=0.0), make_context()
    model, found = nn.Linear(1, 1, bias=False), []
    y = torch.tensor([0, 1]).repeat_interleave(10)
    ctx.num_classes, ctx.epochs = 2, len(worst)
    answers: list[Tensor] = []
    ctx.validator = lambda attack, judged: (y, nn.functional.one_hot(y, 2).float(), answers[-1])
    method.setup(model, ctx)
    for ctx.epoch, accuracy in enumerate(worst):
        said = torch.where((y == 1) & (torch.arange(20) % 10 >= round(10 * accuracy)), 0, y)
        answers.append(nn.functional.one_hot(said, 2).float())
        nn.init.constant_(model.weight, ctx.epoch + 1.0)
        method.end_epoch(model, ctx)
        found.append(next(method.evaluation_model(model).parameters()).item())
    return method, model, found


def test_fawa_leaves_out_epochs_below_its_threshold() -> None:
    method, _, found = judged_at([0.4, 0.5, 0.4, 0.9])
    assert found == pytest.approx([1.0, 2.0, 2.0, 0.85 * 2 + 0.15 * 4]), "the weights, a copy, frozen, moved"
    assert method.get_buffer("fawa_accuracy").tolist() == pytest.approx([1.0, 0.9])


def test_fawa_waits_for_its_start() -> None:
    loop = loop_of("fawa:natural", fawa_threshold=0.0, fawa_start=0.5)
    loop.run(stop=(1, 0))
    assert loop.method.evaluation_model(loop.model) is loop.model
    assert loop.run(start=(1, 0)).method.evaluation_model(loop.model) is not loop.model


def test_fawa_without_held_out_samples_says_so_before_training() -> None:
    with pytest.raises(ValueError, match="fawa: expected held-out training samples to judge by, got none"):
        METHODS["fawa:natural"]().setup(nn.Linear(1, 1), make_context())


def test_an_average_of_averages_is_one_of_what_the_host_would_evaluate() -> None:
    loop = loop_of("swa:ema:trades", swa_start=0.5).run()
    inner: Any = loop.method
    assert difference(values(inner.swa_average), values(inner.ema_average)) is None, "one epoch of the inner average"
    assert difference(values(inner.ema_average), values(loop.model)) is not None


# Class weights


def test_kappa_counts_the_right_iterates_of_each_sample() -> None:
    counter = Kappa(BATCH.y)
    wrong, rows = (BATCH.y + 1) % CLASSES, torch.arange(len(BATCH.y))
    for step, said in enumerate((BATCH.y, torch.where(rows < 3, wrong, BATCH.y), wrong)):
        counter(step, BATCH.x, nn.functional.one_hot(said, CLASSES).float(), rows)
    assert counter.right.tolist() == [1, 1, 1] + [2] * 9
    joint = torch.stack([nn.functional.one_hot(said, CLASSES).float() for said in (BATCH.y, wrong)], 1)
    counter(3, BATCH.x[5:7], joint[5:7], rows[5:7])
    assert counter.right.tolist() == [1, 1, 1, 2, 2, 3, 3] + [2] * 5, "the student's logits are the first"


def test_the_watcher_sees_what_the_host_ascends_and_changes_nothing() -> None:
    for host, settings in (("pgd_at", {}), ("absld", {}), ("ham", {"begin_epoch_index": 0}), ("natural", {})):
        bare, watched = (loop_of(name, **settings).begin(0) for name in (host, f"fair_weight:{host}"))
        plain, adv = bare.perturb(bare.batch()), watched.perturb(watched.batch())
        assert torch.equal(plain.x, adv.x) and set(adv.extras) == {*plain.extras, KAPPA}
        assert adv.extras[KAPPA].shape == adv.of(watched.batch().y).shape
        if host == "pgd_at":
            assert 0 < adv.extras[KAPPA].max() <= watched.method.steps
        if host == "natural":
            assert not adv.extras[KAPPA].any()


def test_class_weights_follow_the_formula() -> None:
    method, ctx = METHODS["fair_weight:natural"](), make_context()
    kappa = torch.linspace(0, 10, len(BATCH.y))
    adv = Adversarial(BATCH.x, extras={KAPPA: kappa})
    terms = Terms(torch.zeros(len(BATCH.y)), {"clean": random_logits(0)})
    for _ in range(2):
        method.observe(BATCH, adv, terms, ctx)
    method.end_epoch(Scripted({}), ctx)
    y, seen = BATCH.y.numpy(), np.unique(BATCH.y.numpy())
    means = np.array([kappa.numpy()[y == k].mean() if k in seen else np.nan for k in range(CLASSES)])
    means = np.where(np.isnan(means), np.nanmean(means), means)
    raw = (means + 1e-5) ** -2.0
    expected = np.clip(raw * CLASSES / raw.sum(), 5 / 6, 5 / 2)
    np.testing.assert_allclose(method.get_buffer("fair_weight").numpy(), expected, rtol=1e-6)
    assert not method.get_buffer("fair_sums").any()
    assert expected.max() == 2.5 and expected.min() == 5 / 6


def test_class_weights_multiply_the_hosts_loss() -> None:
    bare, loop = loop_of("absld").begin(0), loop_of("fair_weight:absld").begin(0)
    weight = torch.linspace(0.9, 2.0, K, dtype=torch.float64)
    loop.method.get_buffer("fair_weight").copy_(weight)
    plain, found = bare.step(bare.batch()), loop.step(loop.batch())
    torch.testing.assert_close(found.loss, plain.loss * weight.float()[loop.batch().y])
    rows = torch.tensor([7, 2, 9])
    hard = Scripted({"adv": (BATCH.x[rows], random_logits(1, n=3))})
    ham: Any = METHODS["fair_weight:ham"]()
    ham.fair_weight.copy_(torch.arange(CLASSES) + 1.0)
    adv = Adversarial(hard.inputs["adv"], rows=rows)
    weighted = ham.loss(hard, BATCH, adv, make_context()).loss
    bare_loss = METHODS["ham"]().loss(hard, BATCH, adv, make_context()).loss
    torch.testing.assert_close(weighted, bare_loss * (BATCH.y[rows] + 1.0))


def test_awp_around_weights_climbs_the_weighted_loss_and_weights_around_awp_the_bare_one() -> None:
    """The trial loss of AWP is the loss of what it wraps."""
    points = {}
    for name in ("awp:fair_weight:pgd_at", "fair_weight:awp:pgd_at", "awp:pgd_at"):
        loop = loop_of(name, gamma=0.05).begin(0)
        if isinstance(loop.method, FairWeight):
            loop.method.fair_weight.copy_(torch.linspace(0.9, 2.0, K))
        batch = loop.batch()
        with loop.method.around_step(loop.model, batch, loop.perturb(batch), loop.ctx):
            points[name] = values(loop.model)
    bare = points.pop("awp:pgd_at")
    assert difference(bare, points["fair_weight:awp:pgd_at"]) is None
    assert difference(bare, points["awp:fair_weight:pgd_at"]) is not None


# Parts that methods share


def test_what_belongs_to_a_class_is_handed_to_its_samples() -> None:
    values_, y = torch.arange(3, dtype=torch.float64), torch.tensor([2, 0, 2])
    found = of_class(values_, y, torch.float32)
    assert found.dtype == torch.float32 and found.tolist() == [2, 0, 2]


def test_shares_of_a_step_have_mean_one_over_it() -> None:
    weight, step = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64), torch.tensor([0, 1, 1, 2])
    whole = step_share(weight, step, step, torch.float64)
    assert whole.mean().item() == pytest.approx(1.0) and whole.tolist() == pytest.approx([1 / 3, 1, 1, 5 / 3])
    halves = [step_share(weight, part, step, torch.float64) for part in (step[:2], step[2:])]
    assert torch.equal(torch.cat(halves), whole)


def test_tempered_labels_are_as_sharp_as_their_class_asks() -> None:
    logits, tau = random_logits(3), torch.linspace(0.5, 3.0, CLASSES, dtype=torch.float64)
    expected = torch.stack([(row / tau[k]).softmax(0) for row, k in zip(logits, BATCH.y, strict=True)])
    torch.testing.assert_close(tempered(logits, tau, BATCH.y), expected)
