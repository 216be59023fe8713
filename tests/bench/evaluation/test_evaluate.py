"""The evaluation harness trusts no attack, and can stop anywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.passes import Passes
from attacks.pgd import PGD
from attacks.registry import ATTACKS
from attacks.threat import ThreatModel
from bench.core import files
from bench.data.splits import Parts, to_float
from bench.errors import BenchError
from bench.evaluation.evaluate import evaluate, outcome_columns
from bench.evaluation.stages import Verdicts, run_attack
from bench.models.builders import build
from tests.helpers.jobs import StopAt, run_with_interruptions

THREAT = ThreatModel("linf", 0.15)
Move = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Scripted:
    """An attack that does what a test tells it to, and remembers what it was given."""

    move: Move
    threat: ThreatModel = THREAT
    stages: tuple[Any, ...] = ()
    name: str = "scripted"
    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        self.seen.append(x.clone())
        return self.move(model, x, y, generator)

    def passes(self, num_classes: int) -> Passes:
        return Passes()


@pytest.fixture(scope="module")
def samples(digits: Parts) -> tuple[Tensor, Tensor]:
    return to_float(digits.test.x), digits.test.y


@pytest.fixture(scope="module")
def model(short_run: Path) -> nn.Module:
    network = build("small_cnn", 10, 1, 8, seed=0)
    (file,) = short_run.glob("*/*/*/*/last.safetensors")
    from bench.models.checkpoints import fit, load_weights

    return fit(network, load_weights(file)).eval()


# No attack is trusted


@pytest.mark.parametrize(
    ("move", "sentence"),
    [
        (
            lambda model, x, y, g: x + 0.2 * (0.5 - x).sign(),
            r"expected x_adv in \[0, 1\] and within linf 0.15 of x, got \[.*\] at distance 0\.2\d*; project before",
        ),
        (
            lambda model, x, y, g: x - 0.1,
            r"expected x_adv in \[0, 1\] and within linf 0.15 of x, got \[-0\.1, 0\.9\] at distance 0\.1\d*; project",
        ),
        (lambda model, x, y, g: x / 0, "expected finite x_adv, got NaN or infinity; the attack or the model overflows"),
        (lambda model, x, y, g: x[:-1], r"expected x_adv of shape \(20, 1, 8, 8\), got \(19, 1, 8, 8\)"),
        (lambda model, x, y, g: x.flatten(1), r"expected x_adv of shape \(20, 1, 8, 8\), got \(20, 64\)"),
        (lambda model, x, y, g: (x, y), r"expected x_adv of shape \(20, 1, 8, 8\), got tuple"),
    ],
    ids=["outside the ball", "outside the box", "not finite", "a sample less", "another shape", "a tuple"],
)
def test_an_attack_that_returns_what_it_may_not_is_named(
    move: Move, sentence: str, model: nn.Module, samples: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(BenchError, match=f"^attack scripted: {sentence}"):
        run_attack(model, *samples, Scripted(move), "scripted", block=20)


def test_an_attack_that_changes_its_inputs_does_not_change_the_samples(
    model: nn.Module, samples: tuple[Tensor, Tensor]
) -> None:
    """Drifting away from an original that moves along would look like staying close."""
    x, y = samples
    before = x.clone()

    def drift(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return x.fill_(0.5)

    with pytest.raises(BenchError, match=r"^attack scripted: expected x_adv in \[0, 1\] and within linf 0.15 of x"):
        run_attack(model, x, y, Scripted(drift), "scripted", block=20)
    assert torch.equal(x, before)


def test_a_refused_input_is_the_attacks_own_sentence(model: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(BenchError, match=r"expected x in \[0, 1\], got max 2\.000; put the normalisation inside"):
        evaluate(model, samples[0] * 2, samples[1], attacks=["pgd"], threat=THREAT)


def test_the_verdict_is_the_models_in_eval_mode_whatever_an_attack_leaves(samples: tuple[Tensor, Tensor]) -> None:
    """In train mode the statistics of the batch would fool this network for the attack."""

    def switch(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        model.train()
        return x.clone()

    x, y = samples
    network = build("small_cnn", 10, 1, 8, seed=3).eval()
    with torch.no_grad():
        given = network(x).argmax(1)
        in_train_mode = build("small_cnn", 10, 1, 8, seed=3)(x).argmax(1)
    assert not torch.equal(given, in_train_mode)
    verdicts = run_attack(network, x, y, Scripted(switch), "scripted", block=60)
    assert torch.equal(verdicts.stages["scripted"][0], given)
    assert torch.equal(verdicts.stages["scripted"][1], given == y)


def test_an_attack_that_moves_the_model_is_refused(samples: tuple[Tensor, Tensor]) -> None:
    def disarm(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            model.linear.bias[2] += 100  # type: ignore[union-attr, index, operator]
        return x.clone()

    with pytest.raises(BenchError, match=r"attack scripted: expected the model unchanged, got another linear\.bias"):
        run_attack(build("small_cnn", 10, 1, 8, seed=3), *samples, Scripted(disarm), "scripted", block=60)


def test_an_attack_none_of_which_can_run_is_a_sentence(samples: tuple[Tensor, Tensor]) -> None:
    network = build("small_cnn", 3, 1, 8, seed=3)
    with pytest.raises(BenchError, match="attack apgd-t: nothing of it can run: apgd-t needs at least 4 classes"):
        evaluate(network, samples[0], samples[1] % 3, attacks=["apgd-t"])


def test_two_attacks_of_one_name_are_refused(model: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="two attacks are called 'fgsm'"):
        evaluate(model, *samples, attacks=["fgsm", "FGSM"])


class ByBrightness(nn.Module):
    """Class 1 for bright images and class 0 for dark ones."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3)) - 0.5
        return torch.stack([-bright, bright], 1)


def test_robust_means_right_before_and_right_after() -> None:
    """All four cases: right-right, right-wrong, wrong-right, wrong-wrong."""
    x = torch.tensor([0.9, 0.55, 0.45, 0.1]).view(4, 1, 1, 1).expand(4, 1, 8, 8).contiguous()
    y = torch.ones(4, dtype=torch.int64)
    delta = torch.tensor([0.0, -0.1, 0.1, 0.0]).view(4, 1, 1, 1)
    attack = Scripted(lambda model, x, y, g: x + delta)
    verdicts = run_attack(ByBrightness(), x, y, attack, "scripted")
    prediction, robust = verdicts.stages["scripted"]
    assert verdicts.clean.tolist() == [1, 1, 0, 0]
    assert prediction.tolist() == [1, 0, 1, 0], "an attack without stages attacks every sample"
    assert robust.tolist() == [True, False, False, False]


def test_a_stage_gets_what_is_right_and_still_standing_and_nothing_else() -> None:
    values = torch.tensor([0.9, 0.55, 0.45, 0.8, 0.6, 0.1])
    x = values.view(6, 1, 1, 1).expand(6, 1, 8, 8).contiguous()
    y = torch.ones(6, dtype=torch.int64)
    first = Scripted(lambda model, x, y, g: x - 0.06, name="first")
    second = Scripted(lambda model, x, y, g: x - 0.14, name="second")
    both = Scripted(lambda model, x, y, g: x, stages=(first, second))
    verdicts = run_attack(ByBrightness(), x, y, both, "both", block=4)
    seen = [[[round(float(v), 2) for v in batch[:, 0, 0, 0]] for batch in stage.seen] for stage in (first, second)]
    assert seen == [[[0.9, 0.55, 0.8], [0.6]], [[0.9, 0.8], [0.6]]]
    assert verdicts.stages["first"][1].tolist() == [True, False, False, True, True, False]
    assert verdicts.stages["second"][1].tolist() == [True, False, False, True, False, False]
    assert both.seen == [], "the harness walks the stages, not the attack"
    assert list(outcome_columns("both", verdicts)) == ["both", "both/first", "both/second"]
    assert outcome_columns("both", verdicts)["both"] is outcome_columns("both", verdicts)["both/second"]


def test_stages_that_need_more_classes_are_left_out_and_named() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(6, 1, 8, 8)
    with torch.no_grad():
        y = network(x).argmax(1)
    attack = ATTACKS["autoattack"](threat=ThreatModel("linf", 0.01), steps=2, queries=5)
    progress = StopAt(0)
    verdicts = run_attack(network, x, y, attack, "autoattack", progress=progress)
    assert verdicts.left_out == {"apgd-t": "needs at least 4 classes, the model has 3"}
    assert list(verdicts.stages) == ["apgd-ce", "fab-t", "square"]
    assert "autoattack: apgd-t is left out: needs at least 4 classes, the model has 3" in progress.lines
    last = next(line for line in progress.lines if line.startswith("robust accuracy after SQUARE"))
    assert re.fullmatch(r"robust accuracy after SQUARE: \d+\.\d\d % \(total time \d+\.\d s\)", last)


def test_passes_are_counted_in_samples(model: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    verdicts = run_attack(model, *samples, PGD(THREAT, steps=3), "pgd", block=25)
    assert verdicts.passes == {"forward": 180, "input_grad": 180}


# Draws


def run(model: nn.Module, samples: tuple[Tensor, Tensor], **changes: Any) -> Verdicts:
    """AutoAttack, quickly; or another attack."""
    attack = changes.pop("attack", ATTACKS["autoattack"](threat=THREAT, steps=4, targets=3, queries=20))
    return run_attack(model, *samples, attack, changes.pop("name", "autoattack"), **{"block": 20, **changes})


def same(a: Verdicts, b: Verdicts) -> bool:
    return list(a.stages) == list(b.stages) and all(
        torch.equal(mine, theirs)
        for stage in a.stages
        for mine, theirs in zip(a.stages[stage], b.stages[stage], strict=True)
    )


def test_stopped_after_every_stored_block_the_outcome_is_the_same(
    model: nn.Module, samples: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    whole = run(model, samples)
    ends: list[Verdicts] = []
    stops = run_with_interruptions(
        lambda progress: ends.append(run(model, samples, folder=tmp_path, progress=progress))
    )
    attacked = [file for file in tmp_path.glob("*.json") if files.read_json(file).get("passes", {}).get("forward")]
    assert stops == len(attacked) - 1 >= 8
    assert same(ends[0], whole)
    assert ends[0].passes == whole.passes


def test_a_lost_block_is_computed_again_to_the_same_end(
    model: nn.Module, samples: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    whole = run(model, samples, folder=tmp_path)
    for name in ("apgd-ce-1.json", "square-0.json"):
        (tmp_path / name).unlink()
    assert same(run(model, samples, folder=tmp_path), whole)


def test_what_was_drawn_before_changes_nothing_and_nothing_is_drawn_from_the_global_stream(
    model: nn.Module, samples: tuple[Tensor, Tensor]
) -> None:
    torch.manual_seed(1)
    first = run(model, samples)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = run(model, samples)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, second)


def noise(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    moved = x + 0.15 * (2 * torch.rand(x.shape, generator=generator) - 1)
    return moved.clamp(0, 1)


def test_each_seed_stage_and_block_has_a_stream_of_its_own(model: nn.Module) -> None:
    x, y = torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)

    def drawn(name: str, **changes: Any) -> list[Tensor]:
        results: list[Tensor] = []

        def record(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
            results.append(noise(model, x, y, generator))
            return results[-1]

        run_attack(model, x, y, Scripted(record), name, block=2, **changes)
        return results

    first, second = drawn("a")
    assert not torch.equal(first, second), "two blocks"
    assert torch.equal(drawn("a")[1], second)
    assert not torch.equal(drawn("b")[0], first)
    assert not torch.equal(drawn("a", seed=1)[0], first)


# From Python


def test_from_python_names_and_objects_give_outcomes(model: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    outcomes = evaluate(model, x, y, attacks=["FGSM", Scripted(noise)], threat=THREAT, class_names=tuple("abcdefghij"))
    assert outcomes.attacks == ["clean", "fgsm", "scripted"]
    assert len(outcomes) == 60
    assert outcomes.class_names[0] == "a"
    assert outcomes.average("fgsm") <= outcomes.average("scripted") <= outcomes.average()
    with torch.no_grad():
        assert outcomes.clean.tolist() == model(x).argmax(1).tolist()
    again = evaluate(model, x, y, attacks=["fgsm"], threat=THREAT)
    assert np.array_equal(again.verdict("fgsm").robust, outcomes.verdict("fgsm").robust)
    stronger = evaluate(model, x, y, attacks=["fgsm"], threat=ThreatModel("linf", 0.3))
    assert stronger.average("fgsm") < outcomes.average("fgsm")


def test_clean_predictions_are_made_once_for_all_attacks(model: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    seen: list[int] = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    still: list[str | Attack] = [Scripted(lambda model, x, y, g: x, name=name) for name in ("first", "second", "third")]
    outcomes = evaluate(model, *samples, attacks=still)
    handle.remove()
    verdicts, looks_at_one_for_the_classes, interface = 3 * 60, 3 + 1, 1 + 2
    assert sum(seen) == 60 + verdicts + looks_at_one_for_the_classes + interface
    for name in ("first", "second", "third"):
        assert np.array_equal(outcomes.verdict(name).robust, outcomes.clean == outcomes.label)


class Roomless(nn.Module):
    """A network for which memory runs out above a number of samples."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(x)} samples")
        logits: Tensor = self.network(x)
        return logits


@pytest.mark.parametrize("attacks", [[], ["fgsm"]])
def test_from_python_what_does_not_fit_into_memory_goes_in_parts(
    attacks: list[str], model: nn.Module, samples: tuple[Tensor, Tensor]
) -> None:
    whole = evaluate(model, *samples, attacks=attacks, threat=THREAT)
    progress = StopAt(0)
    parts = evaluate(Roomless(model, 7), *samples, attacks=attacks, threat=THREAT, progress=progress)
    assert np.array_equal(parts.clean, whole.clean)
    assert parts.attacks == whole.attacks
    assert "out of memory with 60 samples at once: going on with 30" in progress.lines


def test_the_model_is_left_as_it_was(samples: tuple[Tensor, Tensor]) -> None:
    network = build("small_cnn", 10, 1, 8, seed=0).train()
    network.get_submodule("features.1").eval()
    modes = [module.training for module in network.modules()]
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    attacks: list[str | Attack] = ["pgd", ATTACKS["autoattack"](threat=THREAT, steps=2, targets=2, queries=5)]
    evaluate(network, *samples, attacks=attacks, threat=THREAT)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


# What is searched


def test_the_model_itself_is_searched_where_that_is_asked_for(model: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    met: list[int] = []
    handle = model.register_forward_hook(lambda module, inputs, output: met.append(len(output)))
    x, y = samples[0][:20], samples[1][:20]
    attack = ATTACKS["pgd"](threat=THREAT, steps=7)
    searched = []
    for prepare in ((), ("none",)):
        met.clear()
        run_attack(model, x, y, attack, "pgd", prepare=prepare)
        searched.append(len(met))
    handle.remove()
    assert searched[1] >= searched[0] + 5
