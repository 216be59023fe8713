"""MART, misclassification aware adversarial training (Wang et al., ICLR 2020).

Inner problem:  maximise CE(S(x'), y) over the eps-ball: 10 sign steps of 0.007 at eps 0.031 from x + 0.001 N(0, 1),
                model in eval mode.
Outer problem:  minimise mean CE(S(x'), y) - log(1 - max_{k != y} p_k(x')) + beta (1 - p_y(x)) KL(p(x) || p(x')), KL
                summed over classes. Gradients flow through p(x), the weight 1 - p_y(x) included.
State:          none.
Defaults:       ResNet-18: beta 5, 120 epochs, SGD 0.01 / 0.9 / 3.5e-3, rate x 0.1 from epochs 75, 90, 100 (counted
                from 1), batch 128; WRN-34-10 (recipe "wrn34_10"): beta 6, 90 epochs, SGD 0.1 / 0.9 / 7e-4. [read in
                the released code]
Departures:     none known to us. The guards of the release are kept: 1.0001 and 1e-12 in the logarithm of the margin
                term, 1e-12 in that of p(x'), 1.0000001 in the weight. `margin_weight` and `weighted` take the two
                parts out that the method adds to cross-entropy plus divergence.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from attacks import objectives
from attacks.passes import Passes
from attacks.plugins.ranges import NonNegative, Positive
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import cross_entropy
from methods.recipes import Recipe, digits
from methods.registry import register


@register("mart")
class MART(Method):
    """Adversarial cross-entropy with a margin term, and a divergence that weighs on what is misclassified.

    Args:
        beta: weight of the divergence.
        margin_weight: weight of -log(1 - max_{k != y} p_k(x')); 0 leaves cross-entropy alone.
        weighted: whether a sample's divergence is weighted by 1 - p_y(x).
    """

    recipes = {
        "paper": Recipe(
            epochs=120, lr=0.01, milestones=(74, 89, 99), weight_decay=3.5e-3, augment="crop_flip",
            source="released script, ResNet-18",
        ),
        "wrn34_10": Recipe(
            epochs=90, lr=0.1, milestones=(74, 89), weight_decay=7e-4, augment="crop_flip", settings={"beta": 6.0},
            source="released script, WRN-34-10",
        ),
        "digits": digits(),
    }  # fmt: skip

    def __init__(
        self,
        *,
        beta: NonNegative = 5.0,
        margin_weight: NonNegative = 1.0,
        weighted: bool = True,
        eps: Positive = 0.031,
        step_size: Positive = 0.007,
        **inner: Any,
    ) -> None:
        super().__init__(eps=eps, step_size=step_size, **inner)
        self.beta, self.margin_weight, self.weighted = beta, margin_weight, weighted

    def passes(self) -> Passes:
        """Adversarial training and the clean forward."""
        return Passes(forward=self.steps + 2, input_grad=self.steps, backward=2)

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        """Maximise cross-entropy."""
        return Adversarial(self.ascend(model, batch.x, objectives.cross_entropy(batch.y), ctx, start="gaussian"))

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        """Cross-entropy, margin term and weighted divergence."""
        clean, logits = model(batch.x), model(adv.x)
        loss = mart(clean, logits, batch.y, self.beta, margin_weight=self.margin_weight, weighted=self.weighted)
        return Terms(loss, {"adv": logits, "clean": clean})


def mart(
    clean: Tensor, logits: Tensor, y: Tensor, beta: float, *, margin_weight: float = 1.0, weighted: bool = True
) -> Tensor:
    """The loss of clean and adversarial logits (N, K) with labels y (N,), see `MART`; (N,)."""
    log_p, label, q = clean.log_softmax(1), y[:, None], logits.softmax(1)
    divergence = (log_p.exp() * (log_p - (q + 1e-12).log())).sum(1)
    if weighted:
        divergence = divergence * (1.0000001 - log_p.gather(1, label).squeeze(1).exp())
    rival = q.scatter(1, label, -1.0).amax(1)
    margin = -(1.0001 - rival + 1e-12).log()
    return cross_entropy(logits, y) + margin_weight * margin + beta * divergence
