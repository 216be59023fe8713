"""Moving averages of a model's weights, for methods and compositions that evaluate one or predict with it.

BatchNorm's statistics are averaged like the weights: they then match the inputs of training, adversarial ones included,
and cost no pass. Counters are copied.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose weights need no gradient; as an attribute of a method it is part of checkpoints."""
    average = copy.deepcopy(model)
    return average.eval().requires_grad_(False)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, share: float) -> None:
    """Update a moving average in place: average <- (1 - share) average + share model.

    Args:
        average: the average.
        model: of the same architecture; not changed.
        share: weight of the model, from 0, which changes no weight, to 1, which copies bit for bit.
    """
    pairs = list(zip(_weights_and_buffers(average), _weights_and_buffers(model), strict=True))
    for mine, theirs in pairs:
        if share == 1 or not mine.is_floating_point():
            mine.copy_(theirs)
    if 0 < share < 1:
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floats], [theirs.detach() for _, theirs in floats], share)


def warm_decay(decay: float, step: int) -> float:
    """The decay at a step of the run, counted from 0, with warm-up: smaller during the first steps."""
    return min(decay, (1 + step) / (10 + step))


def _weights_and_buffers(model: nn.Module) -> list[Tensor]:
    """Weights and buffers; one that is shared appears once."""
    return [*model.parameters(), *model.buffers()]
