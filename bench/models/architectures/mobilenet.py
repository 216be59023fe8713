"""MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381) with the strides of CIFAR."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.registry import MODELS

# expansion, channels, blocks, stride of the first block; stem and second stage keep the image's size
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, project by 1x1; at stride 1 plus the shortcut."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride == 1 and inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, outputs, H / stride, W / stride)."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        out: Tensor = self.bn3(self.conv3(hidden))
        return out + self.shortcut(x) if self.stride == 1 else out


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals between a 3x3 stem and a 1x1 head."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        blocks, inputs = [], 32
        for expansion, outputs, count, first in STAGES:
            for stride in (first, *(1,) * (count - 1)):
                blocks.append(InvertedResidual(inputs, outputs, expansion, stride))
                inputs = outputs
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(inputs, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        out = F.relu(self.bn2(self.conv2(out)))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


@MODELS.register("mobilenet_v2", image=(3, 32, 32), parameters=2_296_922, mmacs=91.155)
def mobilenet_v2(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """MobileNetV2, the second student of RSLAD and ABSLD."""
    return MobileNetV2(num_classes, in_channels)
