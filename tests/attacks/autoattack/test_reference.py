"""The adapter to the reference implementation of AutoAttack: what it fences, and what it hands over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.autoattack import reference
from attacks.autoattack.reference import APGDCE, APGDT, FABT, AutoAttack, Square, Stage, reference_version
from attacks.threat import ThreatModel
from bench.conformance.fixtures import difference, images, network, rng_states

THREAT = ThreatModel("linf", 0.05)
X = images(10, 9)
SHORT: list[Stage] = [APGDCE(THREAT, 5), APGDT(THREAT, 5, 3), FABT(THREAT, 5, 3), Square(THREAT, 30)]
by_name = pytest.mark.parametrize("stage", SHORT, ids=lambda stage: stage.name)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled(classes: int) -> tuple[nn.Sequential, Tensor]:
    model = network(classes, 1).eval()
    with torch.no_grad():
        return model, model(X).argmax(1)


def test_the_standard_version_has_four_stages_in_order() -> None:
    attack = AutoAttack(THREAT)
    assert [stage.name for stage in attack.stages] == [
        "apgd-ce-reference", "apgd-t-reference", "fab-t-reference", "square-reference",
    ]  # fmt: skip
    assert attack.stages == (APGDCE(THREAT, 100), APGDT(THREAT, 100, 9), FABT(THREAT, 100, 9), Square(THREAT, 5000))
    assert attack.implementation == reference_version() and "autoattack " in reference_version()


@by_name
def test_the_package_reseeds_the_global_streams_and_the_adapter_puts_them_back(stage: Stage) -> None:
    model, y = labelled(5)
    torch.manual_seed(77)
    before = rng_states()
    reseeded = []
    handle = model.register_forward_hook(
        lambda *_: reseeded.append(not torch.equal(torch.get_rng_state(), before["torch"]))
    )
    stage(model, X, y, generator=stream())
    handle.remove()
    assert any(reseeded), "the package is expected to reseed; without it this test shows nothing"
    assert difference(before, rng_states()) is None


@by_name
def test_requires_grad_of_each_parameter_is_restored(stage: Stage) -> None:
    model, y = labelled(5)
    frozen = model[0].weight
    frozen.requires_grad_(False)
    wanted: list[bool] = []
    handle = model.register_forward_hook(lambda *_: wanted.append(any(p.requires_grad for p in model.parameters())))
    stage(model, X, y, generator=stream())
    handle.remove()
    assert not any(wanted), "no gradient to weights is expected to be asked for during the attack"
    assert [p.requires_grad for p in model.parameters()] == [p is not frozen for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())


def test_everything_is_restored_after_an_error() -> None:
    model, y = labelled(5)
    model.train()
    before = rng_states()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    model.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        APGDCE(THREAT, 5)(model, X, y, generator=stream())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert difference(before, rng_states()) is None


@by_name
def test_the_seed_comes_from_the_generator(stage: Stage) -> None:
    model, y = labelled(5)
    first, again = (stage(model, X, y, generator=stream(3)) for _ in range(2))
    assert torch.equal(first, again)
    generator = stream(3)
    assert torch.equal(first, stage(model, X, y, generator=generator))
    before = generator.get_state()
    stage(model, X, y, generator=generator)
    assert not torch.equal(before, generator.get_state())


@pytest.mark.parametrize("stage", [SHORT[0], SHORT[3]], ids=lambda stage: stage.name)
def test_other_seeds_give_other_points(stage: Stage) -> None:
    model, _ = labelled(5)
    found = [stage(model, X, (labelled(5)[1]), generator=stream(seed)) for seed in range(6)]
    assert any(not torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_few_classes_work_and_many_too(classes: int, norm: Any) -> None:
    model, y = labelled(classes)
    threat = ThreatModel(norm, 0.05)
    attack = AutoAttack(threat, steps=4, targets=9, queries=15)
    assert threat.contains(attack(model, X, y, generator=stream()), X).all()
    reasons = [stage.left_out(classes) for stage in attack.stages]
    reason = f"needs at least 4 classes, the model has {classes}" if classes < 4 else None
    assert reasons == [None, reason, None, None]
    if reason is not None:
        with pytest.raises(ValueError, match=f"apgd-t-reference: {reason}"):
            attack.stages[1](model, X, y, generator=stream())


@pytest.mark.parametrize(("classes", "targets"), [(2, 1), (4, 3), (10, 9), (30, 9)])
def test_the_number_of_targets_follows_the_classes(classes: int, targets: int) -> None:
    ensemble = reference.reference_package().AutoAttack(network(classes, 0), norm="Linf", eps=0.1, version="custom")
    for stage, attribute in ((APGDT(THREAT), "apgd_targeted"), (FABT(THREAT), "fab")):
        member = stage.member(ensemble, classes)
        assert member is getattr(ensemble, attribute)
        assert (member.n_target_classes, member.n_restarts, member.n_iter) == (targets, 1, 100)
    ce = APGDCE(THREAT).member(ensemble, classes)
    assert (ce.loss, ce.n_restarts, ce.n_iter) == ("ce", 1, 100)
    square = Square(THREAT).member(ensemble, classes)
    assert (square.n_queries, square.p_init, square.n_restarts) == (5000, 0.8, 1)


@by_name
def test_a_batch_of_one_and_an_empty_batch(stage: Stage) -> None:
    model, y = labelled(5)
    assert stage(model, X[:1], y[:1], generator=stream()).shape == (1, 1, 8, 8)
    assert stage(model, X[:0], y[:0], generator=stream()).shape == (0, 1, 8, 8)


def test_inputs_arrive_contiguous_and_in_single_precision() -> None:
    model, y = labelled(5)
    seen: list[Tensor] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    channels_last = images(10, 9).expand(10, 1, 8, 8).to(memory_format=torch.channels_last)
    strided = torch.stack([channels_last, channels_last], -1)[..., 0]
    assert not strided.is_contiguous()
    x_adv = SHORT[0](model, strided, y, generator=stream())
    assert all(x.dtype == torch.float32 for x in seen)
    assert torch.equal(x_adv, SHORT[0](model, X, y, generator=stream()))


def test_each_stage_gets_what_is_still_standing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, y = labelled(5)
    y = y.clone()
    y[:2] = (y[:2] + 1) % 5  # wrong from the start: nobody attacks them
    met: list[tuple[str, list[int]]] = []
    call = Stage.__call__

    def watched(self: Stage, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        met.append((self.name, [int((image == X).flatten(1).all(1).nonzero()) for image in x]))
        return call(self, model, x, y, generator=generator)

    monkeypatch.setattr(Stage, "__call__", watched)
    x_adv = AutoAttack(ThreatModel("linf", 0.02), steps=4, targets=2, queries=15)(model, X, y, generator=stream())
    assert met[0] == ("apgd-ce-reference", list(range(2, 10)))
    for (_, earlier), (_, later) in zip(met, met[1:], strict=False):
        assert set(later) <= set(earlier)
    assert torch.equal(x_adv[:2], X[:2])
    with torch.no_grad():
        standing = (model(x_adv).argmax(1) == y).nonzero().flatten().tolist()
    assert set(standing) <= set(met[-1][1])
    assert torch.equal(x_adv[standing], X[standing]), "what no stage fools is returned as it came"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PACKAGES", ("no_such_package",))
    with pytest.raises(ImportError, match="no reference implementation found; pip install pyautoattack"):
        reference.reference_package()
