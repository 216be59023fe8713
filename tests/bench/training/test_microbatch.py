"""Micro-batches: where memory runs out a run goes on in parts, and ends where the whole would have."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from bench.core.files import read_json
from bench.core.out_of_memory import BatchLimit, is_out_of_memory
from bench.errors import BenchError, Interrupted, UsageError
from bench.evaluation.evaluate import evaluate_job
from bench.launch.preflight import preflight
from bench.launch.scheduler import Workspace
from bench.models.checkpoints import load_weights
from bench.plan.jobs import Plan, TrainJob
from bench.training.microbatch import concat_adversarials, micro_batch, splits_exactly
from bench.training.trainer import Trainer, train
from methods.base import Adversarial, Batch
from tests.helpers.jobs import (
    StopAt,
    description,
    history,
    job_of,
    parts_of,
    plan,
    run_with_interruptions,
    train_all,
    tree,
)
from tests.helpers.networks import builder

METHODS_IN_PARTS = ("pgd_at", "trades", "absld", "frl", "ham")
SMALL: dict[str, Any] = {"epochs": 2, "train_limit": 200, "limit": 40, "batch_size": 80, "attacks": ("pgd",)}


def run_of(model: str, methods: tuple[str, ...] = METHODS_IN_PARTS, **changes: Any) -> Plan:
    """Two epochs of three steps."""
    return plan(**{"methods": methods, "model": builder(model), **SMALL, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All methods, with memory for any batch and with too little for one."""
    out = tmp_path_factory.mktemp("micro")
    for model in ("roomy", "tight"):
        train_all(run_of(model, overrides={"ham.begin_epoch_index": 1}), out)
    return out


def both(method: str, trained: Path) -> tuple[Path, Path]:
    """The run with memory enough, and the run without."""
    overrides = {"ham.begin_epoch_index": 1}
    roomy, tight = (job_of(run_of(model, overrides=overrides), method) for model in ("roomy", "tight"))
    return trained / roomy.folder, trained / tight.folder


def same(first: Any, second: Any) -> bool:
    """Whether nested figures agree up to rounding."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second or first == pytest.approx(second, rel=1e-6, abs=1e-9))


@pytest.mark.parametrize("method", METHODS_IN_PARTS)
def test_parts_end_in_the_weights_and_the_class_state_of_the_whole(method: str, trained: Path) -> None:
    whole, parts = both(method, trained)
    expected, found = (load_weights(folder / "last.safetensors") for folder in (whole, parts))
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-6, atol=1e-9), name
    for row, other in zip(history(whole), history(parts), strict=True):
        assert other.pop("micro_batch") == 20, "of 80 samples, halved twice"
        assert same(row, other)


@pytest.mark.parametrize("method", METHODS_IN_PARTS)
def test_the_run_says_that_it_went_on_in_parts(method: str, trained: Path) -> None:
    whole, parts = both(method, trained)
    assert description(whole)["micro_batch"] is None
    facts = {"size": 20, "asked": None, "out_of_memory_at": [0, 0], "exact": True}
    assert description(parts)["micro_batch"] == facts
    assert description(parts)["processes"] == {"count": 1, "batch_norm": None}


def test_what_was_halved_is_remembered_and_a_stopped_run_ends_in_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    found = run_of("tight", ("ham",), overrides={"ham.begin_epoch_index": 1})
    job, progress = found.train[0], StopAt(3)
    with pytest.raises(Interrupted):
        train(job, parts_of(job), tmp_path, Path("data"), progress)
    said = [f"out of memory with {n} samples at once: going on with {n // 2}" for n in (80, 40)]
    assert [line for line in progress.lines if "memory" in line] == said
    again = StopAt(0)
    train(job, parts_of(job), tmp_path, Path("data"), again)
    assert "resumed at epoch 0, step 2" in again.lines
    assert not any("memory" in line for line in again.lines), "it does not run out a second time"
    assert tree(tmp_path / job.folder) == tree(trained / job.folder)


def test_stopped_after_every_step_a_run_in_parts_ends_in_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    job = job_of(run_of("tight"), "pgd_at")
    run_with_interruptions(lambda progress: train(job, parts_of(job), tmp_path, Path("data"), progress))
    assert tree(tmp_path / job.folder) == tree(trained / job.folder)


# By hand


def test_a_size_given_by_hand_has_a_key_of_its_own_and_needs_no_failure(trained: Path, tmp_path: Path) -> None:
    (job,) = run_of("roomy", ("pgd_at",), micro_batch=16).train
    usual = job_of(run_of("roomy"), "pgd_at")
    assert job.key != usual.key
    train(job, parts_of(job), tmp_path, Path("data"))
    facts = {"size": 16, "asked": 16, "out_of_memory_at": None, "exact": True}
    assert description(tmp_path / job.folder)["micro_batch"] == facts
    weights = load_weights(trained / usual.folder / "last.safetensors")
    for name, tensor in load_weights(tmp_path / job.folder / "last.safetensors").items():
        assert torch.allclose(tensor, weights[name], rtol=1e-6, atol=1e-9)


def test_a_size_that_cuts_nothing_is_none() -> None:
    usual, same_size = (run_of("roomy", ("trades",), micro_batch=size).train[0] for size in (None, 80))
    assert usual.key == same_size.key
    assert same_size.micro_batch is None


def test_with_batch_norm_a_run_in_parts_is_marked(tmp_path: Path) -> None:
    (job,) = run_of("tight_normed", ("trades",), epochs=1).train
    train(job, parts_of(job), tmp_path, Path("data"))
    facts = description(tmp_path / job.folder)["micro_batch"]
    assert (facts["size"], facts["exact"]) == (20, False)
    assert history(tmp_path / job.folder)[0]["micro_batch"] == 20


def test_a_state_with_one_cut_for_all_processes_is_gone_on_with(trained: Path, tmp_path: Path) -> None:
    """Its form before each process kept its own."""
    job = job_of(run_of("tight", overrides={"ham.begin_epoch_index": 1}), "pgd_at")
    shutil.copytree(trained / job.folder, tmp_path / job.folder)
    state = torch.load(tmp_path / job.folder / "state.pt", weights_only=True)
    position = json.loads(state["position"])
    position["cut"] = position.pop("cuts")[0]
    older = {"tensors": state["tensors"], "position": json.dumps(position)}  # without a checksum too
    torch.save(older, tmp_path / job.folder / "state.pt")
    trainer = Trainer(job, parts_of(job), tmp_path / job.folder, teachers={})
    trainer.run()
    facts = description(tmp_path / job.folder)["micro_batch"]
    assert (trainer.limit.size, facts["size"], facts["out_of_memory_at"]) == (20, 20, [0, 0])


# What cannot be


def refused(job: TrainJob, tmp_path: Path) -> str:
    with pytest.raises(BenchError) as caught:
        train(job, parts_of(job), tmp_path, Path("data"))
    return str(caught.value)


def test_a_device_that_holds_too_little_is_named(tmp_path: Path) -> None:
    (job,) = run_of("full", ("pgd_at",)).train
    assert refused(job, tmp_path) == (
        "pgd_at seed 0: out of memory with 4 samples at once, and fewer cannot be tried; "
        "take a smaller model or a device with more memory"
    )


def test_batch_norm_needs_several_samples(tmp_path: Path) -> None:
    found = run_of("normed", ("pgd_at",), micro_batch=3)
    sentence = "pgd_at seed 0: expected --micro-batch of at least 4 with BatchNorm, got 3"
    assert refused(found.train[0], tmp_path) == sentence
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        preflight(found, Workspace(tmp_path, Path("data")))


def test_a_method_that_couples_its_batch_keeps_it_whole(tmp_path: Path) -> None:
    coupled = {"ham.reweight": "l1max", "ham.begin_epoch_index": 1}
    (job,) = run_of("tight", ("ham",), overrides=coupled).train
    assert refused(job, tmp_path) == (
        f"{job.title}: out of memory with 80 samples at once; ham couples the samples of a batch, "
        "which must stay whole: take a smaller --batch-size"
    )
    found = run_of("roomy", ("ham",), micro_batch=16, overrides=coupled)
    sentence = (
        f"{found.train[0].title}: ham couples the samples of a batch, which must stay whole: "
        "take a smaller --batch-size, and leave out --micro-batch"
    )
    assert refused(found.train[0], tmp_path) == sentence
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        preflight(found, Workspace(tmp_path, Path("data")))


def test_a_method_that_drops_samples_does_not_share_batch_norm(tmp_path: Path) -> None:
    found = run_of("roomy", ("ham",))
    shared = replace(found, train=tuple(replace(job, processes=2, sync_bn=True) for job in found.train))
    with pytest.raises(UsageError, match=r"ham.*may leave a process without samples.*leave out --sync-bn"):
        preflight(shared, Workspace(tmp_path, Path("data")))


def test_another_error_is_no_lack_of_memory() -> None:
    def work() -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        BatchLimit("x").retry_smaller(work, 8)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert is_out_of_memory(RuntimeError("FIND was unable to find an engine to execute this computation"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("module", [nn.BatchNorm1d(2), nn.Dropout(), StochasticDepth(0.5, "row")], ids=repr)
def test_parts_are_exact_without_what_looks_at_the_batch_or_draws(module: nn.Module) -> None:
    assert splits_exactly(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    assert not splits_exactly(nn.Sequential(nn.Linear(2, 2), module))


# Slices


@pytest.mark.parametrize(
    ("n", "size", "spans"),
    [
        (0, 4, []), (3, None, [(0, 3)]), (3, 8, [(0, 3)]), (5, 4, [(0, 2), (2, 5)]),
        (9, 4, [(0, 3), (3, 6), (6, 9)]), (2, 1, [(0, 1), (1, 2)]),
    ],
)  # fmt: skip
def test_parts_are_even_and_cover_everything(n: int, size: int | None, spans: list[tuple[int, int]]) -> None:
    assert BatchLimit("x", size).spans(n) == spans


def test_no_part_of_four_or_more_is_a_single_sample() -> None:
    for size in range(4, 40):
        for n in range(2, 200):
            lengths = [last - first for first, last in BatchLimit("x", size).spans(n)]
            assert (sum(lengths), max(lengths) <= size, min(lengths) >= 2) == (n, True, True)


def test_parts_of_an_attack_that_left_out_samples_hold_the_others_alone() -> None:
    y = torch.arange(6)
    batch = Batch(y.double()[:, None], y, 10 + y, y)
    found = [
        Adversarial(torch.tensor([[0.5], [2.5]]), torch.tensor([0, 2]), {"weight": torch.tensor([1.0, 2.0])}),
        Adversarial(torch.tensor([[5.5]]), torch.tensor([2]), {"weight": torch.tensor([3.0])}),
    ]
    adv = concat_adversarials(found, [(0, 3), (3, 6)])
    assert adv.rows is not None
    assert (adv.rows.tolist(), adv.of(y).tolist()) == ([0, 2, 5], [0, 2, 5])
    part, kept = micro_batch(batch, adv, 1, 3)
    assert (part.y.tolist(), part.index.tolist(), part.step_labels.tolist()) == ([2, 5], [12, 15], y.tolist())
    assert kept.of(part.y).tolist() == [2, 5]
    assert (kept.x.flatten().tolist(), kept.extras["weight"].tolist()) == ([2.5, 5.5], [2.0, 3.0])


# Evaluations


@pytest.mark.parametrize("attack", ["pgd", "square"])
def test_an_evaluation_in_parts_has_the_verdicts_of_the_whole(attack: str, trained: Path, tmp_path: Path) -> None:
    """The same weights; the samples of a block draw what they would draw in the whole."""
    settings = {"overrides": {"square.queries": 30}} if attack == "square" else {}
    outcomes: list[bytes] = []
    for model in ("roomy", "tight"):
        found = run_of(model, ("pgd_at",), attacks=(attack,), **settings)
        job, whole = found.evaluate[0], job_of(run_of("roomy"), "pgd_at")
        (tmp_path / job.run).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / job.run).mkdir()
        for name in ("last.safetensors", "run.json"):
            (tmp_path / job.run / name).write_bytes((trained / whole.folder / name).read_bytes())
        progress = StopAt(0)
        folder = evaluate_job(job, parts_of(found.train[0]), tmp_path, progress)
        facts = read_json(folder / "eval.json")
        assert facts.get("micro_batch") == (None if model == "roomy" else 20)
        assert any("out of memory with 40 samples" in line for line in progress.lines) == (model == "tight")
        outcomes.append((folder / "outcomes.parquet").read_bytes())
    assert outcomes[0] == outcomes[1]
