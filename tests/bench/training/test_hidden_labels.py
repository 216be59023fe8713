"""What a run and its table make of labels that its method does not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.report import render
from bench.training.epoch_sums import EpochSums
from methods.base import HIDDEN, Terms
from methods.losses import class_sums
from tests.helpers.trees import Spec, write_run


def test_class_sums_leave_hidden_labels_out_and_are_what_they_were() -> None:
    values = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(50) % 7
    known = torch.arange(50) % 3 > 0
    plain = values @ torch.nn.functional.one_hot(y, 7).double()
    assert torch.equal(class_sums(values, y, 7), plain)
    found = class_sums(values, y.where(known, HIDDEN), 7)
    torch.testing.assert_close(found, class_sums(values[known], y[known], 7))


def test_hidden_samples_count_for_the_loss_and_not_for_the_accuracies() -> None:
    sums, y = EpochSums(3, torch.device("cpu")), torch.tensor([0, HIDDEN, 1, HIDDEN, 1])
    logits = torch.eye(3)[[0, 1, 1, 2, 2]]
    sums.add(Terms(torch.arange(5.0), {"adv": logits}), y)
    row = sums.row()
    assert row["loss"] == 2.0
    assert row["train"]["adv"] == {"accuracy": pytest.approx(2 / 3), "class_accuracy": [1.0, 0.5, None]}


def test_the_table_says_how_many_labels_a_row_saw(tmp_path: Path) -> None:
    for method in ("pgd_at", "flexmatch_at"):
        write_run(tmp_path, Spec(method=method))
    (path,) = tmp_path.glob("*/*/flexmatch_at/*/run.json")
    run = json.loads(path.read_text())
    run["data"]["labelled_size"] = 120
    path.write_text(json.dumps(run))
    both = "1,197 samples, recipe digits, 30 epochs; 1,197 samples, labels of 120 of them, recipe digits, 30 epochs for"
    assert f"Training: {both} flexmatch_at." in render([tmp_path])
