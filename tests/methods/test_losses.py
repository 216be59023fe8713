"""Parts that the losses of several methods share."""

from __future__ import annotations

import pytest
import torch

from methods.losses import of_class, step_share, tempered
from tests.helpers.method_runs import BATCH
from tests.helpers.stubs import CLASSES, random_logits


def test_what_belongs_to_a_class_is_handed_to_its_samples() -> None:
    values_, y = torch.arange(3, dtype=torch.float64), torch.tensor([2, 0, 2])
    found = of_class(values_, y, torch.float32)
    assert found.dtype == torch.float32 and found.tolist() == [2, 0, 2]


def test_shares_of_a_step_have_mean_one_over_it() -> None:
    weight, step = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64), torch.tensor([0, 1, 1, 2])
    whole = step_share(weight, step, step, torch.float64)
    assert whole.mean().item() == pytest.approx(1.0) and whole.tolist() == pytest.approx([1 / 3, 1, 1, 5 / 3])
    halves = [step_share(weight, part, step, torch.float64) for part in (step[:2], step[2:])]
    assert torch.equal(torch.cat(halves), whole)


def test_tempered_labels_are_as_sharp_as_their_class_asks() -> None:
    logits, tau = random_logits(3), torch.linspace(0.5, 3.0, CLASSES, dtype=torch.float64)
    expected = torch.stack([(row / tau[k]).softmax(0) for row, k in zip(logits, BATCH.y, strict=True)])
    torch.testing.assert_close(tempered(logits, tau, BATCH.y), expected)
