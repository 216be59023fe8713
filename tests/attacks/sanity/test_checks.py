"""Models that mask their gradients are flagged, trained ones are not, and each check is right in closed form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.objectives import cross_entropy
from attacks.sanity import checks, findings, measure
from attacks.sanity.checks import Examination, choose_samples, examine
from attacks.sanity.findings import Finding
from attacks.threat import ThreatModel
from bench.data.splits import load, to_float
from tests.helpers.masked import DESIGNED, HELD_OUT, Around, QuantisedInput, Wrapper

EPS = (0.05, 0.1, 0.15, 0.3)
Samples = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def samples() -> Samples:
    test = load("digits").test
    return to_float(test.x), test.y


def train(*, eps: float, epochs: int) -> nn.Module:
    """A small network on digits, on adversarial inputs if there is a radius."""
    part = load("digits").train
    x, y = to_float(part.x), part.y
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 10),
        )  # fmt: skip
        optimiser = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                at = x[rows]
                if eps:
                    objective = cross_entropy(y[rows])
                    at = ascend(model, at, objective, eps=eps, step_size=eps / 2, steps=3, start="zero")
                optimiser.zero_grad()
                F.cross_entropy(model(at), y[rows]).backward()
                optimiser.step()
    optimiser.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def natural() -> nn.Module:
    return train(eps=0, epochs=5)


@pytest.fixture(scope="module")
def robust() -> nn.Module:
    return train(eps=0.15, epochs=6)


def check(model: nn.Module, samples: Samples, eps: float, *, norm: str = "linf", count: int = 100) -> Examination:
    threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
    return examine(model, *samples, threat=threat, generator=torch.Generator().manual_seed(3), samples=count)


def flags(found: Examination) -> dict[str, str]:
    return {finding.check: finding.level for finding in found.findings if finding.level != "reliable"}


def named(found: Examination, name: str) -> Finding:
    return next(finding for finding in found.findings if finding.check == name)


# Whole examinations


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("which", ["natural", "robust"])
def test_trained_models_are_reliable(which: str, eps: float, samples: Samples, request: pytest.FixtureRequest) -> None:
    found = check(request.getfixturevalue(which), samples, eps)
    assert (flags(found), found.mark, found.reasons, found.samples) == ({}, "reliable", (), 100)
    assert len(found.findings) == 13


def test_trained_models_are_reliable_in_l2(natural: nn.Module, robust: nn.Module, samples: Samples) -> None:
    assert flags(check(natural, samples, 0.5, norm="l2")) == flags(check(robust, samples, 1.0, norm="l2")) == {}


@pytest.mark.parametrize("mask", [*DESIGNED, *HELD_OUT], ids=lambda mask: mask.__name__)
def test_masked_models_are_flagged_at_small_and_large_radius(
    mask: Wrapper, robust: nn.Module, samples: Samples
) -> None:
    name, mark = {**DESIGNED, **HELD_OUT}[mask]
    for eps in (EPS[0], EPS[-1]):
        found = check(mask(robust).eval(), samples, eps, count=20)
        assert found.mark == mark
        assert flags(found)[name] == mark
        assert named(found, name).reason in found.reasons


class ClipsItsInput(Around):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.clamp(0, 1))
        return logits


class TenTimes(Around):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 3 * self.model(x) + 7
        return logits


@pytest.mark.parametrize("harmless", [ClipsItsInput, TenTimes])
def test_what_does_no_harm_is_not_flagged(harmless: Wrapper, robust: nn.Module, samples: Samples) -> None:
    assert flags(check(harmless(robust).eval(), samples, 0.15)) == {}


@pytest.mark.parametrize("seed", range(3))
def test_a_network_of_random_weights_is_not_flagged(seed: int, samples: Samples) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    assert flags(check(model, samples, 0.1)) == {}


def test_equal_generators_give_equal_results_and_leave_everything_alone(robust: nn.Module, samples: Samples) -> None:
    model = nn.Sequential(robust, nn.Dropout(0.5)).train()
    robust.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stream = torch.random.get_rng_state()
    first, second = (check(model, samples, 0.15, count=30).as_dict() for _ in range(2))
    assert first == second
    assert torch.equal(stream, torch.random.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_data(natural: nn.Module, samples: Samples) -> None:
    found = check(QuantisedInput(natural), samples, 0.15, count=20)
    facts = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert (facts["mark"], facts["samples"]) == ("unreliable", 20)
    assert facts["findings"][0] == {
        "check": "box", "level": "reliable", "value": 0.0, "threshold": 0.0, "limit": 0.0,
        "reason": "0.0% of the images leave the box [0, 1]",
    }  # fmt: skip
    assert {finding["check"] for finding in facts["findings"] if finding["level"] == "unreliable"} >= {
        "zero_gradients", "whole_box", "ascent",
    }  # fmt: skip


def test_passes_are_those_that_were_made(natural: nn.Module, samples: Samples) -> None:
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seen
        seen += len(output)

    handle = natural.register_forward_hook(count)
    found = check(natural, samples, 0.15, count=10)
    handle.remove()
    assert found.passes["forward"] == seen
    assert seen - len(samples[0]) <= 257 * 10
    assert 40 * 10 <= found.passes["input_grad"] <= 124 * 10


def test_images_outside_the_box_are_unreliable(robust: nn.Module, samples: Samples) -> None:
    x, y = samples
    found = check(robust, (2 * x - 1, y), 0.15, count=10)
    assert flags(found)["box"] == "unreliable"
    assert "put the normalisation inside the model" in found.reasons[0]
    x = x.clone()
    x[0, 0, 0, 0] = torch.nan
    assert named(check(robust, (x, y), 0.0, count=20), "box").value == pytest.approx(1 / 400)


def test_nothing_right_and_no_radius(robust: nn.Module, samples: Samples) -> None:
    x, y = samples
    wrong = (robust(x).argmax(1) + 1) % 10
    found = check(robust, (x, wrong), 0.15)
    assert (found.mark, found.samples, [f.check for f in found.findings]) == ("reliable", 0, ["box"])
    still = check(robust, samples, 0.0, count=20)
    assert still.mark == "reliable"
    assert {f.check for f in still.findings}.isdisjoint({"more_steps", "noise", "search", "one_step"})
    alone = check(robust, (x[:1], y[:1]), 0.15)
    assert named(alone, "batch_dependence").value is None


def test_samples_are_spread_over_the_classes() -> None:
    y = torch.tensor([0] * 50 + [1] * 30 + [2] * 3)
    right = torch.ones(83, dtype=torch.bool)
    right[:10] = False
    rows = choose_samples(y, right, 23, torch.Generator().manual_seed(0))
    assert y[rows].bincount().tolist() == [10, 10, 3]
    assert right[rows].all() and (rows.diff() > 0).all()
    assert len(choose_samples(y, right, 100, torch.Generator())) == 73
    assert not torch.equal(rows, choose_samples(y, right, 23, torch.Generator().manual_seed(1)))
    assert len(choose_samples(y, ~right & False, 5, torch.Generator())) == 0


# Stages


def stages(n: int, found: Tensor) -> dict[str, Tensor]:
    before = torch.ones(n, dtype=torch.bool)
    return {"apgd-ce": before, "fab-t": before, "square": before & ~found}


@pytest.mark.parametrize(
    ("count", "level"), [(0, "reliable"), (6, "reliable"), (7, "suspicious"), (15, "suspicious"), (16, "unreliable")]
)
def test_a_black_box_stage_that_finds_more(count: int, level: str) -> None:
    y = torch.arange(400) % 10
    found = torch.zeros(400, dtype=torch.bool)
    found[:count] = True
    right = torch.ones(400, dtype=torch.bool)
    overall, _ = checks._black_box(stages(400, found), right, y)
    assert (overall.check, overall.level, overall.value) == ("black_box", level, count / 400)
    assert f"square alone finds {count} of 400 samples" in overall.reason


def test_a_single_class_is_noticed_and_order_matters() -> None:
    y = torch.arange(4000) % 10
    found = (y == 7) & (torch.arange(4000) < 600)
    right = torch.ones(4000, dtype=torch.bool)
    overall, by_class = checks._black_box(stages(4000, found), right, y)
    assert (overall.level, by_class.level) == ("suspicious", "unreliable")
    assert "of 400 samples of class 7" in by_class.reason
    first = {"square": ~found, "apgd-ce": ~found}
    assert (
        checks._black_box(first, right, y) == checks._black_box({}, right, y) == checks._black_box(None, right, y) == []
    )
    fallen = {"apgd-ce": ~found, "square": ~found}
    assert [finding.value for finding in checks._black_box(fallen, right, y)] == [0, 0]


def test_counts_that_chance_explains() -> None:
    for n, share, chance in [(100, 0.02, 0.01), (400, 0.005, 0.01), (20, 0.1, 0.05), (3, 0.5, 0.01)]:
        k = findings.binomial_limit(n, share, chance)

        def beyond(k: int, n: int = n, share: float = share) -> float:
            return sum(math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(k + 1, n + 1))

        assert beyond(k) <= chance < beyond(k - 1)
    assert findings.binomial_limit(50_000, 0.02, 0.01) == pytest.approx(1000 + 2.33 * math.sqrt(980), abs=3)


# Symptoms


Y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])


def some(*places: int) -> Tensor:
    return torch.zeros(10, dtype=torch.bool).index_fill(0, torch.tensor(places, dtype=torch.int64), True)


@pytest.mark.parametrize(
    ("finding", "level", "value"),
    [
        (findings.random_forward(torch.tensor([0.0, 1e-6])), "reliable", 1e-6),
        (findings.random_forward(torch.tensor([0.0, 1e-3])), "suspicious", 1e-3),
        (findings.random_forward(torch.tensor([0.1, 0.0])), "unreliable", 0.1),
        (findings.batch_dependence(torch.tensor([1e-5])), "reliable", 1e-5),
        (findings.batch_dependence(torch.tensor([5e-3])), "suspicious", 5e-3),
        (findings.batch_dependence(None), "reliable", None),
        (findings.probabilities(torch.tensor([[0.2, 0.8], [0.5, 0.5]])), "suspicious", 1),
        (findings.probabilities(torch.tensor([[0.2, 0.9], [-0.5, 1.5]])), "reliable", 0),
        (findings.zero_gradients(some(), Y), "reliable", 0),
        (findings.zero_gradients(some(1), Y), "suspicious", 0.25),
        (findings.zero_gradients(some(4, 5, 6), Y), "unreliable", 0.75),
        (findings.saturation(some(8, 9), Y), "unreliable", 1),
        (findings.gradient_agreement(torch.linspace(0, 0.1, 10), Y), "reliable", 8 / 90),
        (findings.gradient_agreement(some(0, 1, 2).double(), Y), "unreliable", 1),
        (findings.gradient_agreement(some(0, 1).double(), Y), "reliable", 0),
        (findings.ascent(torch.stack([~some(), ~some(0, 1, 2)])), "suspicious", 0.3),
        (findings.ascent(torch.stack([~some(), some()])), "unreliable", 1),
        (findings.whole_box(some()), "reliable", 0),
        (findings.whole_box(some(0)), "suspicious", 0.1),
        (findings.whole_box(some(0, 1)), "unreliable", 0.2),
        (findings.more_steps(torch.stack([some(1, 2), some(1), some(1, 2)])), "suspicious", 0.1),
        (findings.more_steps(torch.stack([some(1, 2), some(1), some(1)])), "reliable", 0),
        (findings.one_step(some(), some(0, 1, 2, 3, 4, 5, 6)), "suspicious", 0.3),
        (findings.noise(some(), some()), "unreliable", 1),
        (findings.noise(~some(), some()), "reliable", 0),
        (findings.search(some(), ~some()), "reliable", 0),
        (findings.search(some(0), some()), "unreliable", 0.9),
    ],
    ids=lambda value: value.check if isinstance(value, Finding) else "",
)
def test_levels_in_closed_form(finding: Finding, level: str, value: float | None) -> None:
    assert finding.level == level
    assert finding.value == (None if value is None else pytest.approx(value, abs=1e-6))
    assert ("; " in finding.reason) == (level != "reliable")


def test_the_worst_class_and_rare_classes() -> None:
    assert findings.worst_class(some(4, 5, 6).double(), Y) == (0.75, "class 1")
    assert findings.worst_class(some(8).double(), Y) == (0.5, "the rare classes")
    y = torch.tensor([0, 1, 2, 3])
    assert findings.worst_class(torch.tensor([0.0, 1, 0, 0]), y) == (0.25, "the rare classes")


# Probes


class Linear(nn.Module):
    """Two logits whose difference is linear; `seen` scales what reaches the gradient."""

    def __init__(self, seen: float = 1.0) -> None:
        super().__init__()
        self.seen = seen
        self.weight = nn.Parameter(torch.arange(-3.5, 4.5).view(1, 2, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.seen * x + (1 - self.seen) * x.detach()
        score = (x * self.weight).flatten(1).sum(1) + 100
        return torch.stack([score, torch.zeros_like(score)], 1)


def probe(model: nn.Module, *, m: int = 6, eps: float = 0.1) -> measure.Probe:
    x = torch.rand(m, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(m, dtype=torch.int64)
    return measure.Probe(measure.CountingModel(model), x, y, ThreatModel("linf", eps), torch.Generator().manual_seed(2))


@pytest.mark.parametrize("seen", [1.0, 0.5, 0.0, -1.0])
def test_unexplained_share_of_a_linear_model(seen: float) -> None:
    """Quotient q, slope seen q: (1 - seen)^2 / (1 + seen^2)."""
    left = measure.disagreement(probe(Linear(seen)))
    assert left.tolist() == pytest.approx([(1 - seen) ** 2 / (1 + seen**2)] * 6, abs=1e-2)


def test_gradients_of_margin_and_loss() -> None:
    by_loss, by_margin = measure.gradients(probe(Linear()))
    assert torch.equal(by_margin, -Linear().weight.detach().expand(6, 2, 2, 2))
    assert measure.is_zero(by_loss).tolist() == [True] * 6  # a margin of 100 is lost in float32
    assert measure.is_zero(by_margin).tolist() == [False] * 6
    assert measure.is_zero(torch.tensor([0.0, torch.nan, torch.inf, 1]).view(4, 1, 1, 1)).tolist() == [1, 1, 1, 0]


def test_a_step_along_the_gradient_raises_a_linear_margin() -> None:
    seen = probe(Linear())
    gradient = measure.gradients(seen)[1]
    assert measure.margin_rises(seen, gradient).all()
    assert measure.margin_rises(seen, gradient).shape == (2, 6)
    assert not measure.margin_rises(seen, -gradient).any()


class Counts(nn.Module):
    """Right at every other forward."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        sign = 1.0 if self.forwards % 2 else -1.0
        return torch.stack([x.flatten(1).sum(1), -x.flatten(1).sum(1)], 1) * sign


@pytest.mark.parametrize(
    ("attack", "left"),
    [(measure.noise, 0), (measure.whole_box, 0), (measure.one_step, 0)],
)
def test_a_model_that_changes_its_mind_falls(attack: Callable[[measure.Probe], Tensor], left: int) -> None:
    assert int(attack(probe(Counts())).sum()) == left


def test_random_outputs_and_company() -> None:
    assert measure.repeat_change(probe(Linear())).max() == 0
    assert measure.repeat_change(probe(Counts())).min() == pytest.approx(1)
    regrouped = measure.batch_change(probe(Linear()))
    assert regrouped is not None and regrouped.max() < 1e-5
    assert measure.batch_change(probe(Linear(), m=1)) is None


def test_points_on_the_surface_of_the_ball() -> None:
    flat = measure._surface(probe(Linear()))
    assert torch.equal(flat.abs(), torch.full_like(flat, 0.1))
    seen = probe(Linear())
    round_ = measure._surface(measure.Probe(seen.model, seen.x, seen.y, ThreatModel("l2", 0.5), seen.generator))
    assert round_.flatten(1).norm(dim=1).tolist() == pytest.approx([0.5] * 6)
