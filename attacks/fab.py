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

from attacks.ascent import mode
from attacks.base import check_inputs
from attacks.passes import Passes
from attacks.stage import Stage, Standing, input_gradient
from attacks.tables import ATTACKS
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
    direction = normal.sign() * torch.where(value > 0, -1, 1)[..., None]
    room = torch.where(direction > 0, 1 - point, point)
    speed = torch.ones_like(weight[..., :1]) if norm == "linf" else weight
    rate, price = (weight * speed).expand_as(room), weight * room
    wanted, time, endless = value.abs()[..., None], torch.zeros_like(value)[..., None], torch.finfo(value.dtype).max
    free = torch.ones_like(room)  # 1 and 0 as numbers: products are several times as fast as masks
    for _ in range(point.shape[-1] + 1):
        gain = (rate * free).sum(-1, keepdim=True)
        left = wanted - (price - price * free).sum(-1, keepdim=True)
        time = torch.maximum(time, torch.where(gain > 0, left / gain, endless))
        still = (speed * time < room).to(room.dtype)
        if torch.equal(still, free):
            break
        free = still
    return direction * torch.minimum(speed * time, room)


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
    rows, here = torch.arange(len(x), device=x.device), x
    for _ in range(steps):
        value, normal = _linearised(model, here, y, target)
        moved = _step(here, x, value, normal, norm)
        fooled = model(moved).argmax(1) != y
        gone = found(rows, moved, distance(moved, x, norm), fooled)
        here = torch.where(fooled.view(-1, *[1] * (x.ndim - 1)), torch.lerp(x, moved, BETA), moved)
        if gone is not None:
            rows, here, x, y, target = (of[~gone] for of in (rows, here, x, y, target))
            if len(rows) == 0:
                break


def approach_within(
    model: nn.Module, standing: Standing, rows: Tensor, target: Tensor, *, threat: ThreatModel, steps: int
) -> None:
    """One run of FAB to the classes target (M,) of the standing samples at rows (M,), which fall within the radius."""

    def found(at: Tensor, points: Tensor, sizes: Tensor, fooled: Tensor) -> Tensor | None:
        return standing.judge(rows[at], points, fooled & (sizes <= threat.eps))

    approach(model, standing.x[rows], standing.y[rows], target, norm=threat.norm, steps=steps, found=found)


def _linearised(model: nn.Module, here: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Value (M,) of z_t - z_y at each point, and its gradient (M, C, H, W)."""
    here = here.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(here)
        value = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
        return value.detach(), input_gradient(value, here)


def _step(here: Tensor, x: Tensor, value: Tensor, normal: Tensor, norm: Norm) -> Tensor:
    """The next point, biased towards the original."""
    both, slope = torch.stack([here.flatten(1), x.flatten(1)]), normal.flatten(1)
    values = value + ((both - both[0]) * slope).sum(-1)
    moves = to_hyperplane(both, slope, values, norm)
    length = (moves.abs().amax(-1) if norm == "linf" else moves.norm(dim=-1)).clamp_min(1e-8)
    share = (length[0] / (length[0] + length[1])).clamp_max(ALPHA_MAX)[:, None]
    ends = both + ETA * moves
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

    steps: int = 100
    targets: int = 9
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
