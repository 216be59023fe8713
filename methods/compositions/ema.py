"""EMA, the moving average of the weights (in this field Gowal et al. 2020, arXiv:2010.03593), around any method.

Inner problem:  the host's.
Outer problem:  the host's; selected, stored and evaluated is avg <- d avg + (1 - d) w, after each step.
State:          avg, weights and BatchNorm statistics.
Defaults:       decay 0.999, warmed up: d = min(decay, (1 + t) / (10 + t)) at step t of the run, so that short runs
                forget the first weights as well. [the usual form; no single source]
Departures:     BatchNorm's statistics are averaged like the weights. The training itself does not see the average: at
                decay 0 the evaluated weights are the host's bit for bit.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from attacks.plugins.ranges import Decay
from methods.averaging import frozen_copy, update_average, warm_decay
from methods.base import Context
from methods.registry import COMPOSITIONS
from methods.wrapper import Wrapper


@COMPOSITIONS.register("ema")
class EMA(Wrapper):
    """The moving average of the weights is evaluated instead of them.

    Args:
        ema_decay: what remains of the average at a step; 0 is the bare method.
    """

    averages_weights = True

    ema_average: nn.Module

    def __init__(self, *, ema_decay: Decay = 0.999, **host: Any) -> None:
        super().__init__(**host)
        self.ema_decay = ema_decay

    def setup(self, model: nn.Module, ctx: Context) -> None:
        """Start the average at the initial weights."""
        super().setup(model, ctx)
        self.ema_average = frozen_copy(super().evaluation_model(model))

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        """Update the average."""
        super().after_step(model, ctx)
        decay = warm_decay(self.ema_decay, ctx.epoch * ctx.steps + ctx.step)
        update_average(self.ema_average, super().evaluation_model(model), 1 - decay)

    def evaluation_model(self, model: nn.Module) -> nn.Module:
        """The average."""
        return self.ema_average
