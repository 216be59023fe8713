"""What makes the attacks of other libraries equal to ours."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from attacks.objectives import cross_entropy, margin
from bench.errors import UsageError
from benchmarks import libraries


def test_two_logits_turn_cross_entropy_into_the_margin() -> None:
    torch.manual_seed(0)
    model, x, y = (
        nn.Linear(6, 4).double(),
        torch.rand(5, 6, dtype=torch.float64, requires_grad=True),
        torch.arange(5) % 4,
    )
    rows = torch.arange(5)
    (wanted,) = torch.autograd.grad(margin(y)(model(x), rows).sum(), x)
    logits = libraries.TwoLogits(model, y)(x)
    (got,) = torch.autograd.grad(cross_entropy(torch.zeros_like(y))(logits, rows).sum(), x)
    factor = torch.sigmoid(margin(y)(model(x), rows))[:, None]
    assert torch.allclose(got, factor * wanted)


def test_a_missing_library_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match="foolbox is not installed.*make benchmark"):
        libraries.library("foolbox")


def test_passes_are_counted_through_the_network_that_is_attacked() -> None:
    model, x, y = nn.Linear(3, 2), torch.rand(7, 3), torch.zeros(7, dtype=torch.int64)

    def perturb(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        here = x.requires_grad_()
        torch.autograd.grad(model(here).sum(), here)
        return model(here)

    assert libraries.counted(model, perturb, x, y) == "2 + 1"
    assert not model._forward_hooks
