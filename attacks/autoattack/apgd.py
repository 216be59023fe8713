"""APGD, Auto-PGD (Croce and Hein, ICML 2020, arXiv:2003.01690, section 3): ascent that sets its own step size.

Maximises: `apgd-ce` cross-entropy; `apgd-t` the targeted difference of logits ratio (their eq. 7),
    -(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2), for the most likely wrong classes t one after the other.
Step: z = P(x + s g), then P(x + 0.75 (z - x) + 0.25 (x - x_previous)), where P projects onto ball and box and g is the
    sign of the gradient (Linf) or the normalised gradient (L2); s starts at 2 eps.
Checkpoints: after 22 % of the steps, then at intervals shorter by 3 % each time, 6 % at the least. There s halves and
    the search goes on from the best point, if the loss rose in at most 75 % of the interval's steps, or if s was not
    halved at the last checkpoint and the best loss has not risen since.
Start: on the surface of the ball, then clipped to the box. Defaults: 100 steps, 9 targets, one run each.
Departures: a sample leaves at the first iterate that fools the model; the first interval compares its first step with
    the start, where the released code compares it with zero; "at most 75 %" is the released code, the paper has "less".
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from attacks.autoattack.stage import Stage, Standing, lengths, values_and_gradient
from attacks.base import predicted
from attacks.draws import normal, uniform
from attacks.objectives import Objective, cross_entropy, targeted_dlr
from attacks.passes import Passes
from attacks.plugins.ranges import Count
from attacks.registry import ATTACKS
from attacks.threat import Norm, ThreatModel

MOMENTUM = 0.75
RHO = 0.75
STRIDE = 2.0


@dataclass
class SearchState:
    """State of the search for each moving sample (M, ...); `rows` are their positions in the batch.

    Attributes:
        low, high: the box within the ball, in Linf.
        here, before: current and previous point.  along: where the loss rises fastest at `here`.
        best, best_along, best_loss: the point of highest loss so far.
        loss: at `here`.  rises: steps that raised it since the last checkpoint.
        step_size: (M, 1, 1, 1).  halved: at the last checkpoint.  mark: best loss at the last checkpoint.
    """

    rows: Tensor
    x: Tensor
    low: Tensor
    high: Tensor
    here: Tensor
    before: Tensor
    along: Tensor
    best: Tensor
    best_along: Tensor
    best_loss: Tensor
    loss: Tensor
    rises: Tensor
    step_size: Tensor
    halved: Tensor
    mark: Tensor

    @classmethod
    def begin(cls, x: Tensor, rows: Tensor, start: Tensor, eps: float, stride: float = STRIDE) -> SearchState:
        """At the start (M, C, H, W) of each sample, before the first evaluation; the first step is stride x eps."""
        worst = x.new_full((len(x),), -torch.inf)
        step_size = x.new_full((len(x), *[1] * (x.ndim - 1)), stride * eps)
        first = torch.ones_like(rows, dtype=torch.bool)  # no sample can have stalled before the first checkpoint
        low, high = (x - eps).clamp_(0, 1), (x + eps).clamp_(0, 1)
        return cls(
            rows, x, low, high, start, start, start, start, start, worst, worst, torch.zeros_like(rows), step_size,
            first, worst,
        )  # fmt: skip

    def keep(self, which: Tensor) -> None:
        """Drop all other samples."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[which])

    def note(self, loss: Tensor, along: Tensor) -> None:
        """Record loss (M,) and direction at the current point."""
        self.rises = self.rises + (loss > self.loss)
        self.best_along = torch.lerp(self.best_along, along, self.improve(loss))
        self.loss, self.along = loss, along

    def improve(self, loss: Tensor) -> Tensor:
        """Keep the current point where its loss (M,) is the highest so far; 1 where that is, else 0, (M, 1, 1, 1)."""
        better = loss > self.best_loss
        share = better.to(self.here).view_as(self.step_size)  # mixing by 1 and 0 is exact, and faster than choosing
        self.best = torch.lerp(self.best, self.here, share)
        self.best_loss = torch.where(better, loss, self.best_loss)
        return share

    def checkpoint(self, interval: int) -> None:
        """Halve the step of what oscillates or has stalled, and send it back to its best point."""
        stalled = ~self.halved & (self.mark >= self.best_loss)
        self.halved = (self.rises <= RHO * interval) | stalled
        self.mark, self.rises = self.best_loss, torch.zeros_like(self.rises)
        wide = self.halved.view_as(self.step_size)
        self.step_size = torch.where(wide, self.step_size / 2, self.step_size)
        self.here = torch.where(wide, self.best, self.here)
        self.along = torch.where(wide, self.best_along, self.along)

    def move(self, norm: Norm, eps: float, momentum: float) -> None:
        """One step: along the direction, then with momentum."""
        target = self._inside((self.along * self.step_size).add_(self.here), norm, eps)
        moved = torch.lerp(self.here, target, momentum)
        moved.add_(self.here - self.before, alpha=1 - momentum)
        self.here, self.before = self._inside(moved, norm, eps), self.here

    def _inside(self, point: Tensor, norm: Norm, eps: float) -> Tensor:
        """The point of ball and box; overwrites its argument."""
        if norm == "linf":
            return torch.clamp(point, self.low, self.high, out=point)
        delta = point.sub_(self.x)
        return delta.mul_((eps / (lengths(delta, norm) + 1e-12)).clamp_(max=1)).add_(self.x).clamp_(0, 1)


def auto_pgd(
    model: nn.Module, standing: Standing, objective: Objective, start: Tensor, *, threat: ThreatModel, steps: int,
    stride: float = STRIDE, rows: Tensor | None = None,
) -> SearchState:  # fmt: skip
    """One run of APGD on what stands: steps + 1 forward and `steps` input-gradient passes per sample, at most.

    Args:
        model: in eval mode.
        standing: samples that fall leave the batch at once.
        objective: what is maximised, `objective(logits, rows) -> (M,)`, rows as positions in the whole batch.
        start: (N, C, H, W) starting points of the whole batch, inside ball and box.
        threat: norm and radius.
        steps: number of steps.
        stride: length of the first step over eps.
        rows: (M,) positions of the standing samples to run on; None means all that stand.

    Returns:
        The samples that stand still, with their best points.
    """
    rows = standing.rows if rows is None else rows
    intervals = checkpoints(steps)
    state = SearchState.begin(standing.x[rows], rows, start[rows], threat.eps, stride)
    if len(rows) == 0:
        return state
    labels = standing.y[rows]
    for step in range(steps + 1):
        here = state.here.detach().requires_grad_(step < steps)
        with torch.set_grad_enabled(step < steps):
            logits = model(here)
        gone = standing.record(state.rows, here.detach(), predicted(logits) != labels)
        last = step == steps or (gone is not None and bool(gone.all()))
        if last:
            loss, grad = objective(logits.detach(), state.rows), here
        else:
            loss, grad = values_and_gradient(objective, logits, state.rows, here)
        if gone is not None:
            state.keep(~gone)
            grad, loss, labels = grad[~gone], loss[~gone], labels[~gone]
        if last:
            state.improve(loss)
            break
        state.note(loss, grad.sign_() if threat.norm == "linf" else grad.div_(lengths(grad, "l2") + 1e-12))
        if step in intervals:
            state.checkpoint(intervals[step])
        state.move(threat.norm, threat.eps, MOMENTUM if step else 1.0)
    return state


def checkpoints(steps: int) -> dict[int, int]:
    """The steps after which step sizes are reviewed, each with the number of steps since the one before."""
    first, least, shorter = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    found: dict[int, int] = {}
    at, interval = first, first
    while at <= steps:
        found[at] = interval
        interval = max(interval - shorter, least)
        at += interval
    return found


def surface(x: Tensor, norm: Norm, eps: float, generator: torch.Generator) -> Tensor:
    """Points on the surface of the ball around each sample of x (N, C, H, W), clipped to the box."""
    direction = uniform(x, generator).mul_(2).sub_(1) if norm == "linf" else normal(x, generator)
    return direction.mul_(eps / (lengths(direction, norm) + 1e-12)).add_(x).clamp_(0, 1)


@ATTACKS.register("apgd-ce")
@dataclass(frozen=True)
class APGDCE(Stage):
    """APGD on cross-entropy.

    Args:
        threat: norm and radius.
        steps: number of steps.
    """

    steps: Count = 100
    name = "apgd-ce"

    def passes(self, num_classes: int) -> Passes:
        """A forward and input gradient per step; one forward for the original, one for the last point."""
        return Passes(forward=self.steps + 2, input_grad=self.steps)

    def search(self, model: nn.Module, standing: Standing, generator: torch.Generator) -> None:
        """One run."""
        start = surface(standing.x, self.threat.norm, self.threat.eps, generator)
        objective = cross_entropy(standing.y)
        auto_pgd(model, standing, objective, start, threat=self.threat, steps=self.steps)


@ATTACKS.register("apgd-t")
@dataclass(frozen=True)
class APGDT(Stage):
    """APGD on the targeted difference of logits ratio, once per target class.

    Args:
        threat: norm and radius.
        steps: number of steps per target.
        targets: number of target classes, the most likely wrong ones first; at most K - 1.
    """

    steps: Count = 100
    targets: Count = 9
    name = "apgd-t"
    min_classes = 4

    def passes(self, num_classes: int) -> Passes:
        """Per target a forward and input gradient per step and one forward more; one for the original."""
        per_target = Passes(forward=self.steps + 1, input_grad=self.steps)
        return per_target * min(self.targets, num_classes - 1) + Passes(forward=1)

    def search(self, model: nn.Module, standing: Standing, generator: torch.Generator) -> None:
        """One run per target."""
        for rank in range(1, min(self.targets, standing.logits.shape[1] - 1) + 1):
            start = surface(standing.x, self.threat.norm, self.threat.eps, generator)
            if bool(standing.left.any()):
                objective = targeted_dlr(standing.y, standing.target(rank))
                auto_pgd(model, standing, objective, start, threat=self.threat, steps=self.steps)
