"""Networks of other projects, named on the command line as `tests/helpers/foreign.py:cnn_a`."""

from torch import Tensor, nn
from torch.nn import functional as F


def _plain(num_classes: int, in_channels: int, padding: int, features: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 4, 2, padding),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, padding),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 100),
        nn.ReLU(),
        nn.Linear(100, num_classes),
    )


def cnn_a(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    return _plain(num_classes, in_channels, 1, 2048)


def conv_small(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    return _plain(num_classes, in_channels, 0, 1152)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNet4b(nn.Module):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, 2, 1)
        self.layer1 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1))
        self.layer2 = nn.Sequential(Block(32, 32, 2), Block(32, 32, 1))
        self.linear1 = nn.Linear(512, 100)
        self.linear2 = nn.Linear(100, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer2(self.layer1(F.relu(self.conv1(x)))).flatten(1)
        return self.linear2(F.relu(self.linear1(out)))


def resnet4b(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    return ResNet4b(num_classes, in_channels)
