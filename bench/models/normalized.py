"""Normalisation as a layer of the model, so that attacks and radii are in the units of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import wrap

from bench.errors import UsageError


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
