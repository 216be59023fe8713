"""Models and data that cannot be attacked as they are: one sentence each, before any figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from attacks import ThreatModel
from bench.errors import UsageError

torch.manual_seed(0)
LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
X = torch.rand(12, 1, 2, 2, generator=torch.Generator().manual_seed(0))
Y = LINEAR(X).argmax(1)


class Around(nn.Module):
    """The linear model with something before or behind it."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.function = LINEAR, function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.inner, x)


def without_gradient(inner: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(inner(x))


def evaluated(model: Any, x: Tensor = X, y: Tensor = Y, attacks: Any = "pgd") -> float:
    return bench.evaluate(model, x, y, attacks=attacks, threat=ThreatModel("linf", 0.05)).average("pgd")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda inner, x: (inner(x), x), r"model: expected logits \(1, K\), got tuple"),
        (lambda inner, x: {"logits": inner(x)}, r"model: expected logits \(1, K\), got dict"),
        (lambda inner, x: inner(x)[:, :1], r"K at least 2, of 1 image, got \(1, 1\)"),
        (lambda inner, x: inner(x).squeeze(), r"model: expected logits \(1, K\).*got \(3,\)"),
        (lambda inner, x: inner(x).mean(0, keepdim=True), r"of 2 images, got \(1, 3\)"),
        (without_gradient, "model: expected outputs with a gradient to the input, got none"),
        (lambda inner, x: inner((x * 255).to(torch.uint8).float() / 255), "with a gradient to the input, got none"),
        (lambda inner, x: inner(torch.from_numpy(x.detach().numpy().copy())), "with a gradient to the input, got none"),
        (lambda inner, x: inner(x.mul_(0.9)), "model: changes its input in place"),
        (lambda inner, x: inner(x.clamp_(0.2, 0.8)), "model: changes its input in place"),
    ],
)
def test_a_model_that_cannot_be_attacked_is_refused(function: Callable[[nn.Module, Tensor], Any], words: str) -> None:
    before = X.clone()
    with pytest.raises(UsageError, match=words):
        evaluated(Around(function))
    assert torch.equal(X, before), "the caller's images"


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (X.half(), Y, "expected images in float32, got torch.float16"),
        (X.double(), Y, "expected images in float32, got torch.float64"),
        (X[:0], Y[:0], "expected as many labels as images, and at least one, got 0 and 0"),
        (X, Y[:5], "got 5 and 12"),
        (X, 0 * Y + 3, "expected labels from 0 to 2, got 3 to 3"),
        (X, 0 * Y - 1, "expected labels from 0 to 2, got -1 to -1"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(x: Tensor, y: Tensor, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        evaluated(LINEAR, x, y)


def test_what_is_usual_elsewhere_is_taken() -> None:
    plain = evaluated(LINEAR)
    assert evaluated(lambda x: LINEAR(x)) == evaluated(LINEAR, attacks=["pgd"]) == plain
    with pytest.raises(UsageError, match="expected a torch.nn.Module or a function of images, got str"):
        evaluated("a path")


def test_logits_in_float64_are_attacked_by_every_stage() -> None:
    model = Around(lambda inner, x: inner(x).double())
    for attack in ("apgd-ce", "apgd-t", "fab-t", "square"):
        if attack != "apgd-t":  # which needs four classes
            bench.evaluate(model, X, Y, attacks=attack, threat=ThreatModel("linf", 0.05))
