"""FAB, the Fast Adaptive Boundary attack, targeted (Croce and Hein, ICML 2020, arXiv:1907.02044).

Looks for the nearest point beyond the boundary to a class t, for the most likely wrong classes t one after the other.
Step: f = z_t - z_y is linearised at the current point x_i; d_i and d_0 are the shortest moves (in the norm, within the
    box) from x_i and from the original x to the hyperplane where the linearisation is zero. The next point is
    (1 - a) (x_i + 1.05 d_i) + a (x + 1.05 d_0), clipped to the box, with a = min(|d_i| / (|d_i| + |d_0|), 0.1).
    Where it fools the model (as any class) the search goes on from x + 0.9 (x_next - x).
Start: the original. Defaults: 100 steps, 9 targets, one run each; nothing is drawn.
Departures: as an attack a sample leaves at the first point that fools the model within eps, which decides the verdict;
    `minimal_norms` runs every step. As in AutoAttack's released code there is no final line search.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.autoattack.stage import Stage, Standing, values_and_gradient
from attacks.base import check_inputs, predicted
from attacks.contexts import mode
from attacks.objectives import targeted_margin
from attacks.passes import Passes
from attacks.plugins.ranges import Count
from attacks.registry import ATTACKS
from attacks.threat import Norm, ThreatModel, distance

ALPHA_MAX = 0.1
ETA = 1.05
BETA = 0.9


def to_hyperplane(point: Tensor, normal: Tensor, value: Tensor, norm: Norm) -> Tensor:
    """The shortest move within [0, 1] from a point to the zero of an affine function, or as near as the box lets it.

    Every coordinate moves against the value at its own speed - 1 in Linf, |normal| in L2 - until it reaches its side
    of the box. When the function is zero is found by Newton's method: what is gained is concave and piecewise linear
    in time, so the iteration rises to the root, some coordinates stop at each turn, and it ends exactly there.

    Args:
        point: (..., D) in [0, 1].
        normal: (..., D) gradient of the affine function; broadcasts against point.
        value: (...) of the affine function at point.
        norm: in which the move is shortest.

    Returns:
        (..., D) the move.
    """
    weight = normal.abs()
    direction = torch.where(value > 0, -1.0, 1.0).to(value)[..., None] * normal.sign()
    room = direction.clamp(min=0).sub_(point).abs_()  # 1 - point where it rises, point where it falls
    speed = None if norm == "linf" else weight
    rate = weight if speed is None else weight.square()
    price, wanted, time = weight * room, value.abs()[..., None], torch.zeros_like(value)[..., None]
    endless = torch.finfo(value.dtype).max
    gain, left, free = rate.sum(-1, keepdim=True), wanted, None  # all are free at first
    for _ in range(point.shape[-1] + 1):
        # Nothing is gained where the gradient is zero or all have stopped: there the time never comes.
        time = torch.maximum(time, torch.div(left, gain).nan_to_num_(endless, endless, endless))
        still = torch.sub(room, time if speed is None else speed * time).sign_().clamp_(min=0)
        if free is not None and torch.equal(still, free):
            break
        free = still  # 1 and 0 as numbers: they are several times as fast as masks
        gain = (rate * free).sum(-1, keepdim=True)
        left = wanted - torch.addcmul(price, price, free, value=-1).sum(-1, keepdim=True)
    return torch.minimum(time if speed is None else speed * time, room).mul_(direction)


Found = Callable[[Tensor, Tensor, Tensor, Tensor], "Tensor | None"]


def approach(model: nn.Module, x: Tensor, y: Tensor, target: Tensor, *, norm: Norm, steps: int, found: Found) -> None:
    """Look for points near x that the model does not classify as y, along the boundary to one class.

    Args:
        model: in eval mode.
        x: (N, C, H, W) in [0, 1], classified as y.
        y: (N,) labels.
        target: (N,) the class whose boundary is approached.
        norm: in which points are near.
        steps: number of steps, each two forwards and one input gradient per sample.
        found: `found(rows, points, sizes, fooled)` sees every point (M, C, H, W) of the samples at rows (M,), its
            distance from x and whether the model is fooled there. It may return gone (M,) bool: those leave.
    """
    rows, here, towards = torch.arange(len(x), device=x.device), x, targeted_margin(y, target)
    for _ in range(steps):
        here = here.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(here)
        value, normal = values_and_gradient(towards, logits, rows, here)
        moved = _step(here.detach(), x, value.to(x), normal.to(x), norm)
        fooled = predicted(model(moved)) != y
        gone = found(rows, moved, distance(moved, x, norm), fooled)
        share = torch.where(fooled, BETA, 1.0).to(x).view(-1, *[1] * (x.ndim - 1))
        here = torch.lerp(x, moved, share)
        if gone is not None:
            rows, here, x, y = (of[~gone] for of in (rows, here, x, y))
            if len(rows) == 0:
                break


def approach_within(
    model: nn.Module, standing: Standing, rows: Tensor, target: Tensor, *, threat: ThreatModel, steps: int
) -> None:
    """One run of FAB to the classes target (M,) of the standing samples at rows (M,), which fall within the radius."""

    def found(at: Tensor, points: Tensor, sizes: Tensor, fooled: Tensor) -> Tensor | None:
        return standing.record(rows[at], points, fooled & (sizes <= threat.eps))

    approach(model, standing.x[rows], standing.y[rows], target, norm=threat.norm, steps=steps, found=found)


def _step(here: Tensor, x: Tensor, value: Tensor, normal: Tensor, norm: Norm) -> Tensor:
    """The next point, biased towards the original."""
    both, slope = torch.stack([here.flatten(1), x.flatten(1)]), normal.flatten(1)
    values = torch.stack([value, value + ((both[1] - both[0]) * slope).sum(-1)])
    moves = to_hyperplane(both, slope, values, norm)
    length = (moves.abs().amax(-1) if norm == "linf" else moves.norm(dim=-1)).clamp_min(1e-8)
    share = (length[0] / (length[0] + length[1])).clamp_max(ALPHA_MAX)[:, None]
    ends = both.add_(moves, alpha=ETA)
    return torch.lerp(ends[0], ends[1], share).clamp_(0, 1).view_as(x)


@ATTACKS.register("fab-t")
@dataclass(frozen=True)
class FABT(Stage):
    """FAB, once per target class.

    Args:
        threat: norm and radius.
        steps: number of steps per target.
        targets: number of target classes, the most likely wrong ones first; at most K - 1.
    """

    steps: Count = 100
    targets: Count = 9
    name = "fab-t"

    def passes(self, num_classes: int) -> Passes:
        """Per target a gradient and a check per step; one forward for the original."""
        per_target = Passes(forward=2 * self.steps, input_grad=self.steps)
        return per_target * min(self.targets, num_classes - 1) + Passes(forward=1)

    def search(self, model: nn.Module, standing: Standing, generator: torch.Generator) -> None:
        """One run per target; a sample that falls meets no further target."""
        for rank in range(1, min(self.targets, standing.logits.shape[1] - 1) + 1):
            rows = standing.rows
            if len(rows) == 0:
                return
            approach_within(model, standing, rows, standing.target(rank)[rows], threat=self.threat, steps=self.steps)


def minimal_norms(
    model: nn.Module, x: Tensor, y: Tensor, *, norm: Norm = "linf", steps: int = 100, targets: int = 9
) -> Tensor:
    """How far each sample is from the nearest point that fools the model, as far as targeted FAB finds one.

    Args:
        model: any; left as it was.
        x: (N, C, H, W) in [0, 1].
        y: (N,) labels.
        norm: "linf" or "l2".
        steps: number of steps per target.
        targets: number of target classes; at most K - 1.

    Returns:
        (N,) distances: 0 for samples that are wrong already, infinite where nothing was found.
    """
    check_inputs("fab-t", x, y)
    with mode(model, train=False), torch.no_grad():
        standing = Standing(model, x.detach(), y)
        rows = standing.rows
        norms = torch.zeros_like(x.flatten(1)[:, 0])
        norms[rows] = torch.inf

        def shortest(at: Tensor, points: Tensor, sizes: Tensor, fooled: Tensor) -> None:
            norms[rows[at]] = torch.where(fooled, sizes, torch.inf).minimum(norms[rows[at]])

        for rank in range(1, min(targets, standing.logits.shape[1] - 1) + 1):
            target = standing.target(rank)[rows]
            approach(model, x[rows], y[rows], target, norm=norm, steps=steps, found=shortest)
    return norms
