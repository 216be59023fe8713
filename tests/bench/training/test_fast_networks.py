"""Faster versions of the networks in training: the same learning, in another layout, precision or machine code."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.fast.prepared import Prepared
from bench.core import device as devices
from bench.core.pass_counter import PassCounter
from bench.models.builders import build
from bench.models.checkpoints import load_weights
from bench.plan.jobs import TrainJob
from bench.training.fast_networks import FastNetwork, FastNetworks, FoldedNetwork, keep_ends_in_float32
from bench.training.trainer import Trainer, train
from tests.helpers.jobs import StopAt, description, parts_of, plan, run_with_interruptions, tree

FAST = {"epochs": 1, "train_limit": 256, "limit": 40, "attacks": ("fgsm",)}
X = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def tiny(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A network that compiles in a second."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(4 * (image_size // 2) ** 2, num_classes),
    )  # fmt: skip


def student(*switches: str, **changes: Any) -> TrainJob:
    """The one job of a short run."""
    found = plan(**{**FAST, "methods": ("trades",), "train_with": switches or ("none",), **changes})
    (job,) = [job for job in found.train if job.role == "student"]
    return job


def fast_networks(
    model: nn.Module, *switches: str, teachers: dict[str, nn.Module] | None = None
) -> tuple[FastNetworks, list[str]]:
    said: list[str] = []
    return FastNetworks(model, teachers or {}, X, switches, counter=PassCounter(), warn=said.append), said


def network(seed: int = 0) -> nn.Module:
    return build("small_cnn", 10, 1, 8, seed=seed)


def weights(folder: Path) -> Tensor:
    found = load_weights(folder / "last.safetensors")
    return torch.cat([found[name].flatten().double() for name in sorted(found) if found[name].is_floating_point()])


@pytest.fixture(scope="module")
def plainly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps without any switch."""
    devices.configure("cpu", 1, False)
    job = student()
    return train(job, parts_of(job), tmp_path_factory.mktemp("plainly"), Path("data"))


@pytest.mark.parametrize(
    ("switches", "apart"),
    [(("channels_last",), 1e-2), (("fold",), 1e-2), (("fused",), 1e-5), (("bf16", "channels_last", "fold"), 0.2)],
)
def test_every_switch_learns_the_same_up_to_rounding(
    switches: tuple[str, ...], apart: float, plainly: Path, tmp_path: Path
) -> None:
    job = student(*switches)
    train(job, parts_of(job), tmp_path, Path("data"))
    ours, theirs = weights(tmp_path / job.folder), weights(plainly)
    start = Trainer(job, parts_of(job), tmp_path, teachers={}).model.state_dict()
    before = torch.cat([start[name].flatten().double() for name in sorted(start) if start[name].is_floating_point()])
    assert 0 <= (ours - theirs).norm() < apart * (theirs - before).norm()
    facts, plain = (description(folder) for folder in (tmp_path / job.folder, plainly))
    assert facts["arithmetic"]["switches"] == sorted(switches)
    assert facts["arithmetic"]["left_out"] == []
    assert facts["passes"] == plain["passes"]
    assert facts["arithmetic"]["precision"] == ("bfloat16 under autocast" if "bf16" in switches else "float32")
    assert facts["arithmetic"]["tf32"] is False
    assert (plain["arithmetic"]["switches"], plain["deterministic"], plain["hardware"]["threads"]) == ([], False, 1)


def test_a_run_in_bfloat16_can_be_stopped_anywhere(tmp_path: Path) -> None:
    job = student("bf16", "channels_last", "fold", "fused")
    train(job, parts_of(job), tmp_path / "whole", Path("data"))
    run_with_interruptions(lambda progress: train(job, parts_of(job), tmp_path / "pieces", Path("data"), progress))
    assert tree(tmp_path / "whole") == tree(tmp_path / "pieces")


# bfloat16


def test_bfloat16_is_for_the_layers_between_the_first_and_the_last() -> None:
    model = network()
    made, _ = fast_networks(model, "bf16")
    seen: dict[str, torch.dtype] = {}

    def note(name: str) -> Any:
        return lambda module, inputs, out: seen.update({name: out.dtype})

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    logits = made.student(X)
    assert logits.dtype == torch.float32
    assert [seen[f"features.{i}"] for i in (0, 3, 6)] == [torch.float32, torch.bfloat16, torch.bfloat16]
    assert seen["linear"] == torch.float32
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_a_version_that_misses_a_hook_of_the_model_is_left_out() -> None:
    model = network()
    model.register_forward_pre_hook(lambda module, inputs: ((inputs[0] - 0.5) * 4,))
    made, said = fast_networks(model, "bf16")
    assert made.student is model and made.facts["precision"] == "float32"
    assert said == made.left_out == ["the model computes in float32: it gives other logits"]


def test_the_model_itself_computes_as_before() -> None:
    model = network().eval()
    with torch.no_grad():
        expected = model(X)
        made, _ = fast_networks(model, "bf16")
        assert torch.equal(model(X), expected)
        assert torch.equal(copy.deepcopy(model)(X), expected)
        assert not torch.equal(made.student.eval()(X), expected)


def test_a_copy_of_a_network_has_weights_and_hooks_of_its_own() -> None:
    counter = PassCounter()
    made = FastNetwork(network(), bf16=True, compile=False)
    counter.watch(made, "student")
    copied = copy.deepcopy(made)
    assert isinstance(copied, FastNetwork)
    with torch.no_grad():
        before = made(X)
        for parameter in copied.parameters():
            parameter.zero_()
        assert torch.equal(made(X), before)
        assert not copied(X).any()
    assert counter.counts["student"]["forward"] == 3 * len(X)


def test_a_small_perturbation_reaches_the_first_layer_whole() -> None:
    model = network()
    keep_ends_in_float32(model, X)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(model(X), model(X + 1e-4))


# Folding


def test_attacks_in_eval_mode_run_on_the_folded_version_with_current_weights() -> None:
    model = network().eval()
    made, said = fast_networks(model, "fold")
    assert made.student is model
    found = made.for_attack(model)
    assert isinstance(found, FoldedNetwork)
    torch.testing.assert_close(found(X), model(X), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model.get_parameter("linear.weight").mul_(2)
    torch.testing.assert_close(made.for_attack(model)(X), model(X), rtol=1e-4, atol=1e-5)
    other = network(1)
    assert made.for_attack(other) is other
    assert said == []


def test_the_teacher_is_prepared_and_its_passes_are_counted() -> None:
    job = student("fold", methods=("rslad",))
    trainer = Trainer(job, parts_of(job), Path("unused"), teachers={"robust": network(1).eval().requires_grad_(False)})
    assert isinstance(trainer.ctx.teacher("robust"), Prepared)
    assert trainer.counter.counts == {}
    trainer.ctx.teacher("robust", X)
    assert trainer.counter.counts["teacher"]["forward"] == len(X)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits if bool(x.mean() > -1) else -logits


def test_what_cannot_be_folded_is_attacked_as_it_is() -> None:
    model = Branching()
    made, said = fast_networks(model, "fold")
    assert made.for_attack(model) is model
    assert len(said) == 1
    assert said[0].startswith("attacks run on the model as it is: it cannot be traced (")
    assert made.facts["left_out"] == said


# Compilation


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_run_learns_the_same(tmp_path: Path) -> None:
    model = f"{__file__}:tiny"
    runs = [student(*switches, model=model, methods=("natural",)) for switches in (("compile", "fold"), ())]
    for job in runs:
        train(job, parts_of(job), tmp_path, Path("data"))
    ours, theirs = (weights(tmp_path / job.folder) for job in runs)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    facts = description(tmp_path / runs[0].folder)
    assert facts["arithmetic"]["left_out"] == []
    assert facts["passes"] == description(tmp_path / runs[1].folder)["passes"]


def test_without_a_compiler_training_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no C++ compiler found\nand a long trace")

    monkeypatch.setattr(torch, "compile", lambda function, **_: refuse)
    job, progress = student("compile", methods=("natural",)), StopAt(0)
    train(job, parts_of(job), tmp_path, Path("data"), progress)
    sentence = "the model is not compiled: RuntimeError: no C++ compiler found"
    assert sentence in progress.lines
    assert description(tmp_path / job.folder)["arithmetic"]["left_out"] == [sentence]
