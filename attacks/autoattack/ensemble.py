"""AutoAttack, standard version (Croce and Hein, ICML 2020, arXiv:2003.01690): four attacks, each on what still stands.

Stages: APGD on cross-entropy (100 steps), targeted APGD on the difference of logits ratio (100 steps, 9 targets),
    targeted FAB (100 steps, 9 targets), Square (5,000 queries).
Implementation: this project's own; `autoattack-reference` runs the released one, and benchmarks/parity.py holds the two
    against each other.
Departures: with K < 10 classes the targeted stages take K - 1 targets; below four classes targeted APGD is undefined
    and left out, which the result records. What each stage does differently stands in its own file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.autoattack.apgd import APGDCE, APGDT
from attacks.autoattack.fab import FABT
from attacks.autoattack.square import Square
from attacks.autoattack.stage import Stage
from attacks.base import check_inputs, predicted
from attacks.contexts import mode
from attacks.passes import Passes
from attacks.plugins.ranges import Count
from attacks.plugins.sketch import check_settings
from attacks.registry import ATTACKS
from attacks.threat import ThreatModel


@ATTACKS.register("autoattack")
@dataclass(frozen=True)
class AutoAttack:
    """The standard ensemble: apgd-ce, apgd-t, fab-t, square.

    Args:
        threat: norm and radius.
        steps: steps of the gradient stages.
        targets: targets of the targeted stages, at most K - 1.
        queries: queries of Square.
    """

    threat: ThreatModel = ThreatModel()
    steps: Count = 100
    targets: Count = 9
    queries: Count = 5000

    revision = 3
    implementation = "native"
    name = "autoattack"

    def __post_init__(self) -> None:
        check_settings(self.name, type(self), vars(self))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The four members, in order."""
        return (
            APGDCE(self.threat, self.steps),
            APGDT(self.threat, self.steps, self.targets),
            FABT(self.threat, self.steps, self.targets),
            Square(self.threat, self.queries),
        )

    def passes(self, num_classes: int) -> Passes:
        """Those of a sample that every stage attacks in full; each stage takes a forward before and a verdict after."""
        targets, stages = min(self.targets, num_classes - 1), 4 if num_classes >= 4 else 3
        apgd = Passes(forward=self.steps + 1, input_grad=self.steps) * (1 + targets * (stages == 4))
        fab = Passes(forward=2 * self.steps, input_grad=self.steps) * targets
        square = Passes(forward=self.queries + 1)
        return apgd + fab + square + Passes(forward=1 + 2 * stages)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Adversarial inputs like x (N, C, H, W): the first stage's that fools the model, else x."""
        check_inputs(self.name, x, y)
        x_adv = x.detach().clone()
        if len(x) == 0:
            return x_adv
        with mode(model, train=False), torch.no_grad():
            logits = model(x)
            left = torch.where(predicted(logits) == y)[0]
            for stage in self.stages:
                if len(left) and stage.left_out(logits.shape[1]) is None:
                    x_adv[left] = stage(model, x[left], y[left], generator=generator)
                    left = left[predicted(model(x_adv[left])) == y[left]]
        return x_adv
