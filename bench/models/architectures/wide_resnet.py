"""Wide ResNet (Zagoruyko and Komodakis, 2016, arXiv:1605.07146), with the names of layers that TRADES uses.

TRADES' own class carries a second first block, `sub_block1`, which its forward never calls; it is left out here
and its weights are passed over on loading (`bench.models.checkpoints.fit`).
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.registry import MODELS


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, plus the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, outputs, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """Several blocks, the first of which changes width and size."""

    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        rest = [WideBlock(outputs, outputs, 1) for _ in range(count - 1)]
        self.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, outputs, H / stride, W / stride)."""
        out: Tensor = self.layer(x)
        return out


class WideResNet(nn.Module):
    """Three stages of (depth - 4) / 6 blocks, 16, 32 and 64 times `widen` channels wide."""

    def __init__(self, depth: int, widen: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        count = (depth - 4) // 6
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.block1 = WideStage(count, widths[0], widths[1], 1)
        self.block2 = WideStage(count, widths[1], widths[2], 2)
        self.block3 = WideStage(count, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(F.relu(self.bn1(out)).mean((2, 3)))
        return logits


@MODELS.register("wrn28_10", image=(3, 32, 32), parameters=36_479_194, mmacs=5243.329)
def wrn28_10(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Wide ResNet of depth 28 and width 10."""
    return WideResNet(28, 10, num_classes, in_channels)


@MODELS.register("wrn34_10", image=(3, 32, 32), parameters=46_160_474, mmacs=6658.906)
def wrn34_10(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Wide ResNet of depth 34 and width 10, the field's usual teacher."""
    return WideResNet(34, 10, num_classes, in_channels)


@MODELS.register("wrn34_20", image=(3, 32, 32), parameters=184_531_674, mmacs=26581.857)
def wrn34_20(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Wide ResNet of depth 34 and width 20."""
    return WideResNet(34, 20, num_classes, in_channels)
