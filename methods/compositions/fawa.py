"""FAWA, the fairness-aware weight average of CFA (Wei et al., CVPR 2023, arXiv:2303.14460), around any method.

CFA as published is `fawa:cfa`.

Inner problem:  the host's.
Outer problem:  the host's; selected, stored and evaluated is an average that leaves out unfair epochs: after an epoch
                whose lowest class accuracy under PGD-10 on held-out training samples is at least the threshold, avg <-
                a avg + (1 - a) w, the first time avg <- w. Until then the weights themselves are evaluated.
State:          avg, weights and BatchNorm statistics; whether it holds an epoch; the class accuracies that decided.
Defaults:       a 0.85, threshold 0.2, from epoch 50 of 200 on (`fawa_start` 0.25, a share of the run). [read in the
                paper] The released code has a 0.88, threshold 0.24 (0.2 in its README), from the first epoch on.
Departures:     the held-out samples are the suite's steer part, 300 a class on CIFAR-10; the paper holds out 100. At
                a = 0, threshold 0 and start 0 the evaluated weights are the host's bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attacks.pgd import PGD
from attacks.plugins.ranges import Decay, Fraction, NonNegative
from attacks.threat import ThreatModel
from methods.averaging import frozen_copy, update_average
from methods.base import Context
from methods.losses import class_means, robust_class_counts
from methods.registry import COMPOSITIONS
from methods.wrapper import Wrapper


@COMPOSITIONS.register("fawa")
class FAWA(Wrapper):
    """An average over the epochs in which no class is left behind is evaluated instead of the weights.

    Args:
        fawa_decay: what remains of the average when an epoch is taken in.
        fawa_threshold: the lowest class accuracy under attack, a fraction, at which an epoch is taken in.
        fawa_start: share of the run's epochs before the first that may be taken in.
    """

    averages_weights = True
    reported = ("fawa_accuracy",)

    fawa_average: nn.Module
    fawa_begun: Tensor
    fawa_accuracy: Tensor

    def __init__(
        self, *, fawa_decay: Decay = 0.85, fawa_threshold: NonNegative = 0.2, fawa_start: Fraction = 0.25, **host: Any
    ) -> None:
        super().__init__(**host)
        self.fawa_decay, self.fawa_threshold, self.fawa_start = fawa_decay, fawa_threshold, fawa_start
        self.register_buffer("fawa_begun", torch.zeros((), dtype=torch.bool))
        self.register_buffer("fawa_accuracy", torch.zeros(self.num_classes, dtype=torch.float64))

    def setup(self, model: nn.Module, ctx: Context) -> None:
        """Allocate the average; refuse a run without held-out samples to select epochs by."""
        super().setup(model, ctx)
        if ctx.validator is None:
            raise ValueError("fawa: expected held-out training samples to judge by, got none; use recipe.holdout=true")
        self.fawa_average = frozen_copy(super().evaluation_model(model))

    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        """Add the epoch's weights to the average if every class is robust enough."""
        super().end_epoch(model, ctx)
        if ctx.epoch < self.fawa_start * ctx.epochs:
            return
        weights = super().evaluation_model(model)
        attack = PGD(ThreatModel(self.norm, self.eps), steps=10, step_size=self.step_size)
        _, right, counts = robust_class_counts(*ctx.validate(attack, weights), self.num_classes)
        self.fawa_accuracy.copy_(class_means(right, counts))
        if self.fawa_accuracy.min().item() >= self.fawa_threshold:
            update_average(self.fawa_average, weights, 1 - self.fawa_decay if bool(self.fawa_begun) else 1.0)
            self.fawa_begun.fill_(True)

    def evaluation_model(self, model: nn.Module) -> nn.Module:
        """The average, once it holds an epoch."""
        return self.fawa_average if bool(self.fawa_begun) else super().evaluation_model(model)
