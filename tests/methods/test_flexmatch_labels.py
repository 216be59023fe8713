"""Robust self-training: which labels are visible, and that a hidden one is never read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.conformance.loop import Loop
from bench.training.trainer import Trainer
from methods.flexmatch_at import FlexMatchAT, stratified
from tests.helpers.jobs import description, history, job_of, parts_of, small, tree
from tests.helpers.method_runs import fixed_labels


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_the_visible_share_is_stratified_and_at_least_one_of_each_class(fraction: float) -> None:
    y = torch.tensor(np.random.default_rng(0).choice(5, 400, p=[0.5, 0.2, 0.2, 0.08, 0.02]))
    chosen = stratified(y, fraction, 0)
    for k in range(5):
        size = int((y == k).sum())
        assert int(chosen[y == k].sum()) == max(1, round(fraction * size))
    assert (stratified(y, 0.6, 0) | ~chosen).all() or fraction > 0.6, "a smaller share is part of a larger one"
    assert fraction in (0.01, 1.0) or not torch.equal(chosen, stratified(y, fraction, 1))


def test_the_state_that_a_resumed_run_needs_is_stored() -> None:
    loop = Loop(FlexMatchAT(num_classes=3, steps=2, labelled_fraction=0.4, tau=0.4), 3).run(stop=(1, 1))
    stored = loop.tensors()
    needed = {"latest", "moved", "sigma", "counts", "used_share", "average.0.weight", "average.1.running_mean"}
    assert {f"method/{name}" for name in needed} <= set(stored)
    assert stored["method/moved"].any() and stored["method/sigma"].any() and stored["method/counts"].any()


RUN: dict[str, Any] = {
    "methods": ("flexmatch_at",), "overrides": {"flexmatch_at.tau": 0.2}, "epochs": 2, "train_limit": 200,
}  # fmt: skip


def trained(folder: Path, order: Tensor | None = None, visible: Tensor | None = None) -> dict[str, str]:
    """Hashes of the files of a run of two epochs in which some labels were exchanged."""
    job = job_of(small(**RUN), "flexmatch_at")
    parts = parts_of(job)
    split = stratified(parts.train.y, 0.1, 0) if visible is None else visible
    if order is not None:
        parts = replace(parts, train=replace(parts.train, y=parts.train.y[order]))
    folder.mkdir()
    with fixed_labels(split):
        Trainer(job, parts, folder, teachers={}).run()
    files = tree(folder)
    del files["run.json"], files["done"]  # the hash of the data covers the labels, and `done` has that of run.json
    return files


def exchanged(rows: Tensor, n: int) -> Tensor:
    """An order of n samples in which these have changed places."""
    order = torch.arange(n)
    order[rows] = rows.roll(7)
    return order


def test_exchanging_hidden_labels_changes_nothing_bit_for_bit(tmp_path: Path) -> None:
    y = parts_of(job_of(small(**RUN), "flexmatch_at")).train.y
    split = stratified(y, 0.1, 0)
    hidden, visible = ((~split).nonzero().flatten(), split.nonzero().flatten())
    assert (y[exchanged(hidden, len(y))] != y).float().mean() > 0.5
    plain = trained(tmp_path / "plain")
    assert {"last.safetensors", "history.jsonl", "state.pt"} <= set(plain)
    assert trained(tmp_path / "hidden", exchanged(hidden, len(y)), split) == plain
    other = trained(tmp_path / "visible", exchanged(visible, len(y)), split)
    assert other["last.safetensors"] != plain["last.safetensors"]


def test_the_passes_of_the_average_are_counted_with_those_of_the_student(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    counted = description(tmp_path / "run")["passes"]["student"]
    per_sample = FlexMatchAT().passes()
    assert counted["forward"] == 2 * 200 * per_sample.forward and counted["backward"] == 2 * 200 * per_sample.backward


def test_a_run_says_how_many_labels_it_saw_and_records_its_thresholds(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    y = parts_of(job_of(small(**RUN), "flexmatch_at")).train.y
    told = int(stratified(y, 0.1, 0).sum())
    assert description(tmp_path / "run")["data"]["labelled_size"] == told < len(y) // 8
    for row in history(tmp_path / "run"):
        assert set(row["state"]) == {"threshold", "used_share"}
        assert len(row["state"]["threshold"]) == 10 and min(row["state"]["threshold"]) >= 0
        right = np.array(row["train"]["adv"]["class_accuracy"], dtype=float)
        counts = torch.bincount(y[stratified(y, 0.1, 0)], minlength=10).numpy()
        np.testing.assert_allclose(right * counts, np.round(right * counts), atol=1e-9)
    assert any(max(row["state"]["threshold"]) > 0 for row in history(tmp_path / "run"))
