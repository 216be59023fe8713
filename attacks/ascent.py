"""Projected gradient ascent: the one loop behind FGSM, PGD, CW and every inner problem of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.objectives import Objective, Sloped
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
            moves. It may return keep (M,) bool: the others stop where they are, for good and for free.
        bn: mode of the whole model; in "train" every pass uses and moves batch statistics.

    Returns:
        (N, C, H, W), detached, inside box and ball.
    """
    x = x.detach()
    x_adv = starting_point(x, start, eps, norm, generator)
    if steps == 0:
        return project(x_adv, x, eps, norm)
    ball = _Ball(x, per_sample(eps, x), norm)
    stride = per_sample(step_size, x)
    rows = torch.arange(len(x), device=x.device)
    with mode(model, train=bn == "train"), torch.enable_grad():
        for step in range(steps):
            here = (x_adv if len(rows) == len(x) else x_adv[rows]).detach().requires_grad_()
            here, grad, kept = _gradient(model, here, objective, rows, step, observe)
            if step == 0 and len(kept) < len(rows):  # a start may lie outside the ball; what stops there must not
                x_adv = project(x_adv, x, eps, norm)
            rows = kept
            if len(rows) == 0:
                break
            if len(rows) == len(x):
                x_adv = ball.step(here, grad, stride)
            else:
                moved = ball.of(rows).step(here, grad, _of(stride, rows))
                x_adv = x_adv.index_copy(0, rows, moved)
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


def _gradient(
    model: nn.Module, here: Tensor, objective: Objective, rows: Tensor, step: int, observe: Observer | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Iterates, gradients and rows of the samples that go on after the observer has seen them."""
    logits = model(here)
    keep = observe(step, here.detach(), logits.detach(), rows) if observe is not None else None
    if keep is None or bool(keep.all()):
        return here, _slope(objective, logits, rows, here), rows
    rows = rows[keep]
    if len(rows) == 0:
        return here[keep], here[keep], rows
    return here[keep], _slope(objective, logits[keep], rows, here)[keep], rows


def _slope(objective: Objective, logits: Tensor, rows: Tensor, here: Tensor) -> Tensor:
    """The gradient of an objective's values with respect to the inputs of the model."""
    if isinstance(objective, Sloped):
        (grad,) = torch.autograd.grad(logits, here, objective.with_slope(logits, rows)[1])
    else:
        (grad,) = torch.autograd.grad(objective(logits, rows).sum(), here)
    return grad


def _of(value: Tensor, rows: Tensor) -> Tensor:
    return value if value.ndim == 0 else value[rows]


class _Ball:
    """Where an ascent may go: the ball of some radius around x, within [0, 1].

    Args:
        x: (M, ...) originals.
        radius: a number, or shaped to multiply x.
        norm: of the ball.
        box: in Linf the least and the largest allowed values, like x.
    """

    def __init__(self, x: Tensor, radius: Tensor, norm: Norm, box: tuple[Tensor, Tensor] | None = None) -> None:
        self.x, self.radius, self.norm, self.box = x, radius, norm, box
        if norm == "linf" and box is None:
            self.box = (x - radius).clamp_(0, 1), (x + radius).clamp_(0, 1)

    def of(self, rows: Tensor) -> _Ball:
        """That of some samples."""
        box = None if self.box is None else (self.box[0][rows], self.box[1][rows])
        return _Ball(self.x[rows], _of(self.radius, rows), self.norm, box)

    @torch.no_grad()
    def step(self, here: Tensor, grad: Tensor, stride: Tensor) -> Tensor:
        """The points after a step."""
        if self.box is not None:
            moved = grad.sign().mul_(stride).add_(here)
            return torch.clamp(moved, *self.box, out=moved)
        length = per_sample(grad.flatten(1).norm(dim=1).clamp_min(1e-12), self.x)
        moved = here + stride * grad / length
        radius = self.radius if self.radius.ndim == 0 else self.radius.flatten()
        return project(moved, self.x, radius, self.norm)
