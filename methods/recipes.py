"""Training recipes: epochs, learning-rate schedule, optimiser and batch size of a method. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, get_type_hints

from attacks.plugins.ranges import Decay, Index, NonNegative, Positive, at_least, between, problems

EPS_8 = 8 / 255
MOST_EPOCHS = 100_000  # a number with more zeros is a slip
DIGITS_EPS = 0.15
SHORT_EPOCHS = 30
RISE = 0.3  # share of the steps of a one-cycle schedule before its peak


@dataclass(frozen=True)
class Recipe:
    """A training schedule (SGD).

    Attributes:
        epochs: passes over the training part.
        lr: initial learning rate; the peak of a one-cycle schedule.
        schedule: "steps" (constant within an epoch, cut at the milestones) or "one_cycle" (set at every step: linear
            from 0 to `lr` over the first three tenths of all steps, then linear to 0; no milestones).
        milestones: epochs, counted from 0, from which the rate is multiplied by the next of `factors`.
        factors: one factor per milestone, or one number for all.
        weight_decay, momentum, nesterov: of SGD, on all parameters.
        batch_size: samples per optimiser step.
        augment: "none", "crop_flip" (zero padding 4), "crop_flip_reflect", or None for the data set's default.
        holdout: whether the select and steer parts are kept out of training.
        ema: decay of the moving average of the weights that is evaluated instead of them, as in the composition `ema`;
            0 evaluates the weights themselves.
        selection: "best" (average plus worst class under PGD-10 on the select part) or "last".
        threat_eps: the Linf radius that the method's eps and step_size are stated for; runs at another radius
            scale both in proportion.
        settings: method settings that belong to the recipe; epoch-valued ones count in its epochs.
        source: where the values come from.

    >>> recipe = Recipe(epochs=100, lr=0.1, milestones=(75, 90))
    >>> [round(recipe.lr_at(epoch), 4) for epoch in (0, 74, 75, 90)]
    [0.1, 0.1, 0.01, 0.001]
    """

    epochs: Annotated[int, between(1, MOST_EPOCHS)]
    lr: Positive
    milestones: tuple[Index, ...] = ()
    factors: Positive | tuple[Positive, ...] = 0.1
    weight_decay: NonNegative = 5e-4
    momentum: Decay = 0.9
    nesterov: bool = False
    batch_size: Annotated[int, at_least(2)] = 128
    augment: str | None = None
    holdout: bool = True
    selection: Literal["best", "last"] = "best"
    threat_eps: Positive = EPS_8
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    schedule: Literal["steps", "one_cycle"] = "steps"
    ema: Decay = 0.0

    def __post_init__(self) -> None:
        for problem in problems({f.name: getattr(self, f.name) for f in fields(self)}, KINDS):
            raise ValueError(f"recipe.{problem}")
        if isinstance(self.factors, tuple) and len(self.factors) != len(self.milestones):
            raise ValueError(
                f"recipe: expected one factor for each of {len(self.milestones)} milestones, got {len(self.factors)}"
            )

    def selection_rule(self, requested: str | None = None) -> str:
        """The rule that selects a checkpoint: the requested one, else the recipe's.

        Raises:
            ValueError: if it needs held-out samples and the recipe holds none out.
        """
        rule = requested or self.selection
        if rule == "best" and not self.holdout:
            raise ValueError(
                "recipe.holdout=false: trains on the samples by which selection 'best' judges checkpoints; take "
                "--select test or last, or leave recipe.holdout=false out"
            )
        return rule

    def lr_at(self, epoch: int, done: float = 0.0) -> float:
        """Learning rate in an epoch, counted from 0.

        Args:
            epoch: the epoch.
            done: share of the epoch that is over at the middle of the step; for one-cycle schedules.
        """
        if self.schedule == "one_cycle":
            share = (epoch + done) / self.epochs
            return self.lr * min(share / RISE, (1 - share) / (1 - RISE))
        factors = self.factors if isinstance(self.factors, tuple) else (self.factors,) * len(self.milestones)
        rate = self.lr
        for milestone, factor in zip(self.milestones, factors, strict=True):
            rate *= factor if epoch >= milestone else 1.0
        return rate


KINDS = get_type_hints(Recipe, include_extras=True)


def digits(*, scale: float = 1.0, **changes: Any) -> Recipe:
    """The schedule for scikit-learn's digits: 1,197 small images, Linf radius 0.15, steps of eps / 4.

    Args:
        scale: size of the method's loss relative to cross-entropy; see `short`.
        changes: further fields.
    """
    settings = {"eps": DIGITS_EPS, "step_size": DIGITS_EPS / 4, **changes.pop("settings", {})}
    plain: dict[str, Any] = {
        "epochs": 30, "lr": 0.1 / scale, "weight_decay": Recipe.weight_decay * scale, "milestones": (22, 27),
        "augment": "none", "selection": "last", "threat_eps": DIGITS_EPS, "source": "this suite",
    }  # fmt: skip
    return Recipe(**{**plain, **changes, "settings": settings})


def short(paper: Recipe, *, scale: float = 1.0, **changes: Any) -> Recipe:
    """A published schedule shortened to 30 epochs: one cycle with twice its rate, and a moving average of the weights.

    Args:
        paper: the published schedule; batch, weight decay, augmentation, radius and settings stay.
        scale: size of the method's loss relative to cross-entropy. The rate is divided and the weight decay multiplied
            by it, so that steps are as long as those of a method without the factor.
        changes: further fields.
    """
    plain: dict[str, Any] = {
        "epochs": min(paper.epochs, SHORT_EPOCHS), "lr": 2 * paper.lr / scale, "milestones": (), "factors": 0.1,
        "weight_decay": paper.weight_decay * scale, "schedule": "one_cycle", "ema": 0.999, "selection": "last",
        "source": "this suite, after the paper's",
    }  # fmt: skip
    return replace(paper, **{**plain, **changes})


def all_recipes(declared: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """All recipes of a method: those that it declares, the defaults, and short versions of its paper's.

    `paper_svhn` is used for `paper` on the data set svhn; without one, `paper` is the same as on CIFAR-10.
    """
    recipes = {"digits": DEFAULT["digits"], **declared} if "paper" in declared else {**DEFAULT, **declared}
    published = {"paper": recipes["paper"], "short": short(recipes["paper"])}
    for name, recipe in recipes.items():
        if name.startswith("paper_"):
            published |= {name: recipe, name.replace("paper", "short"): short(recipe)}
    return published | recipes


RICE = Recipe(
    epochs=200, lr=0.1, milestones=(100, 150), augment="crop_flip_reflect",
    source="Rice et al. 2020, released training script",
)  # fmt: skip

DEFAULT = {
    "paper": RICE,
    "paper_cifar100": replace(RICE, augment="crop_flip", source=f"{RICE.source} (CIFAR-100), without its rotations"),
    "paper_svhn": replace(RICE, lr=0.01, augment="none", source=f"{RICE.source} (SVHN)"),
    "digits": digits(),
}
