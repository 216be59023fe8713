"""Threat models: a norm, a radius, and the box [0, 1] of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from attacks.draws import normal, uniform

Norm = Literal["linf", "l2"]
Start = Literal["zero", "uniform", "uniform_unclipped", "gaussian"]

GAUSSIAN_SCALE = 0.001
TOLERANCE = 1e-6


@dataclass(frozen=True)
class ThreatModel:
    """All images within `eps` of the original in `norm`, and within [0, 1].

    Args:
        norm: "linf" or "l2".
        eps: the radius, in the units of x.

    Raises:
        ValueError: for an unknown norm, a negative radius, or a Linf radius beyond the width of the box.

    >>> threat = ThreatModel("linf", 0.5)
    >>> threat.project(torch.tensor([[2.0, 0.5]]), torch.tensor([[0.25, 0.25]]))
    tensor([[0.7500, 0.5000]])
    """

    norm: Norm = "linf"
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f"threat model: expected norm 'linf' or 'l2', got {self.norm!r}")
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"threat model: expected a radius eps >= 0 in the units of x, got {self.eps}")
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(
                f"threat model: expected a Linf radius of at most 1, the width of the box, got {self.eps:g}; "
                f"did you mean {self.eps:g}/255?"
            )

    def start(self, x: Tensor, kind: Start, generator: torch.Generator) -> Tensor:
        """A starting point for each sample of x (N, C, H, W); see `starting_point`."""
        return starting_point(x, kind, self.eps, self.norm, generator)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of ball and box that belongs to x_adv (N, C, H, W)."""
        return project(x_adv, x, self.eps, self.norm)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each x_adv lies in ball and box, up to rounding; (N,) bool, False where x_adv is not finite."""
        slack = TOLERANCE * max(1.0, self.eps)
        in_box = ((x_adv >= -TOLERANCE) & (x_adv <= 1 + TOLERANCE)).flatten(1).all(1)
        return in_box & (distance(x_adv, x, self.norm) <= self.eps + slack)


def distance(x_adv: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """The distance of each sample from its original; (N,)."""
    delta = (x_adv - x).flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)


def per_sample(value: float | Tensor, x: Tensor) -> Tensor:
    """A number or (N,) tensor shaped to multiply x (N, ...)."""
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=x.dtype, device=x.device)  # a copy of the number would wait for a GPU
    tensor = value.to(x)
    if tensor.ndim == 0:
        return tensor
    if tensor.shape != x.shape[:1]:
        raise ValueError(f"expected one value or one per sample ({len(x)},), got shape {tuple(tensor.shape)}")
    return tensor.view(-1, *[1] * (x.ndim - 1))


def project(x_adv: Tensor, x: Tensor, eps: float | Tensor, norm: Norm) -> Tensor:
    """Project onto the ball of radius eps (a number or (N,)) around x, then clip to [0, 1].

    In l2 clipping after projecting stays inside the ball, because x itself lies in the box.
    """
    radius = per_sample(eps, x)
    if norm == "linf":
        return torch.minimum(torch.maximum(x_adv, x - radius), x + radius).clamp_(0, 1)
    delta = x_adv - x
    scale = (radius / per_sample(delta.flatten(1).norm(dim=1).clamp_min(1e-12), x)).clamp_max(1)
    return (x + delta * scale).clamp_(0, 1)


def starting_point(
    x: Tensor, kind: Start | Tensor, eps: float | Tensor, norm: Norm, generator: torch.Generator | None
) -> Tensor:
    """Where an ascent begins; (N, ...) like x.

    Args:
        x: (N, ...) originals.
        kind: "zero"; "uniform" in the ball, then clipped to the box; "uniform_unclipped"; "gaussian", 0.001 N(0, 1),
            neither clipped nor projected; or the points themselves.
        eps: radius, a number or (N,).
        norm: "linf" or "l2".
        generator: source of the draws; not needed for "zero" and given points.

    Raises:
        ValueError: for an unknown kind, points of another shape, or a missing generator.
    """
    if isinstance(kind, Tensor):
        if kind.shape != x.shape:
            raise ValueError(f"start: expected points of shape {tuple(x.shape)}, got {tuple(kind.shape)}")
        return kind.to(x).clone()
    if kind not in get_args(Start):
        raise ValueError(f"start: expected one of {', '.join(get_args(Start))} or a tensor, got {kind!r}")
    if kind == "zero":
        return x.clone()
    if generator is None:
        raise ValueError(f"start {kind!r} draws random numbers: pass a torch.Generator")
    if kind == "gaussian":
        return x + GAUSSIAN_SCALE * normal(x, generator)
    point = x + per_sample(eps, x) * _unit_ball(x, norm, generator)
    return point.clamp_(0, 1) if kind == "uniform" else point


def _unit_ball(x: Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
    """Uniform draws from the unit ball, one per sample."""
    if norm == "linf":
        return uniform(x, generator).mul_(2).sub_(1)
    direction = normal(x, generator)
    radius = uniform(x.flatten(1)[:, 0], generator) ** (1 / x[0].numel())
    return direction * per_sample(radius / direction.flatten(1).norm(dim=1), x)
