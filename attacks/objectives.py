"""Attack objectives: functions of logits that an attack maximises, one value per sample.

Each factory takes targets for the whole batch and returns `objective(logits, rows) -> (M,)`, where logits (M, K)
belong to the batch positions rows (M,). Most also know their slope, the gradient with respect to the logits, which
saves a search the graph from logits to values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]


class ObjectiveWithSlope(ABC):
    """An objective with a written-out gradient with respect to the logits, its slope.

    Args:
        targets: what belongs to each sample: classes (N,) that logits are gathered at, or rows of (N, ...).
    """

    def __init__(self, *targets: Tensor) -> None:
        self._targets = targets
        self._rows: Tensor | None = None
        self._columns: tuple[Tensor, ...] = ()

    @abstractmethod
    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Values (M,) of logits (M, K) at the batch positions rows (M,), differentiable."""

    @abstractmethod
    def with_slope(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values (M,), and the gradient (M, K) of each with respect to its logits; neither has a graph."""

    def slope(self, logits: Tensor, rows: Tensor) -> Tensor:
        """The gradient alone, for callers that do not need the values."""
        return self.with_slope(logits, rows)[1]

    def columns(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The targets of these samples, classes as (M, 1); looked up again only when other rows are asked for."""
        if rows is not self._rows:
            found = (targets[rows] for targets in self._targets)
            self._rows, self._columns = rows, tuple(each[:, None] if each.ndim == 1 else each for each in found)
        return self._columns


class _CrossEntropy(ObjectiveWithSlope):
    _minus_one_hot: tuple[Tensor, Tensor] | None = None  # of certain rows

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        (label,) = self.columns(rows)
        return F.cross_entropy(logits, label[:, 0], reduction="none")

    @torch.no_grad()
    def with_slope(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        (label,) = self.columns(rows)
        log_probs = F.log_softmax(logits, 1)
        return -log_probs.gather(1, label)[:, 0], self._slope(log_probs, rows)

    @torch.no_grad()
    def slope(self, logits: Tensor, rows: Tensor) -> Tensor:
        return self._slope(F.log_softmax(logits, 1), rows)

    def _slope(self, log_probs: Tensor, rows: Tensor) -> Tensor:
        """As autograd computes it, bit for bit."""
        cached = self._minus_one_hot
        if cached is None or cached[0] is not rows or cached[1].dtype != log_probs.dtype:
            (label,) = self.columns(rows)
            cached = self._minus_one_hot = rows, torch.zeros_like(log_probs).scatter_(1, label, -1)
        slope: Tensor = torch.ops.aten._log_softmax_backward_data(cached[1], log_probs, 1, log_probs.dtype)
        return slope


class _Margin(ObjectiveWithSlope):
    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        (label,) = self.columns(rows)
        return logits.scatter(1, label, -torch.inf).amax(1) - logits.gather(1, label)[:, 0]

    @torch.no_grad()
    def with_slope(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        (label,) = self.columns(rows)
        best, other = logits.scatter(1, label, -torch.inf).max(1, keepdim=True)
        slope = torch.zeros_like(logits).scatter_(1, other, 1).scatter_(1, label, -1)
        return (best - logits.gather(1, label))[:, 0], slope


class _TargetedMargin(ObjectiveWithSlope):
    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        label, target = self.columns(rows)
        return (logits.gather(1, target) - logits.gather(1, label))[:, 0]

    @torch.no_grad()
    def with_slope(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        label, target = self.columns(rows)
        return self(logits, rows), torch.zeros_like(logits).scatter_(1, target, 1).scatter_(1, label, -1)


class _TargetedDLR(ObjectiveWithSlope):
    _minus: Tensor | None = None

    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        label, target = self.columns(rows)
        logits = _bounded_below(logits)
        difference = (logits.gather(1, target) - logits.gather(1, label))[:, 0]
        return difference / self._scale(_top_four(logits).values)

    @torch.no_grad()
    def with_slope(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        label, target = self.columns(rows)
        given, logits = logits, _bounded_below(logits)
        top = _top_four(logits)
        scale = self._scale(top.values)[:, None]
        values = (logits.gather(1, target) - logits.gather(1, label)) / scale
        each = scale.reciprocal()
        slope = torch.zeros_like(logits).scatter_(1, top.indices, values * each * self._shares(logits))
        slope = slope.scatter_add_(1, target, each).scatter_add_(1, label, -each)
        return values[:, 0], slope.masked_fill_(given == -torch.inf, 0)

    def _scale(self, top: Tensor) -> Tensor:
        return TINY - top @ self._shares(top)

    def _shares(self, like: Tensor) -> Tensor:
        """Of the four largest logits in minus the scale."""
        if self._minus is None:
            self._minus = like.new_tensor([-1.0, 0.0, 0.5, 0.5])
        return self._minus


class _KL(ObjectiveWithSlope):
    def __call__(self, logits: Tensor, rows: Tensor) -> Tensor:
        probs, entropy, _ = self.columns(rows)
        return -entropy[:, 0] - (probs * F.log_softmax(logits, 1)).sum(1)

    @torch.no_grad()
    def with_slope(self, logits: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self(logits, rows), self.slope(logits, rows)

    @torch.no_grad()
    def slope(self, logits: Tensor, rows: Tensor) -> Tensor:
        probs, _, total = self.columns(rows)
        return logits.softmax(1).mul_(total).sub_(probs)


TINY = 1e-12


def cross_entropy(y: Tensor) -> ObjectiveWithSlope:
    """Cross-entropy with the labels y (N,)."""
    return _CrossEntropy(y)


def margin(y: Tensor) -> ObjectiveWithSlope:
    """The largest z_k with k != y minus z_y: positive once misclassified (Carlini and Wagner 2017, their f6).

    >>> margin(torch.tensor([0]))(torch.tensor([[2.0, 3.0, 1.0]]), torch.tensor([0]))
    tensor([1.])
    """
    return _Margin(y)


def targeted_margin(y: Tensor, target: Tensor) -> ObjectiveWithSlope:
    """The difference z_t - z_y to a class target (N,)."""
    return _TargetedMargin(y, target)


def dlr(y: Tensor) -> Objective:
    """Difference of logits ratio: margin over distance of 1st to 3rd logit (Croce and Hein 2020, eq. 6).

    Raises:
        ValueError: with fewer than three classes, where the ratio is not defined.
    """
    difference = margin(y)

    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        if logits.shape[1] < 3:
            raise ValueError(f"dlr: expected at least 3 classes, got {logits.shape[1]}; use the margin instead")
        logits = _bounded_below(logits)
        top = logits.topk(3, dim=1).values
        return difference(logits, rows) / (top[:, 0] - top[:, 2] + TINY)

    return objective


def targeted_dlr(y: Tensor, target: Tensor) -> ObjectiveWithSlope:
    """The ratio towards a class target (N,): z_t - z_y over the 1st logit minus the mean of 3rd and 4th.

    Croce and Hein 2020, eq. 7.

    Raises:
        ValueError: with fewer than four classes, where the ratio is not defined.
    """
    return _TargetedDLR(y, target)


def kl(probs: Tensor) -> ObjectiveWithSlope:
    """KL(probs || softmax(logits)) with fixed targets probs (N, K), summed over classes."""
    return _KL(probs, torch.special.entr(probs).sum(1), probs.sum(1))


def _bounded_below(logits: Tensor) -> Tensor:
    """Logits with the least finite one of the row in place of -inf, by which a model rules out a class.

    Ratios of logits would be 0 or NaN with -inf in them, and an attack on them would find nothing.
    """
    ruled_out = logits == -torch.inf
    least = logits.detach().masked_fill(ruled_out, torch.inf).amin(1, keepdim=True)
    return torch.where(ruled_out, least, logits)


def _top_four(logits: Tensor) -> torch.return_types.topk:
    """The four largest logits and where they are."""
    if logits.shape[1] < 4:
        raise ValueError(f"targeted dlr: expected at least 4 classes, got {logits.shape[1]}; use the margin instead")
    return logits.topk(4, dim=1)
