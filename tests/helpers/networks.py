"""Small networks for micro-batches and several processes, named `FILE:BUILDER`; in float64, so that rounding is small.

`tight`, `tiny` and `full` run out of memory above a number of samples, as a GPU does; nothing else differs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

LIMIT = 32  # at least the samples that faster versions of a network are checked on


class Network(nn.Module):
    """A convolution, perhaps BatchNorm, and a linear layer; at most `limit` samples at once."""

    def __init__(self, classes: int, channels: int, size: int, *, norm: bool, limit: int | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.linear = nn.Linear(4 * ((size + 1) // 2) ** 2, classes)
        self.limit = limit
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        if self.limit is not None and len(x) > self.limit:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {len(x)} samples")
        logits: Tensor = self.linear(self.norm(self.conv1(x.double())).relu().flatten(1))
        return logits


def roomy(classes: int, channels: int, size: int) -> nn.Module:
    return Network(classes, channels, size, norm=False, limit=None)


def tight(classes: int, channels: int, size: int) -> nn.Module:
    return Network(classes, channels, size, norm=False, limit=LIMIT)


def tiny(classes: int, channels: int, size: int) -> nn.Module:
    return Network(classes, channels, size, norm=False, limit=10)


def full(classes: int, channels: int, size: int) -> nn.Module:
    return Network(classes, channels, size, norm=True, limit=2)


def normed(classes: int, channels: int, size: int) -> nn.Module:
    return Network(classes, channels, size, norm=True, limit=None)


def tight_normed(classes: int, channels: int, size: int) -> nn.Module:
    return Network(classes, channels, size, norm=True, limit=LIMIT)


def builder(name: str) -> str:
    """The name of a builder in a plan."""
    return f"{Path(__file__)}:{name}"
