"""Averages of weights, for the methods and compositions that evaluate or consult one.

BatchNorm's statistics are averaged like the weights: they then belong to inputs like those of training, adversarial
ones included, and cost no pass. Counters are copied.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose weights ask for no gradient; as an attribute of a method it is in checkpoints."""
    average = copy.deepcopy(model)
    return average.eval().requires_grad_(False)


@torch.no_grad()
def move(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move an average towards a model by a share of the way: average <- (1 - share) average + share model.

    Args:
        average: changed in place.
        model: of the same architecture; left as it is.
        share: from 0, which changes no weight, to 1, which copies bit for bit.
    """
    pairs = list(zip(_tensors(average), _tensors(model), strict=True))
    for mine, theirs in pairs:
        if share == 1 or not mine.is_floating_point():
            mine.copy_(theirs)
    if 0 < share < 1:
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floats], [theirs.detach() for _, theirs in floats], share)


def warm(decay: float, step: int) -> float:
    """The decay of a moving average at a step of the run, from 0: that of a short average at first."""
    return min(decay, (1 + step) / (10 + step))


def _tensors(model: nn.Module) -> list[Tensor]:
    """Weights and buffers, a shared one once."""
    return [*model.parameters(), *model.buffers()]
