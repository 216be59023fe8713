"""What the sanity checks measure on a model: each function makes passes and returns plain tensors, judging nothing.

`attacks.sanity.findings` says what the figures mean, `attacks.sanity.checks` puts the two together.
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


class Watched(nn.Module):
    """A model whose passes are counted, and to whose input a gradient always leads, be it zero.

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
    """A model in eval mode, and samples that it gets right.

    Attributes:
        model: counts its passes.
        x: (m, C, H, W) in [0, 1].
        y: (m,) labels, m at least 1.
        threat: norm and radius.
        generator: source of all draws.
    """

    model: Watched
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
        return self.at(x).argmax(1) == self.y

    def margin(self, x: Tensor) -> Tensor:
        """How far the best wrong logit lies above the right one; (m,)."""
        return margin(self.y)(self.at(x), torch.arange(len(x), device=x.device))


def relative_change(a: Tensor, b: Tensor) -> Tensor:
    """The largest difference of two sets of logits (m, K), in units of the spread of a sample's logits; (m,)."""
    spread = (a.amax(1) - a.amin(1)).clamp_min(1e-12)
    return ((a - b).abs().amax(1) / spread).nan_to_num_(nan=0.0, posinf=1e6)


def repeats(seen: Probe) -> Tensor:
    """Relative change of the logits over forwards of one and the same batch; (m,)."""
    changes = [relative_change(seen.logits, seen.at(seen.x)) for _ in range(REPEATS)]
    return torch.stack(changes).amax(0)


def company(seen: Probe) -> Tensor | None:
    """Relative change of the logits when a batch is split in two and turned around; (m,), None for one sample."""
    if len(seen.x) < 2:
        return None
    turned = torch.arange(len(seen.x) - 1, -1, -1, device=seen.x.device)
    other = torch.empty_like(seen.logits)
    for half in (turned[::2], turned[1::2]):
        other[half] = seen.at(seen.x[half])
    return relative_change(seen.logits, other)


def gradients(seen: Probe) -> tuple[Tensor, Tensor]:
    """Input gradients of cross-entropy and of the margin, each (m, C, H, W), as the model gives them."""
    x, rows = seen.x.clone().requires_grad_(), torch.arange(len(seen.x), device=seen.x.device)
    with torch.enable_grad():
        logits = seen.model(x)
        losses = [objective(seen.y)(logits, rows).sum() for objective in (cross_entropy, margin)]
        first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses)
    return first, second


def _gradient_of_margin(seen: Probe, at: Tensor) -> Tensor:
    x, rows = at.clone().requires_grad_(), torch.arange(len(at), device=at.device)
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(margin(seen.y)(seen.model(x), rows).sum(), x)
    return grad


def is_zero(grad: Tensor) -> Tensor:
    """Whether a gradient (m, C, H, W) is zero everywhere or not finite somewhere; (m,) bool."""
    size = grad.flatten(1).abs().amax(1)
    return ~(size.isfinite() & (size > 0))


def disagreement(seen: Probe) -> Tensor:
    """How much of the margin's change in random directions its gradient does not explain, from 0; (m,).

    The sum over directions of (difference quotient - slope)^2, over that of both squares: 0 if they agree, 1 if one of
    them is zero, 2 if they are opposite. Nothing is left to explain where both are zero. It is measured so far inside
    the box that no difference reaches out of it: a model may clip its input.
    """
    inside = seen.x.clamp(DIFFERENCE, 1 - DIFFERENCE)
    grad = _gradient_of_margin(seen, inside)
    left, whole = torch.zeros_like(seen.x[:, 0, 0, 0]), torch.zeros_like(seen.x[:, 0, 0, 0])
    for _ in range(DIRECTIONS):
        direction = uniform(seen.x, seen.generator).sub_(0.5).sign_()
        ahead, behind = (seen.margin(inside + side * DIFFERENCE * direction) for side in (1, -1))
        quotient = (ahead - behind) / (2 * DIFFERENCE)
        slope = (grad * direction).flatten(1).sum(1)
        left += (quotient - slope) ** 2
        whole += quotient**2 + slope**2
    return torch.where(whole > 0, left / whole, torch.zeros_like(left)).nan_to_num_(nan=1.0)


def rises(seen: Probe, grad: Tensor) -> Tensor:
    """Whether a step along the sign of the margin's gradient raises the margin, over two lengths; (2, m) bool."""
    here = seen.margin(seen.x)
    direction = grad.nan_to_num().sign()
    eps = seen.threat.eps if seen.threat.norm == "linf" else seen.threat.eps / math.sqrt(seen.x[0].numel())
    lengths = [length for length in (eps / 4, RISE) if length > 0]
    return torch.stack([seen.margin((seen.x + length * direction).clamp(0, 1)) > here for length in lengths])


def whole_box(seen: Probe) -> Tensor:
    """Which samples (m,) stand at every step of an ascent that no radius holds back, from x itself."""
    linf = seen.threat.norm == "linf"
    reach = 1.0 if linf else math.sqrt(seen.x[0].numel())
    everything = torch.ones_like(seen.y, dtype=torch.bool)
    return _ascent(seen, reach, BOX_STRIDE * reach, BOX_STEPS, "zero", only=everything).all(0)


def climb(seen: Probe) -> Tensor:
    """Which samples stand at the points of PGD (40 steps of eps / 4, random start) from step 10 on; (31, m) bool."""
    eps = seen.threat.eps
    return _ascent(seen, eps, eps / 4, STEPS, "uniform")[EARLY:]


def one_step(seen: Probe) -> Tensor:
    """Which samples (m,) stand after one step of eps along the gradient (FGSM)."""
    return _ascent(seen, seen.threat.eps, seen.threat.eps, 1, "zero")[-1]


def fooled_on_the_way(seen: Probe, path: Tensor) -> Tensor:
    """Which samples (m,) fell at some point of a climb, or of a second one on the margin that the others take."""
    left = path.all(0)
    eps = seen.threat.eps
    return ~_ascent(seen, eps, eps / 4, STEPS, "uniform", objective=margin(seen.y), only=left).all(0)


def _ascent(
    seen: Probe, eps: float, stride: float, steps: int, start: Start,
    *, objective: Objective | None = None, only: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Which samples stand at each point of an ascent, start and end included; (steps + 1, m) bool.

    Of cross-entropy, if no objective is given. With `only` (m,) bool these alone take part, each until it falls.
    """
    path = torch.zeros(steps + 1, len(seen.x), dtype=torch.bool, device=seen.x.device)

    def observe(step: int, x_adv: Tensor, logits: Tensor, rows: Tensor) -> Tensor | None:
        path[step, rows] = logits.argmax(1) == seen.y[rows]
        if only is None:
            return None
        path[step] &= only
        return path[step, rows]

    x_adv = ascend(
        seen.model, seen.x, objective or cross_entropy(seen.y), eps=eps, step_size=stride, steps=steps, start=start,
        norm=seen.threat.norm, generator=seen.generator, observe=observe,
    )  # fmt: skip
    path[steps] = seen.stands(x_adv)
    return path


def noise(seen: Probe) -> Tensor:
    """Which samples (m,) stand at all of ten random points on the surface of the ball."""
    left = torch.ones_like(seen.y, dtype=torch.bool)
    for _ in range(DRAWS):
        left &= seen.stands(seen.threat.project(seen.x + _surface(seen), seen.x))
    return left


def _surface(seen: Probe) -> Tensor:
    eps = seen.threat.eps
    if seen.threat.norm == "linf":
        return uniform(seen.x, seen.generator).sub_(0.5).sign_().mul_(eps)
    return F.normalize(normal(seen.x, seen.generator).flatten(1), dim=1).view_as(seen.x) * eps


def search(seen: Probe) -> Tensor:
    """Which samples (m,) stand after a random search of 100 queries that asks for no gradient (Square)."""
    found = Square(seen.threat, QUERIES)(seen.model, seen.x, seen.y, generator=seen.generator)
    return seen.stands(found)
