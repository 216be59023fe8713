"""The block size moves no draw, and verdicts by rounding at most."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.draws import uniform
from attacks.passes import Passes
from attacks.registry import ATTACKS
from attacks.threat import ThreatModel
from bench.data.splits import load, to_float
from bench.evaluation.stages import run_attack
from bench.models.builders import build

ATTACKED = {
    "fgsm": {}, "pgd": {"steps": 8, "restarts": 2}, "cw": {"steps": 8}, "apgd-ce": {"steps": 10},
    "apgd-t": {"steps": 6, "targets": 3}, "fab-t": {"steps": 6, "targets": 3},
    "square": {"queries": 60}, "autoattack": {"steps": 5, "targets": 2, "queries": 30},
}  # fmt: skip


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    """Samples of digits."""
    test = load("digits", test_limit=150).test
    return to_float(test.x), test.y


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small network with BatchNorm, trained for a moment on noisy digits."""
    train = load("digits", train_limit=600).train
    x, y = to_float(train.x), train.y
    model = build("small_cnn", 10, 1, 8, seed=0).train()
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        noisy = (x + 0.3 * (torch.rand(x.shape, generator=generator) - 0.5)).clamp(0, 1)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(noisy), y).backward()
        optimiser.step()
    return model.eval()


def verdicts(model: nn.Module, x: Tensor, y: Tensor, name: str, norm: Any, block: int) -> Tensor:
    attack = ATTACKS[name](threat=ThreatModel(norm, 0.06 if norm == "linf" else 0.3), **ATTACKED[name])
    return run_attack(model, x, y, attack, name, block=block).stages.popitem()[1][1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKED)
def test_in_float64_the_block_size_changes_no_verdict(
    network: nn.Module, samples: tuple[Tensor, Tensor], name: str, norm: str
) -> None:
    exact, x = copy.deepcopy(network).double(), samples[0].double()
    one = verdicts(exact, x, samples[1], name, norm, 150)
    assert 10 < int(one.sum()) < 145, "some fall and some stand"
    assert torch.equal(verdicts(exact, x, samples[1], name, norm, 41), one)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_in_float32_it_changes_next_to_none(network: nn.Module, samples: tuple[Tensor, Tensor], norm: str) -> None:
    """At most 0.2 % of the verdicts of all attacks together: rounding follows the size of a batch."""
    changed = [verdicts(network, *samples, name, norm, 150) != verdicts(network, *samples, name, norm, 41)
               for name in ATTACKED]  # fmt: skip
    assert torch.cat(changed).double().mean() <= 0.002


@dataclass(frozen=True)
class Recording:
    """Moves nothing, and keeps what it draws for each sample."""

    threat: ThreatModel = ThreatModel("linf", 0.1)
    stages: tuple[Any, ...] = ()
    drawn: list[Tensor] = field(default_factory=list)
    name = "recording"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        uniform(x, generator)
        self.drawn.append(uniform(x, generator))
        return x

    def passes(self, num_classes: int) -> Passes:
        return Passes()


@dataclass(frozen=True)
class Ensemble(Recording):
    """A stage that only the samples meet which the model gets right."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", (Recording(drawn=self.drawn),))


def test_what_a_sample_draws_depends_neither_on_its_block_nor_on_the_others_in_it(
    network: nn.Module, samples: tuple[Tensor, Tensor]
) -> None:
    x, y = samples[0][:60], samples[1][:60]
    every = {}
    for block in (60, 7):
        attack = Recording()
        run_attack(network, x, y, attack, "r", block=block)
        every[block] = torch.cat(attack.drawn)
    assert torch.equal(every[60], every[7])
    with torch.no_grad():
        right = network(x).argmax(1) == y
    assert 0 < int(right.sum()) < 60
    attack = Ensemble()
    run_attack(network, x, y, attack, "e", block=13)
    all_right = Ensemble()
    with torch.no_grad():
        run_attack(network, x, network(x).argmax(1), all_right, "e", block=60)
    assert torch.equal(torch.cat(attack.drawn), torch.cat(all_right.drawn)[right])
