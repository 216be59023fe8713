"""Models that only look robust, each with a check that has to notice. `HELD_OUT` were built after all thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Around(nn.Module):
    """A wrapper around a trained model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class QuantisedInput(Around):
    def forward(self, x: Tensor) -> Any:
        return self.model((x * 7).round() / 7)


class StraightThrough(Around):
    def forward(self, x: Tensor) -> Any:
        return self.model(x + ((x * 7).round() / 7 - x).detach())


class Softmax(Around):
    def forward(self, x: Tensor) -> Any:
        return self.model(x).softmax(1)


class SaturatedSoftmax(Around):
    def forward(self, x: Tensor) -> Any:
        return (200 * self.model(x)).softmax(1)


class HugeLogits(Around):
    def forward(self, x: Tensor) -> Any:
        return 1000 * self.model(x)


class NoiseLayer(Around):
    def forward(self, x: Tensor) -> Any:
        return self.model(x + 0.05 * torch.randn_like(x))


class DetachedBranch(Around):
    def forward(self, x: Tensor) -> Any:
        return 0.1 * self.model(x.flip(-1)) + self.model(x.detach())


class CutOff(Around):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class BatchStatistics(Around):
    """Adapts to its batch, in eval mode too."""

    def forward(self, x: Tensor) -> Any:
        return self.model((x - x.mean(0) + 0.3).clamp(0, 1))


class Thermometer(Around):
    def forward(self, x: Tensor) -> Any:
        return self.model((x[..., None] > (torch.arange(8) + 0.5) / 8).float().mean(-1))


class RandomResize(Around):
    def forward(self, x: Tensor) -> Any:
        size = int(torch.randint(6, 9, ()))
        top, left = (int(torch.randint(0, 9 - size, ())) for _ in range(2))
        small = F.interpolate(x, size=(size, size))
        return self.model(F.pad(small, (left, 8 - size - left, top, 8 - size - top)))


class HighFrequency(Around):
    def forward(self, x: Tensor) -> Any:
        return self.model(x + 0.03 * torch.sin(300 * x))


class CosineRounding(Around):
    """Rounds the coefficients of a cosine transform, as JPEG does."""

    def forward(self, x: Tensor) -> Any:
        place = torch.arange(8.0)
        basis = torch.cos(math.pi * (2 * place + 1) * place[:, None] / 16) / 2
        basis[0] /= math.sqrt(2)
        coefficients = ((basis @ x @ basis.T) / 0.15).round() * 0.15
        return self.model(basis.T @ coefficients @ basis)


class Dropout(Around):
    def forward(self, x: Tensor) -> Any:
        return self.model(F.dropout(x, 0.1, training=True))


class _NoisyBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.randn_like(grads[0])


class MisleadingBackward(Around):
    def forward(self, x: Tensor) -> Any:
        return self.model(_NoisyBackward.apply(x))


class SteepInput(Around):
    """Almost binary inputs: the slope of a steep sigmoid is zero in float32 for most pixels."""

    def forward(self, x: Tensor) -> Any:
        return self.model(torch.sigmoid(500 * (x - 0.5)))


Wrapper = Callable[[nn.Module], nn.Module]

DESIGNED: dict[Wrapper, tuple[str, str]] = {
    QuantisedInput: ("zero_gradients", "unreliable"),
    StraightThrough: ("gradient_agreement", "unreliable"),
    Softmax: ("probabilities", "suspicious"),
    SaturatedSoftmax: ("zero_gradients", "unreliable"),
    HugeLogits: ("saturation", "unreliable"),
    NoiseLayer: ("random_forward", "unreliable"),
    DetachedBranch: ("gradient_agreement", "unreliable"),
}
HELD_OUT: dict[Wrapper, tuple[str, str]] = {
    Thermometer: ("zero_gradients", "unreliable"),
    RandomResize: ("random_forward", "unreliable"),
    HighFrequency: ("whole_box", "unreliable"),
    CosineRounding: ("zero_gradients", "unreliable"),
    Dropout: ("random_forward", "unreliable"),
    MisleadingBackward: ("gradient_agreement", "unreliable"),
    CutOff: ("zero_gradients", "unreliable"),
    BatchStatistics: ("batch_dependence", "unreliable"),
    SteepInput: ("whole_box", "unreliable"),
}
