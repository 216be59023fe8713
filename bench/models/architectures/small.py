"""Small convolutional networks for images of 8x8 pixels and up."""

from __future__ import annotations

from torch import Tensor, nn

from bench.models.registry import MODELS


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with strides 1, 2, 2, each with BatchNorm and ReLU, then one linear layer on all features.

    Args:
        widths: channels of the three convolutions.
        num_classes: classes K.
        in_channels: channels of the images.
        image_size: height and width of the images.
    """

    def __init__(self, widths: tuple[int, int, int], num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in zip((in_channels, *widths), widths, (1, 2, 2), strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        side = -(-image_size // 4)
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(widths[-1] * side * side, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.linear(self.features(x).flatten(1))
        return logits


@MODELS.register("small_cnn", image=(1, 8, 8), parameters=25_978, mmacs=0.159)
def small_cnn(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Three convolutions of 16, 32 and 64 channels: the student on digits."""
    return SmallCNN((16, 32, 64), num_classes, in_channels, image_size)


@MODELS.register("small_cnn_wide", image=(1, 8, 8), parameters=98_026, mmacs=0.613)
def small_cnn_wide(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """The same with twice the channels: the teacher on digits."""
    return SmallCNN((32, 64, 128), num_classes, in_channels, image_size)
