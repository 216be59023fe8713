"""Recipes: how long and with which optimiser a method trains. Plain data, free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

EPS_8 = 8 / 255
DIGITS_EPS = 0.15


@dataclass(frozen=True)
class Recipe:
    """A training schedule (SGD).

    Attributes:
        epochs: passes over the training part.
        lr: initial learning rate.
        milestones: epochs, counted from 0, from which the rate is multiplied by the next of `factors`.
        factors: one factor per milestone; one number serves all.
        weight_decay, momentum, nesterov: of SGD, on all parameters.
        batch_size: samples per optimiser step.
        augment: "none", "crop_flip" (zero padding 4), "crop_flip_reflect", or None for the data set's own.
        holdout: whether the select and steer parts are kept out of training.
        selection: "best" (average plus worst class under PGD-10 on the select part) or "last".
        threat_eps: the Linf radius that the method's eps and step_size are stated for; runs at another radius
            scale both in proportion.
        settings: method settings that belong to the recipe; epoch-valued ones count in its epochs.
        source: where the figures come from.
    """

    epochs: int
    lr: float
    milestones: tuple[int, ...] = ()
    factors: float | tuple[float, ...] = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    nesterov: bool = False
    batch_size: int = 128
    augment: str | None = None
    holdout: bool = True
    selection: str = "best"
    threat_eps: float = EPS_8
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not self.lr > 0:
            got = f"{self.epochs}, {self.batch_size} and {self.lr}"
            raise ValueError(f"recipe: expected epochs >= 1, batch_size >= 2 and lr > 0, got {got}")
        if self.selection not in ("best", "last"):
            raise ValueError(f"recipe: expected selection 'best' or 'last', got {self.selection!r}")
        if isinstance(self.factors, tuple) and len(self.factors) != len(self.milestones):
            raise ValueError(
                f"recipe: expected one factor for each of {len(self.milestones)} milestones, got {len(self.factors)}"
            )

    def lr_at(self, epoch: int) -> float:
        """Learning rate in an epoch, counted from 0."""
        factors = self.factors if isinstance(self.factors, tuple) else (self.factors,) * len(self.milestones)
        rate = self.lr
        for milestone, factor in zip(self.milestones, factors, strict=True):
            rate *= factor if epoch >= milestone else 1.0
        return rate


def digits(**changes: Any) -> Recipe:
    """The schedule for scikit-learn's digits: small images, 1,197 of them, Linf radius 0.15, steps of eps / 4."""
    settings = {"eps": DIGITS_EPS, "step_size": DIGITS_EPS / 4, **changes.pop("settings", {})}
    plain: dict[str, Any] = {
        "epochs": 30, "lr": 0.1, "milestones": (22, 27), "augment": "none", "selection": "last",
        "threat_eps": DIGITS_EPS, "source": "this suite",
    }  # fmt: skip
    return Recipe(**{**plain, **changes, "settings": settings})


RICE = Recipe(
    epochs=200, lr=0.1, milestones=(100, 150), augment="crop_flip_reflect",
    source="Rice et al. 2020, released training script",
)  # fmt: skip

DEFAULT = {"paper": RICE, "digits": digits()}
