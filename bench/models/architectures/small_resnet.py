"""Residual networks of eight layers for 32x32 images on a CPU: a 4x4 stem of stride 2, then three basic blocks.

Most of what a narrow network costs on a CPU is moving its largest features through memory. The stem halves the image
at once, so that nothing of 32x32 pixels is stored; the rest is ResNet (He et al., 2016, arXiv:1512.03385).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.architectures.resnet import BasicBlock
from bench.models.registry import MODELS


class SmallResNet(nn.Module):
    """One basic block at each of three widths, the last two of which halve the image, and average pooling.

    Args:
        widths: channels of the stem and of the three blocks; the first block has the stem's.
        num_classes: classes K.
        in_channels: channels of the images.
    """

    def __init__(self, widths: tuple[int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 4, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = BasicBlock(widths[0], widths[0], 1)
        self.layer2 = BasicBlock(widths[0], widths[1], 2)
        self.layer3 = BasicBlock(widths[1], widths[2], 2)
        self.linear = nn.Linear(widths[2], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        out = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


@MODELS.register("small_resnet", image=(3, 32, 32), parameters=78_378, mmacs=3.212)
def small_resnet(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Eight layers of 16, 32 and 64 channels behind a stem of stride 2: a student for 32x32 images on a CPU."""
    return SmallResNet((16, 32, 64), num_classes, in_channels)


@MODELS.register("small_resnet_wide", image=(3, 32, 32), parameters=309_322, mmacs=12.453)
def small_resnet_wide(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """The same with twice the channels: its teacher."""
    return SmallResNet((32, 64, 128), num_classes, in_channels)
