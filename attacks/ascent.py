"""Projected gradient ascent: the one loop behind FGSM, PGD, CW and every inner problem of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.contexts import frozen, mode
from attacks.objectives import Objective, ObjectiveWithSlope
from attacks.threat import Norm, Start, per_sample, project, starting_point

Observer = Callable[[int, Tensor, Tensor, Tensor], "Tensor | None"]


def ascend(
    model: nn.Module,
    x: Tensor,
    objective: Objective,
    *,
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    start: Start | Tensor,
    norm: Norm = "linf",
    generator: torch.Generator | None = None,
    observe: Observer | None = None,
    bn: Literal["eval", "train"] = "eval",
) -> Tensor:
    """Maximise an objective over the ball of radius eps around each sample (Madry et al. 2018, section 2.1).

    Args:
        model: any module x -> logits; its parameters, gradients and modes are left as they were.
        x: (N, C, H, W) in [0, 1].
        objective: `objective(logits, rows) -> (M,)`, see `attacks.objectives`.
        eps: radius in the units of x, a number or (N,).
        step_size: length of a step, likewise; `observe` may change a tensor in the precision of x on the way.
        steps: each is one forward and one input-gradient pass per moving sample.
        start: see `attacks.threat.starting_point`.
        norm: "linf" (sign steps) or "l2" (normalised gradient steps).
        generator: source of the random start.
        observe: `observe(step, x_adv, logits, rows)` sees each iterate that is evaluated, the one after `step`
            moves. It may return keep (M,) bool, or the positions to keep, int64, which avoids waiting for a GPU: the
            others stop where they are, for good and for free.
        bn: mode of the whole model; in "train" every pass uses and moves batch statistics.

    Returns:
        (N, C, H, W), detached, inside box and ball.

    >>> from attacks.objectives import cross_entropy
    >>> x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    >>> ascend(nn.Flatten(), x, cross_entropy(y), eps=0.25, step_size=0.125, steps=3, start="zero")
    tensor([[[[0.2500, 0.7500]]]])
    """
    x = x.detach()
    x_adv = starting_point(x, start, eps, norm, generator)
    if steps == 0:
        return project(x_adv, x, eps, norm)
    with mode(model, train=bn == "train"), frozen(model), torch.enable_grad():
        return _ascend(model, x_adv, objective, _Ball.around(x, eps, step_size, norm), steps, observe)


def _ascend(
    model: nn.Module, x_adv: Tensor, objective: Objective, ball: _Ball, steps: int, observe: Observer | None
) -> Tensor:
    """Move the points (N, ...) uphill; those that stop are put back at their rows when they do."""
    whole, moving = ball, x_adv
    rows = torch.arange(len(x_adv), device=x_adv.device)
    for step in range(steps):
        here = moving.detach().requires_grad_()
        logits = model(here)
        keep = None if observe is None else _as_positions(observe(step, here.detach(), logits.detach(), rows))
        if keep is None or len(keep) == len(rows):
            moving = ball.step(here, _gradient(objective, logits, rows, here))
            continue
        # A start may lie outside the ball; what stops there must not.
        x_adv = x_adv.index_copy(0, rows, here.detach()) if step else whole.project(x_adv)
        rows = rows[keep]
        if len(rows) == 0:
            return x_adv
        ball = ball.of(keep)
        moving = ball.step(here[keep], _gradient(objective, logits[keep], rows, here)[keep])
    return (moving if ball is whole else x_adv.index_copy(0, rows, moving)).detach()


@dataclass(frozen=True)
class _Ball:
    """Ball and box of samples, and the steps within; in linf their lowest and highest images, found once for all."""

    x: Tensor
    radius: Tensor
    stride: float | Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    @classmethod
    def around(cls, x: Tensor, eps: float | Tensor, step_size: float | Tensor, norm: Norm) -> _Ball:
        radius = per_sample(eps, x)
        bounds = ((x + sign * radius).clamp_(0, 1) for sign in (-1, 1)) if norm == "linf" else ()
        return cls(x, radius, step_size if isinstance(step_size, float) else per_sample(step_size, x), *bounds)

    def of(self, rows: Tensor) -> _Ball:
        values = (self.radius, self.stride, self.low, self.high)
        moving = (v[rows] if isinstance(v, Tensor) and v.ndim else v for v in values)
        return _Ball(self.x[rows], *moving)  # type: ignore[arg-type]

    def project(self, x_adv: Tensor) -> Tensor:
        if self.low is not None and self.high is not None:
            return x_adv.clamp(self.low, self.high)
        return project(x_adv, self.x, self.radius if self.radius.ndim == 0 else self.radius.flatten(), "l2")

    @torch.no_grad()
    def step(self, here: Tensor, grad: Tensor) -> Tensor:
        if self.low is not None and self.high is not None:
            step = grad.sign()
            if isinstance(self.stride, float):
                return torch.add(here, step, alpha=self.stride, out=step).clamp_(self.low, self.high)
            return step.mul_(self.stride).add_(here).clamp_(self.low, self.high)
        length = per_sample(grad.flatten(1).norm(dim=1).clamp_min(1e-12), self.x)
        return self.project(here + self.stride * grad / length)


def _as_positions(keep: Tensor | None) -> Tensor | None:
    """Positions to keep, from a mask or positions."""
    return keep.nonzero().squeeze(1) if keep is not None and keep.dtype == torch.bool else keep


def _gradient(objective: Objective, logits: Tensor, rows: Tensor, here: Tensor) -> Tensor:
    """The gradient of the objective's sum, by its slope where it knows one."""
    if isinstance(objective, ObjectiveWithSlope):
        (grad,) = torch.autograd.grad(logits, here, objective.slope(logits.detach(), rows))
    else:
        (grad,) = torch.autograd.grad(objective(logits, rows).sum(), here)
    return grad
