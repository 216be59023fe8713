"""Projected gradient ascent: the one loop behind FGSM, PGD, CW and every inner problem of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.objectives import Objective
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
        step_size: length of a step, likewise.
        steps: each is one forward and one input-gradient pass per moving sample.
        start: see `attacks.threat.starting_point`.
        norm: "linf" (sign steps) or "l2" (normalised gradient steps).
        generator: source of the random start.
        observe: `observe(step, x_adv, logits, rows)` sees each iterate that is evaluated, the one after `step`
            moves. It may return keep (M,) bool, or the positions to keep, int64, which saves a GPU from being waited
            for: the others stop where they are, for good and for free.
        bn: mode of the whole model; in "train" every pass uses and moves batch statistics.

    Returns:
        (N, C, H, W), detached, inside box and ball.
    """
    x = x.detach()
    x_adv = starting_point(x, start, eps, norm, generator)
    if steps == 0:
        return project(x_adv, x, eps, norm)
    stride, ball = per_sample(step_size, x), _Ball.around(x, eps, norm)
    rows, everything = torch.arange(len(x), device=x.device), len(x)
    with mode(model, train=bn == "train"), frozen(model), torch.enable_grad():
        for step in range(steps):
            here = (x_adv if len(rows) == everything else x_adv[rows]).detach().requires_grad_()
            here, grad, kept = _gradient(model, here, objective, rows, step, observe)
            if step == 0 and len(kept) < len(rows):  # a start may lie outside the ball; what stops there must not
                x_adv = project(x_adv, x, eps, norm)
            rows = kept
            if len(rows) == 0:
                break
            if len(rows) == everything:
                x_adv = _step(here, grad, stride, ball)
            else:
                x_adv = x_adv.index_copy(0, rows, _step(here, grad, _of(stride, rows), ball.of(rows)))
    return x_adv.detach()


@contextmanager
def mode(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Put a whole model in train or eval mode, and restore the mode of every submodule afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.train(train)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter of a model asks for a gradient meanwhile, so that a pass keeps nothing for the sake of one."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
    for parameter in asking:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad = True


@dataclass(frozen=True)
class _Ball:
    """Ball and box of a batch; in linf the lowest and highest image of each sample, found once for all steps."""

    x: Tensor
    radius: Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    @classmethod
    def around(cls, x: Tensor, eps: float | Tensor, norm: Norm) -> _Ball:
        radius = per_sample(eps, x)
        return cls(x, radius, *(((x + s * radius).clamp_(0, 1) for s in (-1, 1)) if norm == "linf" else ()))

    def of(self, rows: Tensor) -> _Ball:
        bounds = (None if bound is None else bound[rows] for bound in (self.low, self.high))
        return _Ball(self.x[rows], _of(self.radius, rows), *bounds)


def _gradient(
    model: nn.Module, here: Tensor, objective: Objective, rows: Tensor, step: int, observe: Observer | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Iterates, gradients and rows of the samples that go on after the observer has seen them."""
    logits = model(here)
    keep = observe(step, here.detach(), logits.detach(), rows) if observe is not None else None
    if keep is not None and keep.dtype == torch.bool:
        keep = keep.nonzero().squeeze(1)
    if keep is None or len(keep) == len(rows):
        return here, _uphill(objective, logits, rows, here), rows
    rows = rows[keep]
    if len(rows) == 0:
        return here[keep], here[keep], rows
    return here[keep], _uphill(objective, logits[keep], rows, here)[keep], rows


def _uphill(objective: Objective, logits: Tensor, rows: Tensor, here: Tensor) -> Tensor:
    """The gradient of the objective's sum, by its derivative in closed form where it brings one."""
    derivative = getattr(objective, "derivative", None)
    if derivative is None:
        (grad,) = torch.autograd.grad(objective(logits, rows).sum(), here)
    else:
        (grad,) = torch.autograd.grad(logits, here, derivative(logits.detach(), rows))
    return grad


def _of(value: Tensor, rows: Tensor) -> Tensor:
    return value if value.ndim == 0 else value[rows]


@torch.no_grad()
def _step(here: Tensor, grad: Tensor, stride: Tensor, ball: _Ball) -> Tensor:
    if ball.low is not None and ball.high is not None:
        return grad.sign().mul_(stride).add_(here).clamp_(ball.low, ball.high)
    length = per_sample(grad.flatten(1).norm(dim=1).clamp_min(1e-12), ball.x)
    radius = ball.radius if ball.radius.ndim == 0 else ball.radius.flatten()
    return project(here + stride * grad / length, ball.x, radius, "l2")
