"""SWA, stochastic weight averaging (Izmailov et al., UAI 2018, arXiv:1803.05407), around any method.

In adversarial training: Chen et al., ICLR 2021, "Robust Overfitting May Be Mitigated by Properly Learned Smoothening".

Inner problem:  the host's.
Outer problem:  the host's; selected, stored and evaluated is the mean of the weights after each epoch from a start on,
                and before it the weights themselves.
State:          the mean, weights and BatchNorm statistics.
Defaults:       from three quarters of the run on. The schedule is the host's; the first paper keeps the rate high while
                it averages, the second averages from the first drop of the rate on. [remembered, not looked up]
Departures:     the first paper estimates BatchNorm's statistics anew, with one more pass over clean training data; here
                they are averaged like the weights, so that they stay those of the inputs trained on, and cost nothing.
                With a start at 1 no epoch is averaged: the host bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attacks.plugins.ranges import Fraction
from methods.averaging import frozen_copy, update_average
from methods.base import Context
from methods.registry import COMPOSITIONS
from methods.wrapper import Wrapper


@COMPOSITIONS.register("swa")
class SWA(Wrapper):
    """The mean of the weights after the last epochs is evaluated instead of them.

    Args:
        swa_start: share of the run's epochs before the first that is averaged; 1 is the bare method.
    """

    averages_weights = True

    swa_average: nn.Module
    swa_count: Tensor

    def __init__(self, *, swa_start: Fraction = 0.75, **host: Any) -> None:
        super().__init__(**host)
        self.swa_start = swa_start
        self.register_buffer("swa_count", torch.zeros((), dtype=torch.int64))  # epochs in the mean

    def setup(self, model: nn.Module, ctx: Context) -> None:
        """Allocate the mean."""
        super().setup(model, ctx)
        self.swa_average = frozen_copy(super().evaluation_model(model))

    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        """Add the epoch's weights to the mean."""
        super().end_epoch(model, ctx)
        if ctx.epoch >= self.swa_start * ctx.epochs:
            self.swa_count.add_(1)
            update_average(self.swa_average, super().evaluation_model(model), 1 / int(self.swa_count))

    def evaluation_model(self, model: nn.Module) -> nn.Module:
        """The mean, once it holds an epoch."""
        return self.swa_average if int(self.swa_count) else super().evaluation_model(model)
