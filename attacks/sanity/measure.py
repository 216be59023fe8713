"""Measurements behind the sanity checks: each function runs the model and returns plain tensors.

`attacks.sanity.findings` compares the figures with thresholds, `attacks.sanity.checks` puts the two together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.ascent import ascend
from attacks.autoattack.square import Square
from attacks.base import predicted
from attacks.draws import normal, uniform
from attacks.objectives import Objective, cross_entropy, margin
from attacks.threat import Start, ThreatModel

REPEATS = 3  # further forwards of one batch
DIRECTIONS = 4  # random directions of the finite differences
DIFFERENCE = 1e-3  # their step in each pixel: small against any eps, large against the rounding of float32
RISE = 0.02  # a step in each pixel, beside a quarter of eps, over which a gradient has to lead upwards
STEPS, EARLY = 40, 10  # of the ascent inside the ball; from EARLY on a sample that fell should stay where it is
BOX_STEPS, BOX_STRIDE = 40, 0.04  # of the ascent through the whole box: together more than its width
DRAWS, QUERIES = 10, 100  # random points, and queries of the random search


class CountingModel(nn.Module):
    """A model that counts its passes and always has an input gradient, zero if need be.

    Attributes:
        passes: forward and input-gradient passes so far, in samples.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes = {"forward": 0, "input_grad": 0}

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of x (N, C, H, W)."""
        logits: Tensor = self.model(x)
        self.passes["forward"] += len(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return logits
        logits = logits + 0 * x.flatten(1).sum(1, keepdim=True)  # a model may cut its input off altogether
        logits.register_hook(lambda _: self._count(len(x)))
        return logits

    def _count(self, n: int) -> None:
        self.passes["input_grad"] += n


@dataclass(frozen=True)
class Probe:
    """A model in eval mode, and samples that it classifies correctly.

    Attributes:
        model: counts its passes.
        x: (m, C, H, W) in [0, 1].
        y: (m,) labels, m at least 1.
        threat: norm and radius.
        generator: source of all draws.
    """

    model: CountingModel
    x: Tensor
    y: Tensor
    threat: ThreatModel
    generator: torch.Generator

    @cached_property
    def logits(self) -> Tensor:
        """(m, K) at x."""
        return self.at(self.x)

    @torch.no_grad()
    def at(self, x: Tensor) -> Tensor:
        """Logits (m, K) at points."""
        logits: Tensor = self.model(x)
        return logits

    def stands(self, x: Tensor) -> Tensor:
        """Whether points (m, C, H, W) are classified right; (m,) bool."""
        return predicted(self.at(x)) == self.y

    def margin(self, x: Tensor) -> Tensor:
        """How far the best wrong logit lies above the right one; (m,)."""
        return margin(self.y)(self.at(x), torch.arange(len(x), device=x.device))


def relative_logit_change(a: Tensor, b: Tensor) -> Tensor:
    """The largest difference of two sets of logits (m, K), in units of the spread of a sample's logits; (m,)."""
    spread = (a.amax(1) - a.amin(1)).clamp_min(1e-12)
    return ((a - b).abs().amax(1) / spread).nan_to_num_(nan=0.0, posinf=1e6)


def repeat_change(probe: Probe) -> Tensor:
    """Relative change of the logits over repeated forwards of one batch; (m,)."""
    changes = [relative_logit_change(probe.logits, probe.at(probe.x)) for _ in range(REPEATS)]
    return torch.stack(changes).amax(0)


def batch_change(probe: Probe) -> Tensor | None:
    """Relative change of the logits when a batch is split in two and reversed; (m,), None for one sample."""
    if len(probe.x) < 2:
        return None
    turned = torch.arange(len(probe.x) - 1, -1, -1, device=probe.x.device)
    other = torch.empty_like(probe.logits)
    for half in (turned[::2], turned[1::2]):
        other[half] = probe.at(probe.x[half])
    return relative_logit_change(probe.logits, other)


def gradients(probe: Probe) -> tuple[Tensor, Tensor]:
    """Input gradients of cross-entropy and of the margin, each (m, C, H, W), as the model gives them."""
    x, rows = probe.x.clone().requires_grad_(), torch.arange(len(probe.x), device=probe.x.device)
    with torch.enable_grad():
        logits = probe.model(x)
        losses = [objective(probe.y)(logits, rows).sum() for objective in (cross_entropy, margin)]
        first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses)
    return first, second


def _gradient_of_margin(probe: Probe, at: Tensor) -> Tensor:
    x, rows = at.clone().requires_grad_(), torch.arange(len(at), device=at.device)
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(margin(probe.y)(probe.model(x), rows).sum(), x)
    return grad


def is_zero(grad: Tensor) -> Tensor:
    """Whether a gradient (m, C, H, W) is zero everywhere or not finite somewhere; (m,) bool."""
    size = grad.flatten(1).abs().amax(1)
    return ~(size.isfinite() & (size > 0))


def disagreement(probe: Probe) -> Tensor:
    """How much of the margin's change in random directions its gradient does not explain, from 0; (m,).

    The sum over directions of (difference quotient - slope)^2, over that of both squares: 0 if they agree, 1 if one of
    them is zero, 2 if they are opposite. Nothing is left to explain where both are zero. It is measured so far inside
    the box that no difference reaches out of it: a model may clip its input.
    """
    inside = probe.x.clamp(DIFFERENCE, 1 - DIFFERENCE)
    grad = _gradient_of_margin(probe, inside)
    left, whole = torch.zeros_like(probe.x[:, 0, 0, 0]), torch.zeros_like(probe.x[:, 0, 0, 0])
    for _ in range(DIRECTIONS):
        direction = uniform(probe.x, probe.generator).sub_(0.5).sign_()
        ahead, behind = (probe.margin(inside + side * DIFFERENCE * direction) for side in (1, -1))
        quotient = (ahead - behind) / (2 * DIFFERENCE)
        slope = (grad * direction).flatten(1).sum(1)
        left += (quotient - slope) ** 2
        whole += quotient**2 + slope**2
    return torch.where(whole > 0, left / whole, torch.zeros_like(left)).nan_to_num_(nan=1.0)


def margin_rises(probe: Probe, grad: Tensor) -> Tensor:
    """Whether a step along the sign of the margin's gradient raises the margin, over two lengths; (2, m) bool."""
    here = probe.margin(probe.x)
    direction = grad.nan_to_num().sign()
    eps = probe.threat.eps if probe.threat.norm == "linf" else probe.threat.eps / math.sqrt(probe.x[0].numel())
    lengths = [length for length in (eps / 4, RISE) if length > 0]
    return torch.stack([probe.margin((probe.x + length * direction).clamp(0, 1)) > here for length in lengths])


def whole_box(probe: Probe) -> Tensor:
    """Samples (m,) that stand at every step of an ascent without a radius, from x itself."""
    linf = probe.threat.norm == "linf"
    reach = 1.0 if linf else math.sqrt(probe.x[0].numel())
    everything = torch.ones_like(probe.y, dtype=torch.bool)
    return _path(probe, reach, BOX_STRIDE * reach, BOX_STEPS, "zero", only=everything).all(0)


def ascent_path(probe: Probe) -> Tensor:
    """Which samples stand at the points of PGD (40 steps of eps / 4, random start) from step 10 on; (31, m) bool."""
    eps = probe.threat.eps
    return _path(probe, eps, eps / 4, STEPS, "uniform")[EARLY:]


def one_step(probe: Probe) -> Tensor:
    """Which samples (m,) stand after one step of eps along the gradient (FGSM)."""
    return _path(probe, probe.threat.eps, probe.threat.eps, 1, "zero")[-1]


def fooled_along(probe: Probe, path: Tensor) -> Tensor:
    """Samples (m,) fooled at some point of an ascent, or of a second one on the margin, run on the others."""
    left = path.all(0)
    eps = probe.threat.eps
    return ~_path(probe, eps, eps / 4, STEPS, "uniform", objective=margin(probe.y), only=left).all(0)


def _path(
    probe: Probe, eps: float, stride: float, steps: int, start: Start,
    *, objective: Objective | None = None, only: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Which samples stand at each point of an ascent, start and end included; (steps + 1, m) bool.

    Of cross-entropy, if no objective is given. With `only` (m,) bool these alone take part, each until it falls.
    """
    path = torch.zeros(steps + 1, len(probe.x), dtype=torch.bool, device=probe.x.device)

    def observe(step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> Tensor | None:
        path[step, rows] = predicted(logits) == probe.y[rows]
        if only is None:
            return None
        path[step] &= only
        return path[step, rows]

    x_adv = ascend(
        probe.model, probe.x, objective or cross_entropy(probe.y), eps=eps, step_size=stride, steps=steps, start=start,
        norm=probe.threat.norm, generator=probe.generator, observe=observe,
    )  # fmt: skip
    path[steps] = probe.stands(x_adv)
    return path


def noise(probe: Probe) -> Tensor:
    """Which samples (m,) stand at all of ten random points on the surface of the ball."""
    left = torch.ones_like(probe.y, dtype=torch.bool)
    for _ in range(DRAWS):
        left &= probe.stands(probe.threat.project(probe.x + _surface(probe), probe.x))
    return left


def _surface(probe: Probe) -> Tensor:
    eps = probe.threat.eps
    if probe.threat.norm == "linf":
        return uniform(probe.x, probe.generator).sub_(0.5).sign_().mul_(eps)
    return F.normalize(normal(probe.x, probe.generator).flatten(1), dim=1).view_as(probe.x) * eps


def search(probe: Probe) -> Tensor:
    """Which samples (m,) stand after a random search of 100 queries that asks for no gradient (Square)."""
    found = Square(probe.threat, QUERIES)(probe.model, probe.x, probe.y, generator=probe.generator)
    return probe.stands(found)
