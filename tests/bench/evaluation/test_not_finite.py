"""Outputs that are NaN or infinite: never a class, never robust, counted, and marked."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bench
from attacks import ThreatModel, objectives
from attacks.base import NO_CLASS, predicted
from bench.errors import BenchError
from bench.results.outcomes import Outcomes

# A network with such outputs has no faster version that could be compared with it.
pytestmark = pytest.mark.filterwarnings("ignore:the model is searched as it is:UserWarning")
INF, NAN = float("inf"), float("nan")
THREAT = ThreatModel("linf", 0.1)


@pytest.mark.parametrize(
    ("logits", "wanted"),
    [
        ([1.0, 2.0, 0.0], 1),
        ([NAN, NAN, NAN], NO_CLASS),
        ([1.0, NAN, 0.0], NO_CLASS),
        ([1.0, INF, 0.0], NO_CLASS),
        ([-INF, -INF, -INF], NO_CLASS),
        ([-INF, 2.0, -INF], 1),
    ],
)
def test_an_output_that_is_not_finite_is_no_class(logits: list[float], wanted: int) -> None:
    assert predicted(torch.tensor([logits])).tolist() == [wanted]


class Breaks(nn.Module):
    """A linear model of three classes whose outputs are spoilt where `where` holds."""

    def __init__(self, where: Callable[[Tensor], Tensor], value: float) -> None:
        super().__init__()
        self.where, self.value = where, value
        self.linear = nn.Linear(4, 4)
        with torch.no_grad():
            self.linear.weight.copy_(5 * torch.eye(4))
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return torch.where(self.where(x)[:, None], torch.full_like(logits, self.value), logits)


def data() -> tuple[Tensor, Tensor]:
    """Forty images of four pixels, each with its class's pixel at a quarter-grid value above the others."""
    y = torch.arange(40) % 4
    x = torch.full((40, 4), 0.25)
    x[torch.arange(40), y] = 0.75
    return x.view(40, 1, 2, 2), y


def off_grid(x: Tensor) -> Tensor:
    """Whether an image has a value that none of `data` has: true of what an attack has moved."""
    return ((x * 4 - (x * 4).round()).abs() > 1e-3).flatten(1).any(1)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("attack", ["fgsm", "pgd", "cw", "apgd-ce", "apgd-t", "square", "autoattack"])
def test_what_an_attack_breaks_is_not_robust_in_any_class(attack: str, value: float) -> None:
    x, y = data()
    outcomes = bench.evaluate(Breaks(off_grid, value), x, y, attacks=[attack], threat=THREAT)
    assert outcomes.average() == 1
    assert outcomes.by_class(attack).tolist() == [0, 0, 0, 0]
    assert set(outcomes.verdict(attack).prediction) == {NO_CLASS}


def test_clean_outputs_that_are_not_finite_are_wrong_and_the_model_is_unreliable() -> None:
    x, y = data()
    model = Breaks(lambda x: x.flatten(1)[:, 0] > 0.5, NAN)
    outcomes = bench.evaluate(model, x, y, attacks=["fgsm"], threat=ThreatModel("linf", 0.01))
    assert outcomes.by_class().tolist() == [0, 1, 1, 1]
    examination = bench.examine(model, x, y, threat=ThreatModel("linf", 0.01), outcomes=outcomes)
    assert examination.mark == "unreliable"
    assert any("20 of 80 outputs were NaN or infinite" in reason for reason in examination.reasons)


def test_stored_predictions_are_a_class_or_none() -> None:
    index, label, clean = np.arange(2), np.array([0, 1]), np.array([0, NO_CLASS])
    assert Outcomes(index, label, clean, attacks={}, robust={}, num_classes=2).average() == 0.5
    with pytest.raises(BenchError, match=r"clean: expected classes in -1\.\.1, got -2 to 0"):
        Outcomes(index, label, clean - np.array([0, 1]), attacks={}, robust={}, num_classes=2)


def test_classes_that_are_ruled_out_leave_ratios_of_logits_their_slope() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5, -INF, 0.2]], requires_grad=True)
    rows, y, target = torch.arange(1), torch.tensor([0]), torch.tensor([1])
    for objective in (objectives.dlr(y), objectives.targeted_dlr(y, target)):
        value = objective(logits, rows)
        (slope,) = torch.autograd.grad(value.sum(), logits)
        assert value.isfinite().all() and slope.isfinite().all() and slope.abs().sum() > 0 and slope[0, 3] == 0
    value, slope = objectives.targeted_dlr(y, target).with_slope(logits.detach(), rows)
    assert value.isfinite().all() and slope.isfinite().all() and slope[0, 3] == 0


def test_a_ruled_out_class_leaves_attacks_what_they_find() -> None:
    x, y = data()
    keep = y != 3

    class RulesOut(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value, self.inner = value, Breaks(lambda x: torch.zeros(len(x), dtype=torch.bool), 0)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.inner(x).clone()
            logits[:, 3] = self.value
            return logits

    found = [
        bench.evaluate(RulesOut(value), x[keep], y[keep], attacks=["apgd-t"], threat=ThreatModel("linf", 0.26)).average(
            "apgd-t"
        )
        for value in (-1e4, -INF)
    ]
    assert found == [0, 0]
