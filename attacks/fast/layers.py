"""Layers of `attacks.fast.chain`, with input gradients written out (PGD 27 % faster, Square 3 %; example there).

Activations stay channels-last, and three kinds of convolution have a written-out gradient. The library pads channels to
whole vectors and processes small images pixel by pixel: with few input channels, or with stride 2 on narrow images, a
product of matrices is faster. The sums are the same, in another order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Input channels times width up to which products win over the library's convolutions, measured with AVX-512.
BAND, PHASES = 32, 128
FEW = 4  # input channels up to which they do with larger strides
ONLY_INPUT = (True, False, False)  # which gradients of a convolution are wanted


class Link(nn.Module, ABC):
    """A layer, its ReLU included where one follows."""

    relu = False

    def refresh(self) -> None:
        """Take over the weights of the layer that it stands for, as they are now."""
        return

    @abstractmethod
    def outputs(self, x: Tensor) -> Tensor:
        """What it gives before the ReLU, in memory of its own."""

    @abstractmethod
    def gradient(self, grad: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """The gradient with respect to x of what has the gradient `grad` with respect to y, after the ReLU.

        Args:
            grad: like y.
            x: inputs.
            y: outputs, where there is a ReLU; None where there is none.
        """

    def forward(self, x: Tensor) -> Tensor:
        """Outputs."""
        y = self.outputs(x)
        return y.relu_() if self.relu else y

    def back(self, grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `gradient`."""
        return self.gradient(grad, x, y if self.relu else None)


def before_relu(grad: Tensor, y: Tensor | None) -> Tensor:
    """The gradient with respect to what a ReLU was given, from the one with respect to what it made."""
    if y is None:
        return grad
    below: Tensor = torch.ops.aten.threshold_backward(grad, y, 0)
    return below


class Before(Link):
    """A function of images and constants ahead of the first layer, such as a normalisation.

    Args:
        function: `function(x, *constants)`, cheap, because it is done again for its gradient.
        constants: tensors and numbers.
    """

    def __init__(self, function: Callable[..., Tensor], constants: Sequence[object]) -> None:
        super().__init__()
        self.function, self.constants = function, constants

    def outputs(self, x: Tensor) -> Tensor:
        """Like x."""
        return self.function(x, *self.constants)

    def gradient(self, grad: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """Like x."""
        with torch.enable_grad():
            here = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(self.function(here, *self.constants), here, before_relu(grad, y))
        return found


class Cast(Link):
    """Another precision from here on, on the way back as well.

    Args:
        dtype: of the outputs.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def refresh(self) -> None:
        """Refuse: the layers after it were rounded, and their weights would come back unrounded."""
        raise RuntimeError("a chain in lower precision keeps the weights that it was made with")

    def outputs(self, x: Tensor) -> Tensor:
        """Like x."""
        return x.to(self.dtype)

    def gradient(self, grad: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """In the precision of x."""
        return before_relu(grad, y).to(x.dtype)


class Linear(Link):
    """A linear layer on vectors, or on images (N, C, H, W) that are flattened pixel by pixel.

    Args:
        given: the layer.
        image: shape (C, H, W) of what was flattened right before it, channel by channel; None if nothing was.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, given: nn.Linear, image: torch.Size | None) -> None:
        super().__init__()
        self.given, self.image = (given,), image  # in a tuple, because it is no part of this one
        self.refresh()

    def refresh(self) -> None:
        """Weights pixel by pixel, and the bias."""
        (given,) = self.given
        weight = given.weight.detach()
        if self.image is not None:
            weight = weight.view(-1, *self.image).permute(0, 2, 3, 1).flatten(1)
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", None if given.bias is None else given.bias.detach())

    def outputs(self, x: Tensor) -> Tensor:
        """(N, K)."""
        return F.linear(x if x.ndim == 2 else x.permute(0, 2, 3, 1).flatten(1), self.weight, self.bias)

    def gradient(self, grad: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """Like x."""
        found = before_relu(grad, y) @ self.weight
        if x.ndim == 2:
            return found
        n, channels, height, width = x.shape
        return found.view(n, height, width, channels).permute(0, 3, 1, 2)


class Convolution(Link):
    """A convolution, with the library's gradient.

    Args:
        given: the layer.
        size: height and width (H, W) of its inputs.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, given: nn.Conv2d, size: tuple[int, int]) -> None:
        super().__init__()
        self.given, self.size = (given,), size  # in a tuple, because it is no part of this one
        self.how = (given.stride, given.padding, given.dilation, given.groups)
        self.refresh()

    def refresh(self) -> None:
        """Weights channels-last, the bias, and what a form of its own makes of them."""
        (given,) = self.given
        self.register_buffer("weight", given.weight.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if given.bias is None else given.bias.detach())
        self._derive()

    def _derive(self) -> None:
        """Lay out the weights for its own outputs and gradient."""

    def outputs(self, x: Tensor) -> Tensor:
        """(N, C', H', W')."""
        stride, padding, dilation, groups = self.how
        return F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)

    def gradient(self, grad: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """Like x."""
        stride, padding, dilation, groups = self.how
        found: Tensor = torch.ops.aten.convolution_backward(
            before_relu(grad, y), x, self.weight, None, stride, padding, dilation, False, (0, 0), groups, ONLY_INPUT
        )[0]
        return found


class Banded(Convolution):
    """Stride 1, rows at a time: some rows of the inputs times a banded matrix are a row of the outputs, and back."""

    ahead: Tensor
    back_again: Tensor
    biases: Tensor | None

    def _derive(self) -> None:
        (outputs, inputs, high, wide), width = self.weight.shape, self.size[1]
        self.above, aside = (int(by) for by in self.how[1])
        self.columns = width + 2 * aside - wide + 1
        band = self.weight.new_zeros(high, width + 2 * aside, inputs, self.columns, outputs)
        for column in range(self.columns):
            band[:, column : column + wide, :, column] = self.weight.permute(2, 3, 1, 0)
        band = band[:, aside : aside + width].reshape(high, width * inputs, self.columns * outputs)
        self.register_buffer("ahead", band.flatten(0, 1))
        self.register_buffer("back_again", band.permute(2, 0, 1).flatten(1))
        self.register_buffer("biases", None if self.bias is None else self.bias.repeat(self.columns))

    def outputs(self, x: Tensor) -> Tensor:
        """(N, C', H', W')."""
        n, high = len(x), self.weight.shape[2]
        rows = F.pad(x.permute(0, 2, 3, 1).flatten(2), (0, 0, self.above, self.above))
        seen = rows.unfold(1, high, 1).transpose(2, 3).reshape(-1, len(self.ahead))
        y = seen @ self.ahead if self.biases is None else torch.addmm(self.biases, seen, self.ahead)
        return y.view(n, -1, self.columns, len(self.weight)).permute(0, 3, 1, 2)

    def gradient(self, grad: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """One product, then a sum over the rows of the kernel."""
        grad = before_relu(grad, y).permute(0, 2, 3, 1).flatten(2)
        n, rows, _ = grad.shape
        high, above, height = self.weight.shape[2], self.above, self.size[0]
        parts = (grad.flatten(0, 1) @ self.back_again).view(n, rows, high, -1)
        total = parts.new_zeros(n, height, parts.shape[-1])
        for k in range(high):  # row r of the outputs saw row r + k - above of the inputs by the k-th row of the kernel
            first, last = max(0, above - k), min(rows, height + above - k)
            total[:, first + k - above : last + k - above] += parts[:, first:last, k]
        return total.view(n, *self.size, -1).permute(0, 3, 1, 2)


class Phased(Convolution):
    """3x3, stride 2, padding 1, even sides: pixels in even and odd places come from different taps of the kernel.

    Pixels in row 2i lie under row i of the outputs alone, by the kernel's middle row; those in row 2i + 1 under row
    i by the last and under row i + 1 by the first. The same holds for columns.
    """

    taps: Tensor

    def _derive(self) -> None:
        outputs, inputs = self.weight.shape[:2]
        taps = self.weight.new_zeros(2, outputs, 3, 2, inputs)
        for place, (right, odd) in {1: (0, 0), 2: (0, 1), 0: (1, 1)}.items():  # output j or j + 1, pixel 2j or 2j + 1
            taps[right, :, :, odd] = self.weight[..., place].permute(0, 2, 1)
        taps = taps.roll(-1, 2)
        self.register_buffer("taps", taps.reshape(2 * outputs, 6 * inputs))

    def gradient(self, grad: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """One product of each output and its right neighbour, then what the rows give to even and odd rows."""
        n, channels, rows, columns = grad.shape
        pairs = grad.new_empty(n, rows, columns, 2, channels)
        if y is None:
            pairs[:, :, :, 0] = grad.permute(0, 2, 3, 1)
        else:
            here, there = grad.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1)
            torch.ops.aten.threshold_backward.grad_input(here, there, 0, grad_input=pairs[:, :, :, 0])
        pairs[:, :, :-1, 1] = pairs[:, :, 1:, 0]
        pairs[:, :, -1, 1] = 0
        parts = (pairs.view(-1, 2 * channels) @ self.taps).view(n, rows, columns, 3, -1)
        found = grad.new_empty(n, rows, 2, columns, parts.shape[-1])
        found[:, :, 0] = parts[:, :, :, 0]
        torch.add(parts[:, :-1, :, 1], parts[:, 1:, :, 2], out=found[:, :-1, 1])
        found[:, -1, 1] = parts[:, -1, :, 1]
        return found.view(n, *self.size, -1).permute(0, 3, 1, 2)


class Blocked(Convolution):
    """A kernel as wide and high as some strides: products with all of its taps, added up in blocks of a stride."""

    taps: Tensor

    def _derive(self) -> None:
        outputs, inputs, high, wide = self.weight.shape
        (self.stride, _), self.pad = self.how[0], tuple(int(by) for by in self.how[1])
        self.blocks = high // self.stride, wide // self.stride
        self.register_buffer("taps", self.weight.permute(0, 2, 3, 1).reshape(outputs, high * wide * inputs))

    def gradient(self, grad: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        """One product, then a sum over the blocks of the kernel."""
        grad = before_relu(grad, y).permute(0, 2, 3, 1)
        n, rows, columns, channels = grad.shape
        (down, across), stride, inputs = self.blocks, self.stride, x.shape[1]
        parts = (grad.reshape(-1, channels) @ self.taps).view(n, rows, columns, down, stride, across, stride * inputs)
        (height, width), (above, aside) = self.size, self.pad
        whole = [-(-(side + 2 * pad) // stride) for side, pad in zip(self.size, self.pad, strict=True)]
        total = parts.new_zeros(n, whole[0], stride, whole[1], stride * inputs)
        for i in range(down):
            for j in range(across):
                total[:, i : i + rows, :, j : j + columns] += parts[:, :, :, i, :, j].transpose(2, 3)
        images = total.view(n, whole[0] * stride, whole[1] * stride, inputs)
        return images[:, above : above + height, aside : aside + width].permute(0, 3, 1, 2)


def convolution(given: nn.Conv2d, size: tuple[int, int]) -> Convolution:
    """The fastest form of a convolution of inputs of some height and width."""
    plain, breadth = (given.groups, given.dilation) == (1, (1, 1)), given.in_channels * size[1]
    if plain and given.stride == (1, 1) and breadth <= BAND:
        return Banded(given, size)
    usual = (given.kernel_size, given.stride, given.padding) == ((3, 3), (2, 2), (1, 1))
    if plain and usual and breadth <= PHASES and math.gcd(*size) % 2 == 0:
        return Phased(given, size)
    square = given.stride[0] == given.stride[1] > 1 and all(side % given.stride[0] == 0 for side in given.kernel_size)
    if plain and square and given.in_channels <= FEW:
        return Blocked(given, size)
    return Convolution(given, size)
