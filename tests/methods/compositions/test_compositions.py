"""Compositions: their names, what they declare, and that at strength 0 they are their hosts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.passes import Passes
from attacks.plugins.registry import UnknownName
from bench.conformance.fixtures import difference, state_of
from methods.base import Adversarial, Method, Terms
from methods.compositions.awp import AWP
from methods.registry import COMPOSITIONS, METHODS
from methods.wrapper import Wrapper, compose
from tests.helpers.jobs import isolated_registries
from tests.helpers.method_runs import loop_of

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
    with isolated_registries(monkeypatch):
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
    assert difference(state_of(bare.model), state_of(judged)) is None
    assert wrapped.method.passes() == bare.method.passes() or settings.get("awp_start") == 1.0


@pytest.mark.parametrize(
    ("name", "settings"),
    [("awp:trades", {}), ("ema:trades", {}), ("swa:trades", {"swa_start": 0.0}),
     ("fawa:trades", {"fawa_threshold": 0.0, "fawa_start": 0.0}), ("fair_weight:trades", {})],
)  # fmt: skip
def test_at_its_usual_strength_a_composition_changes_what_is_evaluated(name: str, settings: dict[str, Any]) -> None:
    bare, wrapped = loop_of("trades").run(), loop_of(name, **settings).run()
    judged = wrapped.method.evaluation_model(wrapped.model)
    assert difference(state_of(bare.model), state_of(judged)) is not None


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("awp:natural", {"gamma": -0.1}, "AWPNatural: gamma: expected a number of at least 0, got -0.1"),
        ("ema:natural", {"ema_decay": 1.0}, "EMANatural: ema_decay: expected a number from 0 to below 1, got 1.0"),
        ("swa:natural", {"swa_start": 2}, "SWANatural: swa_start: expected a number from 0 to 1, got 2"),
        ("fawa:natural", {"fawa_start": 2}, "FAWANatural: fawa_start: expected a number from 0 to 1, got 2"),
        (
            "fair_weight:natural",
            {"fair_min": 2},
            "FairWeightNatural: fair_min: expected a number from above 0 to 1, got 2",
        ),
    ],
)
def test_a_strength_out_of_range_is_refused(name: str, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        METHODS[name](**settings)
