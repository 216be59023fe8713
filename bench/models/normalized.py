"""Normalisation as a layer of the model, so that attacks and radii are in the units of the image.

A file of weights may hold a mean and a deviation, too. They are the input's where their shape says one value per
channel and their place that they are in front of the network; others, of a loss or a head, are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from os.path import commonprefix

import torch
from torch import Tensor, nn
from torch.fx import wrap

from bench.errors import UsageError

# Last parts of the names of a stored mean and deviation.
PAIRS = (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"))
# Names of a layer in front of the network.
FRONT = re.compile(
    r"0|((input|data|image|img)_?)?(norm|normali[sz]\w*|standardi[sz]\w*|pre_?proc\w*|transforms?|scal(e|er|ing))(_?layer)?"
)
CHANNELS = 16


class Normalized(nn.Module):
    """A model that takes images in [0, 1] and normalises them: `model((x - mean) / std)`.

    >>> model = Normalized(nn.Flatten(), mean=[0.5], std=[0.25])
    >>> model(torch.full((1, 1, 1, 2), 0.75)).tolist()
    [[1.0, 1.0]]

    Args:
        model: takes normalised images.
        mean: of each channel, or one for all, in units of x in [0, 1].
        std: likewise, above 0.

    Raises:
        UsageError: if the two differ in length, or a deviation is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> None:
        super().__init__()
        means = torch.as_tensor(mean, dtype=torch.float32).flatten()
        stds = torch.as_tensor(std, dtype=torch.float32).flatten()
        if len(means) != len(stds) or not bool((stds > 0).all()):
            raise UsageError(
                f"normalisation: expected a mean and a deviation above 0 per channel, got {means.tolist()} "
                f"and {stds.tolist()}"
            )
        self.model = model
        self.register_buffer("mean", means.view(1, -1, 1, 1))
        self.register_buffer("std", stds.view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of x (N, C, H, W) in [0, 1]."""
        logits: Tensor = self.model(normalize(x, self.mean, self.std))
        return logits


@wrap  # torch.fx traces it as one call
def normalize(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images (N, C, H, W) of mean 0 and deviation 1, from mean and deviation (1, C or 1, 1, 1).

    Raises:
        ValueError: if the images have another number of channels.
    """
    if mean.shape[1] not in (1, x.shape[1]):
        raise ValueError(
            f"normalisation: expected images with {mean.shape[1]} channels, got {x.shape[1]}; "
            "give one mean and one deviation per channel"
        )
    return (x - mean) / std


def stored_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names of a mean and of a deviation that are stored together."""
    known = list(names)
    holders = {name: name.rpartition(".") for name in known}
    return [
        (name, holder + dot + std)
        for name, (holder, dot, last) in holders.items()
        for mean, std in PAIRS
        if last == mean and holder + dot + std in holders
    ]


def input_pair(tensors: Mapping[str, Tensor], channels: int | None, order: Sequence[str]) -> tuple[str, ...]:
    """Names of the mean and the deviation that are the input's; empty if there are none, or several.

    Args:
        tensors: the candidates by their names.
        channels: of the images; None where they are not known.
        order: all names of the file or the network, from the input on if they are not sorted as text.
    """
    first = set(order[:2]) if list(order) != sorted(order) else set()
    common = commonprefix(order)
    outer = common[: common.rfind(".") + 1]  # of all names, so no layer
    found = []
    for pair in stored_pairs(tensors):
        layer = pair[0].removeprefix(outer).rpartition(".")[0].lower()
        in_front = not layer or bool(FRONT.fullmatch(layer))
        if all(_is_per_channel(tensors[name], channels, in_front and bool(layer)) for name in pair):
            found += [pair] * (in_front or set(pair) == first)
    return found[0] if len(found) == 1 else ()


def describe_pair(pair: Sequence[str], values: Sequence[Tensor]) -> str:
    """Both names with their values to four digits, for messages."""
    texts = (", ".join(f"{value:.4g}" for value in tensor.flatten().tolist()) for tensor in values)
    return " and ".join(f"{name} ({text})" for name, text in zip(pair, texts, strict=True))


def like_buffer(values: Tensor, like: Tensor) -> Tensor:
    """One value per channel in the shape of a buffer; a single value is repeated."""
    flat = values.flatten()
    return flat.expand(like.numel()).reshape(like.shape) if len(flat) in (1, like.numel()) else flat


def _is_per_channel(values: Tensor, channels: int | None, is_layer: bool) -> bool:
    """Whether a tensor holds a value per channel; or one for all, in the shape of images or of a layer for them."""
    if values.numel() != max(values.shape, default=1) or values.numel() > CHANNELS:
        return False
    one_for_all = values.numel() == 1 and (values.ndim >= 3 or is_layer)
    return channels is None or values.numel() == channels or one_for_all
