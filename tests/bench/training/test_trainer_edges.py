"""What a training passes over and refuses, and the order in which it calls a method."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core import files
from bench.core.progress import Progress
from bench.data.splits import Part, Parts, load
from bench.errors import BenchError
from bench.launch.scheduler import Workspace
from bench.launch.worker import run_job
from bench.models.builders import build
from bench.models.checkpoints import save_weights
from bench.training.trainer import train
from methods.base import Adversarial, Batch, Context, Terms
from methods.pgd_at import PGDAT
from methods.registry import METHODS
from tests.helpers.jobs import (
    description,
    history,
    isolated_registries,
    job_of,
    parts_of,
    small,
    train_all,
)


@pytest.mark.parametrize("size", [129, 257])
def test_a_last_batch_of_one_sample_is_passed_over(size: int, tmp_path: Path) -> None:
    """BatchNorm has no statistics of one sample; the other steps are made."""
    found = small(methods=("pgd_at",), epochs=2, train_limit=size)
    train_all(found, tmp_path)
    folder = tmp_path / found.train[0].folder
    assert [row["skipped_steps"] for row in history(folder)] == [1, 1]
    assert description(folder)["passes"]["student"]["backward"] == 2 * (size - 1)


def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    (job,) = small(methods=("natural",), overrides={"natural.recipe.lr": 1e30}).train
    outcome, sentence = run_job(job, Workspace(tmp_path, Path("data")), Progress())
    assert outcome == "failed"
    assert sentence is not None
    assert sentence.startswith("natural (recipe.lr=1e+30) seed 0: the loss is not finite in epoch 0, by step 3; lower")
    assert "--set natural.recipe.lr=" in sentence
    assert files.failure(tmp_path / job.folder) == sentence
    assert not files.is_done(tmp_path / job.folder)


def test_ham_that_would_never_start_mining_is_refused(tmp_path: Path) -> None:
    found = small(methods=("ham",), overrides={"ham.begin_epoch_index": 3})
    with pytest.raises(BenchError, match=r"ham: mining begins in epoch 3 and the run has 3; train longer or lower ham"):
        train_all(found, tmp_path)


def test_a_setting_the_method_refuses_is_named_with_the_job(tmp_path: Path) -> None:
    found = small(methods=("ham",), overrides={"ham.mining_step": 10})
    with pytest.raises(BenchError, match=r"^ham \(mining_step=10\) seed 0: ham: expected mining_step from 0 to"):
        train_all(found, tmp_path)


class Watched(PGDAT):
    """PGD-AT that notes in which order its hooks are called."""

    calls: list[str] = []

    def setup(self, model: nn.Module, ctx: Context) -> None:
        self.calls.append(f"setup {ctx.steps}")

    def begin_epoch(self, model: nn.Module, ctx: Context) -> None:
        self.calls.append(f"begin {ctx.epoch}")

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        self.calls.append(f"perturb {ctx.step}")
        keep = torch.arange(len(batch.y))[: 1 if ctx.step == 1 else None]
        return Adversarial(batch.x[keep], rows=keep)

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        self.calls.append("loss" if model.training else "loss in eval mode")
        return super().loss(model, replace(batch, y=adv.of(batch.y)), adv, ctx)

    def observe(self, batch: Batch, adv: Adversarial, terms: Terms, ctx: Context) -> None:
        self.calls.append(f"observe {len(terms.loss)}")

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        self.calls.append("after")

    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        self.calls.append(f"end {ctx.epoch}")


def test_hooks_come_in_the_contracts_order_and_one_row_makes_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with isolated_registries(monkeypatch):
        METHODS.register("watched")(Watched)
        found = small(methods=("watched",), epochs=1)
        train_all(found, tmp_path)
    step = ["loss", "observe {}", "after"]
    assert Watched.calls == [
        "setup 3", "begin 0",
        "perturb 0", *(call.format(128) for call in step),
        "perturb 1", "observe 0", "after",
        "perturb 2", *(call.format(44) for call in step),
        "end 0",
    ]  # fmt: skip
    assert history(tmp_path / found.train[0].folder)[0]["skipped_steps"] == 1


class Constant(nn.Module):
    """Logits that do not depend on the input."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize(
    ("logits", "sentence"),
    [
        (torch.eye(10)[0], r"teacher t: expected a clean accuracy of at least 20% on held-out digits, got 1\d\."),
        (torch.ones(7), r"teacher t: expected logits \(N, 10\) for digits, got \(100, 7\); choose one trained on this"),
        (torch.full((10,), math.nan), r"teacher t: expected finite outputs on held-out digits, got NaN on 100 of "),
        (torch.full((10,), math.inf), r"teacher t: expected finite outputs .*, got infinity on 100 of 100 images; "),
    ],
)  # fmt: skip
def test_a_teacher_that_cannot_be_one_is_refused(logits: Tensor, sentence: str) -> None:
    from bench.models.teachers import check_model

    with pytest.raises(BenchError, match=f"^{sentence}"):
        check_model(Constant(logits), load("digits"), "teacher t")


def test_a_teacher_is_looked_at_once_and_a_chunk_at_a_time(digits: Parts) -> None:
    from bench.models.teachers import check_model

    model, seen = Constant(torch.eye(10)[0]), list[int]()
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    zeros = torch.zeros_like(digits.train.y)
    check_model(model, replace(digits, select=Part(digits.train.x, zeros, digits.train.index)), "teacher t")
    assert seen == [100] * 5


@pytest.mark.parametrize(("classes", "least"), [(2, "60%"), (3, "43.3%"), (10, "20%"), (1000, "0.2%")])
def test_a_good_model_of_few_classes_is_above_chance(classes: int, least: str, digits: Parts) -> None:
    """Twice chance, or a tenth above it: a model that is right on three of four of two classes is a model."""
    from bench.models.teachers import check_model

    one_hot = Constant(torch.eye(classes)[0])

    def with_share(right: float) -> Parts:
        y = torch.ones(1000, dtype=torch.int64)
        y[torch.randperm(1000, generator=torch.Generator().manual_seed(0))[: round(1000 * right)]] = 0
        part = Part(digits.train.x[:1].expand(1000, -1, -1, -1), y, torch.arange(1000))
        return replace(digits, select=part, class_names=tuple(map(str, range(classes))))

    share = float(least.rstrip("%")) / 100
    check_model(one_hot, with_share(min(1.0, share + 0.15)), "t")
    with pytest.raises(BenchError, match=f"expected a clean accuracy of at least {least} on held-out digits"):
        check_model(one_hot, with_share(0.0 if classes == 1000 else share - 0.15), "t")


def test_the_teachers_of_a_job_are_judged_on_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []

    def to(module: nn.Module, device: Any) -> nn.Module:
        moved.append(device)
        return module

    def check(model: nn.Module, *more: Any) -> None:
        raise BenchError(f"judged on {moved[-1]}")

    save_weights(tmp_path / "t.safetensors", build("small_cnn", 10, 1, 8, seed=0).state_dict())
    source = {"file": str(tmp_path / "t.safetensors"), "model": "small_cnn", "label": "t"}
    job = replace(job_of(small(methods=("rslad",)), "rslad"), device="cuda:1", teachers={"robust": source})
    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr("bench.models.teachers.check_model", check)
    with pytest.raises(BenchError, match="judged on cuda:1"):
        train(job, parts_of(job), tmp_path, Path("data"))
