"""What an ascent maximises: functions of logits, one value per sample.

Each factory takes targets for the whole batch and returns `objective(logits, rows) -> (M,)`, where logits (M, K)
belong to the batch positions rows (M,). An objective may bring `derivative(logits, rows) -> (M, K)`, the gradient of
each value with respect to its logits, which saves an ascent the graph of the objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Differentiated:
    """An objective with its derivative in closed form."""

    value: Objective
    derivative: Objective

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The value of each sample, (M,)."""
        return self.value(logits, rows)


def cross_entropy(y: Tensor) -> Objective:
    """Cross-entropy with the labels y (N,)."""

    def derivative(logits: Tensor, rows: Tensor) -> Tensor:
        own = y[rows, None]
        return logits.softmax(1).scatter_add_(1, own, logits.new_full((1, 1), -1).expand_as(own))

    return Differentiated(lambda logits, rows: F.cross_entropy(logits, y[rows], reduction="none"), derivative)


def margin(y: Tensor) -> Objective:
    """The largest z_k with k != y minus z_y: positive once misclassified (Carlini and Wagner 2017, their f6)."""
    return lambda logits, rows: _best_other(logits, y[rows]) - _own(logits, y[rows])


def targeted_margin(y: Tensor, target: Tensor) -> Objective:
    """The difference z_t - z_y to a class target (N,)."""
    return lambda logits, rows: _own(logits, target[rows]) - _own(logits, y[rows])


def dlr(y: Tensor) -> Objective:
    """Difference of logits ratio: margin over distance of 1st to 3rd logit (Croce and Hein 2020, eq. 6).

    Raises:
        ValueError: with fewer than three classes, where the ratio is not defined.
    """

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        if logits.shape[1] < 3:
            raise ValueError(f"dlr: expected at least 3 classes, got {logits.shape[1]}; use the margin instead")
        top = logits.topk(3, dim=1).values
        return (_best_other(logits, y[rows]) - _own(logits, y[rows])) / (top[:, 0] - top[:, 2] + 1e-12)

    return objective


def targeted_dlr(y: Tensor, target: Tensor) -> Objective:
    """The ratio towards a class target (N,): z_t - z_y over the 1st logit minus the mean of 3rd and 4th.

    Croce and Hein 2020, eq. 7.

    Raises:
        ValueError: with fewer than four classes, where the ratio is not defined.
    """

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        if logits.shape[1] < 4:
            raise ValueError(
                f"targeted dlr: expected at least 4 classes, got {logits.shape[1]}; use the margin instead"
            )
        top = logits.topk(4, dim=1).values
        scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12
        return (_own(logits, target[rows]) - _own(logits, y[rows])) / scale

    return objective


def kl(probs: Tensor) -> Objective:
    """KL(probs || softmax(logits)) with fixed targets probs (N, K), summed over classes."""
    entropy, total = torch.special.entr(probs).sum(1), probs.sum(1, keepdim=True)
    return Differentiated(
        lambda logits, rows: -entropy[rows] - (probs[rows] * F.log_softmax(logits, 1)).sum(1),
        lambda logits, rows: logits.softmax(1).mul_(total[rows]).sub_(probs[rows]),
    )


def _own(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def _best_other(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -torch.inf).amax(1)
