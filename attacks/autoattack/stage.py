"""Base of the native AutoAttack stages: samples not fooled yet, and input gradients that are always finite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.base import Attack, check_inputs, predicted
from attacks.contexts import mode
from attacks.fast.prepared import verdict_of
from attacks.objectives import Objective, ObjectiveWithSlope
from attacks.passes import Passes
from attacks.plugins.sketch import check_settings
from attacks.threat import ThreatModel


class Standing:
    """The samples of a batch, and which of them no point has fooled yet.

    Args:
        model: whose verdicts count; those of a prepared model are the verdicts of the model it was made from.
        x: (N, C, H, W) originals; a sample that is wrong already has fallen and stays where it is.
        y: (N,) labels.

    Attributes:
        logits: (N, K) at x.
        x_adv: (N, C, H, W) the point that fooled a sample, else x.
        left: (N,) bool, whether it stands.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self._verdict = verdict_of(model)
        self.logits: Tensor = model(x) if self._verdict is None else self._verdict(x)
        self.x_adv = x.clone()
        self.left = predicted(self.logits) == y

    @property
    def rows(self) -> Tensor:
        """Positions (M,) of the samples that stand."""
        return torch.where(self.left)[0]

    def record(self, rows: Tensor, points: Tensor, fooled: Tensor) -> Tensor | None:
        """Store successful adversarial examples and mark their samples as fooled.

        Args:
            rows: (M,) positions in the batch, each once.
            points: (M, C, H, W) candidates.
            fooled: (M,) bool, whether the searched model is fooled there.

        Returns:
            (M,) bool, which of them fell: the fooled ones, but where the model was prepared and its original is not
            fooled. None if none did.
        """
        (hits,) = torch.where(fooled)
        if len(hits) and self._verdict is not None:
            hits = hits[predicted(self._verdict(points[hits])) != self.y[rows[hits]]]
        if len(hits) == 0:
            return None
        self.x_adv[rows[hits]] = points[hits]
        self.left[rows[hits]] = False
        return torch.zeros_like(fooled).index_fill_(0, hits, True)

    def target(self, rank: int) -> Tensor:
        """The wrong class (N,) that is the rank-th most likely at x, from 1."""
        others = self.logits.scatter(1, self.y[:, None], -torch.inf)
        return others.argsort(dim=1, descending=True, stable=True)[:, rank - 1]


@dataclass(frozen=True)
class Stage(ABC):
    """A search that ends for a sample at the first point which fools the model.

    Args:
        threat: norm and radius.
    """

    threat: ThreatModel = ThreatModel()

    revision = 3
    implementation = "native"
    prepared = True
    min_classes = 2
    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_settings(self.name, type(self), vars(self))

    @property
    def stages(self) -> tuple[Attack, ...]:
        """() - one stage, itself."""
        return ()

    def left_out(self, num_classes: int) -> str | None:
        """Why the stage cannot run with so few classes; None if it can."""
        if num_classes < self.min_classes:
            return f"needs at least {self.min_classes} classes, the model has {num_classes}"
        return None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        """Adversarial inputs like x (N, C, H, W), inside box and ball; x itself where the attack failed.

        Raises:
            ValueError: if the inputs cannot be worked with, or the model has too few classes for this stage.
        """
        check_inputs(self.name, x, y)
        x = x.detach().contiguous()
        if len(x) == 0:
            return x.clone()
        with mode(model, train=False), torch.no_grad():
            standing = Standing(model, x, y)
            reason = self.left_out(standing.logits.shape[1])
            if reason is not None:
                raise ValueError(f"{self.name}: {reason}")
            if bool(standing.left.any()):
                self.search(model, standing, generator)
        return standing.x_adv

    @abstractmethod
    def search(self, model: nn.Module, standing: Standing, generator: torch.Generator) -> None:
        """Look for a point that fools each standing sample; gradients are off and the model is in eval mode.

        Draws are made for every sample of the batch, standing or not, so that what one sample gets does not depend
        on the others.
        """

    @abstractmethod
    def passes(self, num_classes: int) -> Passes:
        """Passes per attacked sample, at most."""


def input_gradient(values: Tensor, x: Tensor, slope: Tensor | None = None) -> Tensor:
    """The gradient of each value with respect to its own input; zero where the model passes none on.

    Args:
        values: (M, ...) some per sample.
        x: (M, C, H, W), requires grad.
        slope: like values, what they are weighted with before they are added up; None is ones.

    Returns:
        (M, C, H, W), finite.
    """
    if not values.requires_grad:
        return torch.zeros_like(x)
    slope = torch.ones_like(values) if slope is None else slope
    (grad,) = torch.autograd.grad(values, x, slope, allow_unused=True)
    return torch.zeros_like(x) if grad is None else grad.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def values_and_gradient(objective: Objective, logits: Tensor, rows: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values of an objective on logits (M, K) at batch positions rows (M,), and its gradient at x (M, C, H, W)."""
    if isinstance(objective, ObjectiveWithSlope):
        values, slope = objective.with_slope(logits, rows)
        return values, input_gradient(logits, x, slope)
    with torch.enable_grad():
        values = objective(logits, rows)
    return values.detach(), input_gradient(values, x)


def lengths(delta: Tensor, norm: str) -> Tensor:
    """The norm of each sample's perturbation (M, ...), shaped to divide it."""
    flat = delta.flatten(1)
    size = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
    return size.view(-1, *[1] * (delta.ndim - 1))
