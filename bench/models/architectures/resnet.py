"""ResNet-18 (He et al., 2016, arXiv:1512.03385 and 1603.05027) for CIFAR: 3x3 stem, stride 1, no max-pooling."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bench.models.registry import MODELS

WIDTHS = (64, 128, 256, 512)


def _shortcut(inputs: int, outputs: int, stride: int, norm: bool) -> nn.Sequential:
    """Nothing where the shapes agree, else a 1x1 convolution."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs)) if norm else nn.Sequential(convolution)


class BasicBlock(nn.Module):
    """Convolution, BatchNorm, ReLU, convolution, BatchNorm, plus the shortcut, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = _shortcut(inputs, outputs, stride, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, outputs, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each convolution; a shortcut that changes shapes starts after the first ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = _shortcut(inputs, outputs, stride, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, outputs, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + (self.shortcut(active) if len(self.shortcut) else x)


def _stage(block: type[BasicBlock] | type[PreActBlock], inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(block(inputs, outputs, stride), block(outputs, outputs, 1))


class ResNet18(nn.Module):
    """Two basic blocks at each of four widths, the last three stages halving the image."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(BasicBlock, 64, WIDTHS[0], 1)
        self.layer2 = _stage(BasicBlock, WIDTHS[0], WIDTHS[1], 2)
        self.layer3 = _stage(BasicBlock, WIDTHS[1], WIDTHS[2], 2)
        self.layer4 = _stage(BasicBlock, WIDTHS[2], WIDTHS[3], 2)
        self.linear = nn.Linear(WIDTHS[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


class PreActResNet18(nn.Module):
    """The pre-activation form; with `final_norm` BatchNorm and ReLU stand before the pooling."""

    def __init__(self, num_classes: int, in_channels: int, *, final_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, 1, 1, bias=False)
        self.layer1 = _stage(PreActBlock, 64, WIDTHS[0], 1)
        self.layer2 = _stage(PreActBlock, WIDTHS[0], WIDTHS[1], 2)
        self.layer3 = _stage(PreActBlock, WIDTHS[1], WIDTHS[2], 2)
        self.layer4 = _stage(PreActBlock, WIDTHS[2], WIDTHS[3], 2)
        self.bn = nn.BatchNorm2d(WIDTHS[3]) if final_norm else None
        self.linear = nn.Linear(WIDTHS[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            out = F.relu(self.bn(out))
        logits: Tensor = self.linear(out.mean((2, 3)))
        return logits


@MODELS.register("resnet18", image=(3, 32, 32), parameters=11_173_962, mmacs=555.423)
def resnet18(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """ResNet-18, the student of RSLAD and ABSLD."""
    return ResNet18(num_classes, in_channels)


@MODELS.register("preact_resnet18", image=(3, 32, 32), parameters=11_172_170, mmacs=555.423)
def preact_resnet18(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Pre-activation ResNet-18 with a final BatchNorm and ReLU."""
    return PreActResNet18(num_classes, in_channels, final_norm=True)


@MODELS.register("preact_resnet18_plain", image=(3, 32, 32), parameters=11_171_146, mmacs=555.423)
def preact_resnet18_plain(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Pre-activation ResNet-18 that pools the last sum as it is, FRL's form."""
    return PreActResNet18(num_classes, in_channels, final_norm=False)
