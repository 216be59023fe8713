"""Interface of an attack, and validation of its inputs."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from attacks.passes import Passes
from attacks.threat import ThreatModel


@runtime_checkable
class Attack(Protocol):
    """A frozen set of settings that maps inputs to adversarial inputs; it holds no model.

    Attributes:
        threat: norm and radius it stays in.
        stages: the attacks an ensemble runs one after the other on what still stands; () means: itself.
    """

    @property
    def threat(self) -> ThreatModel:
        """Norm and radius it stays in."""

    @property
    def stages(self) -> tuple[Attack, ...]:
        """The members of an ensemble; () means: itself."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Adversarial inputs like x (N, C, H, W), detached, inside box and ball."""

    def passes(self, num_classes: int) -> Passes:
        """Passes per attacked sample, at most."""


NO_CLASS = -1  # the predicted class of an output that is not finite


def predicted(logits: Tensor) -> Tensor:
    """Predicted classes (N,) of logits (N, K); `NO_CLASS` where one is NaN or infinite upwards, or all are -inf.

    The argmax of a NaN would be its class, and such a sample would count as right.
    """
    return logits.argmax(1).masked_fill_(~logits.amax(1).isfinite(), NO_CLASS)


def check_inputs(name: str, x: Tensor, y: Tensor) -> None:
    """Validate images and labels.

    Raises:
        ValueError: if x is not (N, C, H, W) floating point in [0, 1], or y not (N,) int64.
    """
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(
            f"{name}: expected x (N, C, H, W) of floating point, got {tuple(x.shape)} {x.dtype}; "
            "convert images with x.float() / 255"
        )
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise ValueError(f"{name}: expected y ({len(x)},) int64, got {tuple(y.shape)} {y.dtype}")
    if len(x) and not (bool(x.min() >= 0) and bool(x.max() <= 1)):
        low, high = x.min().item(), x.max().item()
        bad = f"min {low:.3f}" if not low >= 0 else f"max {high:.3f}"
        raise ValueError(f"{name}: expected x in [0, 1], got {bad}; put the normalisation inside the model")
