"""PGD: projected gradient descent on the loss of the label (Madry et al., ICLR 2018, arXiv:1706.06083).

Maximises: cross-entropy with the true label, by sign steps in Linf and normalised gradient steps in L2.
Defaults: 20 steps of eps / 4 from a uniform start clipped to [0, 1], one restart; the evaluation attack of
    RSLAD, ABSLD, FRL and HAM. `pgd-trades` takes steps of 0.003 at eps 8/255, scaled with eps: the evaluation of
    TRADES, MART and DAFA, and RSLAD's and ABSLD's selection.
Restarts: the worst point of each sample is kept, misclassified before merely higher in loss; a sample that is
    fooled takes no further restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.base import Attack, check_inputs, predicted
from attacks.contexts import mode
from attacks.objectives import Objective, cross_entropy
from attacks.passes import Passes
from attacks.plugins.ranges import Count, Positive
from attacks.plugins.sketch import check_settings
from attacks.registry import ATTACKS
from attacks.threat import Start, ThreatModel, starting_point

TRADES_RATIO = 0.003 * 255 / 8


@ATTACKS.register("pgd")
@dataclass(frozen=True)
class PGD:
    """Projected gradient descent.

    Args:
        threat: norm and radius.
        steps: number of steps.
        step_size: length of a step in the units of x; None means eps / 4.
        start: starting point, see `attacks.threat.starting_point`.
        restarts: independent starts.
    """

    threat: ThreatModel = ThreatModel()
    steps: Count = 20
    step_size: Positive | None = None
    start: Start = "uniform"
    restarts: Count = 1

    revision = 3
    prepared = True
    name: ClassVar[str] = "pgd"
    step_ratio = 0.25

    def __post_init__(self) -> None:
        check_settings(self.name, type(self), vars(self))

    @property
    def stages(self) -> tuple[Attack, ...]:
        """() - one stage, itself."""
        return ()

    def objective(self, y: Tensor) -> Objective:
        """What is maximised: cross-entropy."""
        return cross_entropy(y)

    def passes(self, num_classes: int) -> Passes:
        """Steps x restarts; with restarts, one more forward each to find the worst point."""
        verdicts = self.restarts if self.restarts > 1 else 0
        return Passes(forward=self.steps * self.restarts + verdicts, input_grad=self.steps * self.restarts)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Adversarial inputs like x (N, C, H, W), inside box and ball.

        >>> x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
        >>> PGD(ThreatModel("linf", 0.25), steps=10)(nn.Flatten(), x, y, generator=torch.Generator())
        tensor([[[[0.2500, 0.7500]]]])
        """
        check_inputs(self.name, x, y)
        if self.restarts == 1:
            start = starting_point(x, self.start, self.threat.eps, self.threat.norm, generator)
            return self._single_run(model, x, y, start)
        worst = x.detach().clone()
        fooled = torch.zeros_like(y, dtype=torch.bool)
        loss = torch.full_like(y, -torch.inf, dtype=x.dtype)
        for _ in range(self.restarts):
            start = starting_point(x, self.start, self.threat.eps, self.threat.norm, generator)
            (left,) = torch.where(~fooled)
            if len(left) == 0:
                break
            x_adv = self._single_run(model, x[left], y[left], start[left])
            with mode(model, train=False), torch.no_grad():
                logits = model(x_adv)
            now = self.objective(y[left])(logits, torch.arange(len(left), device=x.device))
            wrong = predicted(logits) != y[left]
            better = left[wrong | (now > loss[left])]
            worst[better] = x_adv[wrong | (now > loss[left])]
            loss[left], fooled[left] = torch.maximum(loss[left], now), wrong
        return worst

    def _single_run(self, model: nn.Module, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        eps = self.threat.eps
        step_size = self.step_ratio * eps if self.step_size is None else self.step_size
        return ascend(
            model, x, self.objective(y),
            eps=eps, step_size=step_size, steps=self.steps, start=start, norm=self.threat.norm,
        )  # fmt: skip


@ATTACKS.register("pgd-trades")
@dataclass(frozen=True)
class PGDTrades(PGD):
    """PGD with the step size of TRADES' evaluation: 0.003 at eps 8/255, in proportion to eps."""

    name = "pgd-trades"
    step_ratio = TRADES_RATIO
