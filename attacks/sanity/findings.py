"""Thresholds of the sanity checks: pure functions from measured tensors to findings.

Each finding has two thresholds. Beyond the first a model is suspicious: one weak sign, look into it. Beyond the second
it is unreliable: figures of attacks that use its gradients cannot be believed as they stand. They were set where
trained models and models built to mask their gradients lie far apart; where single samples are counted, as many are let
pass as chance brings along in 99 of 100 honest models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Level = Literal["reliable", "suspicious", "unreliable"]
LEVELS: tuple[Level, ...] = ("reliable", "suspicious", "unreliable")

RANDOM_CHANGE = (1e-4, 1e-2)  # change between forwards of one batch, in units of the spread of the logits
BATCH_CHANGE = (1e-3, 1e-2)  # likewise, between batches of another composition: rounding alone reaches 1e-5
ZEROS = (0.1, 0.5)  # share of a class, beyond it
DISAGREEMENT = (0.1, 0.5)  # unexplained share of the change, median of a class
DESCENT = (0.1, 0.4)  # share of samples
WHOLE_BOX = (0.02, 0.1)  # share of samples
RELAPSE = (0.05, 0.2)  # share of samples
MIN_PER_CLASS = 3  # classes with fewer samples are judged together
FALSE_ALARMS = 0.01
# Share of samples that a weaker attack may find alone in an honest model, and the share that is beyond all doubt.
WEAKER = (0.02, 0.1)
SEARCH = (0.03, 0.1)
BLACK_BOX = (0.005, 0.02)
BLACK_BOX_CLASS = (0.01, 0.05)


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: its name.
        level: "reliable" if it was passed.
        value: what was measured; None if it could not be.
        threshold: beyond it suspicious.
        limit: beyond it unreliable; None if the check alone never says so.
        reason: what was observed, in a sentence, with the remedy if it was not passed.
    """

    check: str
    level: Level
    value: float | None
    threshold: float
    limit: float | None
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in ("check", "level", "value", "threshold", "limit", "reason")}


def grade(
    check: str, value: float | None, thresholds: tuple[float, float | None], observed: str, remedy: str
) -> Finding:
    """A finding from a figure and its two thresholds; the remedy is added where the check was not passed."""
    threshold, limit = thresholds
    if value is None:
        return Finding(check, "reliable", None, threshold, limit, f"not measured: {observed}")
    serious = limit is not None and value > limit
    level: Level = "unreliable" if serious else "suspicious" if value > threshold else "reliable"
    return Finding(check, level, value, threshold, limit, observed if level == "reliable" else f"{observed}; {remedy}")


# The outputs


def box(inside: Tensor) -> Finding:
    """Images outside [0, 1], where radius and clipping mean something else (AutoAttack's released checks).

    Args:
        inside: (N,) bool, of all samples, whether every value is in [0, 1].
    """
    share = 1 - inside.double().mean().item() if len(inside) else 0.0
    return grade(
        "box", share, (0.0, 0.0), f"{share:.1%} of the images leave the box [0, 1]",
        "put the normalisation inside the model and scale images to [0, 1]",
    )  # fmt: skip


def finite(broken: int, n: int) -> Finding:
    """Outputs that are NaN or infinite: such samples count as not robust, and attacks cannot follow them.

    Args:
        broken: outputs that are not finite, of clean and attacked images.
        n: all outputs.
    """
    return grade(
        "finite", broken / n if n else 0.0, (0.0, 0.0), f"{broken:,} of {n:,} outputs were NaN or infinite",
        "they count as wrong: look for overflow, a division by zero or a logarithm of 0 in the model",
    )  # fmt: skip


def random_forward(change: Tensor) -> Finding:
    """Outputs that differ from one forward to the next: an attack follows a gradient of another function each time.

    Athalye et al. 2018 (stochastic gradients); AutoAttack's check of randomised models.

    Args:
        change: (m,) relative change of the logits over forwards of the same batch.
    """
    value = change.max().item()
    return grade(
        "random_forward", value, RANDOM_CHANGE,
        f"forwards of the same batch differ by up to {value:.1e} of the spread of the logits",
        "the model draws random numbers: attack its average over many draws (expectation over transformation)",
    )  # fmt: skip


def batch_dependence(change: Tensor | None) -> Finding:
    """Outputs that depend on the other images of the batch, and so on how the attack is cut into blocks.

    Croce et al. 2022, arXiv:2202.13711: models that adapt to their test batch.

    Args:
        change: (m,) relative change of the logits in other company, or None where outputs are random anyway.
    """
    value = None if change is None else change.max().item()
    observed = "needs repeatable outputs of two samples at least" if value is None else (
        f"in batches of another composition the outputs differ by up to {value:.1e} of the spread of the logits"
    )  # fmt: skip
    remedy = "some layer mixes the samples of a batch (batch statistics in eval mode?): freeze it"
    return grade("batch_dependence", value, BATCH_CHANGE, observed, remedy)


def probabilities(logits: Tensor) -> Finding:
    """Outputs that are probabilities: losses apply their own softmax and lose their slope.

    AutoAttack's released checks; Carlini and Wagner 2017, arXiv:1608.04644.

    Args:
        logits: (m, K).
    """
    is_probability = (logits >= 0).all(1) & ((logits.sum(1) - 1).abs() < 1e-3)
    share = is_probability.double().mean().item()
    return grade(
        "probabilities", share, (0.5, None), f"{share:.0%} of the outputs are non-negative and sum to 1",
        "the model returns probabilities: return logits",
    )  # fmt: skip


# The gradients


def zero_gradients(zero: Tensor, y: Tensor) -> Finding:
    """Inputs at which the margin has no gradient (zero, or not finite): no gradient attack can move there.

    Athalye et al. 2018 (shattered gradients); AutoAttack's check of zero gradients, here class by class.

    Args:
        zero: (m,) bool.
        y: (m,) labels.
    """
    share, where = worst_class(zero.double(), y)
    return grade(
        "zero_gradients", share, ZEROS, f"the input gradient is zero or not finite for {share:.0%} of {where}",
        "rounding, a threshold or a detached branch stops it: attack a differentiable stand-in, or without gradients",
    )  # fmt: skip


def saturation(lost: Tensor, y: Tensor) -> Finding:
    """Inputs at which cross-entropy has no gradient while the margin has: it is lost in float32, logits being huge.

    Carlini and Wagner 2017, arXiv:1608.04644, on defensive distillation.

    Args:
        lost: (m,) bool.
        y: (m,) labels.
    """
    share, where = worst_class(lost.double(), y)
    return grade(
        "saturation", share, ZEROS,
        f"cross-entropy has no gradient in float32, though the logits have one, for {share:.0%} of {where}",
        "the logits are too large: divide them by a constant, which changes no prediction",
    )  # fmt: skip


def gradient_agreement(unexplained: Tensor, y: Tensor) -> Finding:
    """Gradients that are not those of the function: a detached branch, straight-through rounding, custom backward.

    Carlini et al. 2019 ask for gradient-free attacks and for care with non-differentiable parts; Athalye et al. 2018.

    Args:
        unexplained: (m,) share of the change in random directions that the gradient does not explain.
        y: (m,) labels.
    """
    share, where = worst_class(unexplained, y, median=True)
    return grade(
        "gradient_agreement", share, DISAGREEMENT,
        f"gradients leave {share:.1%} of the change of the logits over finite differences unexplained (median of "
        f"{where})",
        "they are not the gradients of this function: look for detach, no_grad, rounding and custom backward passes",
    )  # fmt: skip


def ascent(rises: Tensor) -> Finding:
    """Gradients that lead upwards only next to the image: over the length of a step of an attack they mislead.

    Athalye et al. 2018 (shattered gradients).

    Args:
        rises: (L, m) bool, whether a step along the gradient raises the margin, for L lengths.
    """
    share = 1 - rises.double().mean(1).min().item()
    return grade(
        "ascent", share, DESCENT, f"short steps along the gradient do not raise the margin of {share:.0%} of samples",
        "the gradient is of no use at the scale of the attack: smooth it (average over noise), or attack without it",
    )  # fmt: skip


# Attacks


def whole_box(stands: Tensor) -> Finding:
    """An attack that nothing holds back has to succeed: with the whole box allowed, accuracy has to reach 0.

    Athalye et al. 2018, section 3.1; Carlini et al. 2019: an unbounded attack has to reach 100 % success.

    Args:
        stands: (m,) bool, after an ascent through the whole box.
    """
    share = stands.double().mean().item()
    return grade(
        "whole_box", share, WHOLE_BOX, f"with the whole box allowed PGD leaves {share:.0%} of the samples standing",
        "it should leave none, so its gradients do not lead anywhere: attack without gradients",
    )  # fmt: skip


def more_steps(path: Tensor) -> Finding:
    """More steps that make an attack weaker: samples that fell on the way stand again at the end.

    Carlini et al. 2019: raising the number of iterations must not help the model.

    Args:
        path: (S, m) bool, which samples stand at successive points of an ascent, its first steps left out.
    """
    share = (path[-1] & ~path.all(0)).double().mean().item()
    return grade(
        "more_steps", share, RELAPSE, f"{share:.0%} of the samples fall during PGD and stand again after its last step",
        "the loss is not what it climbs: outputs or gradients are noisy",
    )  # fmt: skip


def one_step(stands: Tensor, fooled: Tensor) -> Finding:
    """One step (FGSM) that finds what forty smaller ones do not (Athalye et al. 2018, section 3.1).

    Args:
        stands: (m,) bool, after one step.
        fooled: (m,) bool, somewhere on the way of forty, on cross-entropy or on the margin.
    """
    share, thresholds = _share_beyond_chance(~stands & ~fooled, WEAKER)
    return grade(
        "one_step", share, thresholds, f"one step alone fools {share:.0%} of the samples, which forty steps do not",
        "iterating should help: gradients mislead away from the image",
    )  # fmt: skip


def noise(stands: Tensor, fooled: Tensor) -> Finding:
    """Ten random points that find what forty gradient steps do not (Athalye et al. 2018, section 3.1).

    Args:
        stands: (m,) bool, at all random points.
        fooled: (m,) bool, somewhere on the way of forty steps, on cross-entropy or on the margin.
    """
    share, thresholds = _share_beyond_chance(~stands & ~fooled, WEAKER)
    return grade(
        "noise", share, thresholds, f"noise alone fools {share:.0%} of the samples, which forty gradient steps do not",
        "gradients are masked: attack without them",
    )  # fmt: skip


def search(stands: Tensor, fooled: Tensor) -> Finding:
    """A hundred blind queries that find what forty gradient steps do not (Athalye et al. 2018, section 3.1).

    Args:
        stands: (m,) bool, after the search.
        fooled: (m,) bool, somewhere on the way of forty steps, on cross-entropy or on the margin.
    """
    share, thresholds = _share_beyond_chance(~stands & ~fooled, SEARCH)
    return grade(
        "search", share, thresholds,
        f"100 queries without gradients alone fool {share:.0%} of the samples, which forty gradient steps do not",
        "gradients are masked: believe only attacks without gradients, with many queries",
    )  # fmt: skip


def black_box(name: str, found: Tensor, right: Tensor, y: Tensor) -> list[Finding]:
    """A black-box stage that finds what the white-box stages before it left standing, over all samples and by class.

    Croce and Hein 2020: Square is there to notice this; their released code warns from 0.2 % on.

    Args:
        name: of the stage.
        found: (N,) bool, samples that stood before it and fell to it.
        right: (N,) bool, samples that the model gets right.
        y: (N,) labels.
    """
    remedy = "the white-box stages are too weak for this model, or its gradients are masked"
    count, total = int(found.sum()), int(right.sum())
    share, thresholds = _share_beyond_chance(found[right], BLACK_BOX)
    observed = f"{name} alone finds {count} of {total} samples, which the white-box stages before it had not"
    findings = [grade("black_box", share if total else None, thresholds, observed, remedy)]
    by_class = []
    classes = y[right].unique().tolist()
    for label in classes:
        of_class = found[right & (y == label)]
        share, thresholds = _share_beyond_chance(of_class, BLACK_BOX_CLASS, tests=len(classes))
        observed = f"{name} alone finds {int(of_class.sum())} of {len(of_class)} samples of class {label}"
        by_class.append(grade("black_box_class", share, thresholds, observed, remedy))
    return findings + sorted(by_class, key=lambda f: (LEVELS.index(f.level), f.value))[-1:]


# Counting


def worst_class(values: Tensor, y: Tensor, *, median: bool = False) -> tuple[float, str]:
    """The highest mean (or median) of a class, and which one that is.

    Args:
        values: (m,).
        y: (m,) labels; classes with fewer than three samples are judged together.
        median: take the lower median of each class.
    """
    labels, group, counts = y.unique(return_inverse=True, return_counts=True)
    few = counts < MIN_PER_CLASS
    group = torch.where(few[group], len(labels), group)
    best, where = -1.0, ""
    for number in group.unique().tolist():
        of_class = values[group == number]
        value = (of_class.median() if median else of_class.mean()).item()
        if value > best:
            together = number == len(labels)
            best, where = value, "the rare classes" if together else f"class {int(labels[number])}"
    return best, where


def _share_beyond_chance(
    found: Tensor, shares: tuple[float, float], tests: int = 1
) -> tuple[float, tuple[float, float]]:
    """The share of samples (m,) found, and the shares beyond which chance no longer explains it."""
    m = len(found)
    if m == 0:
        return 0.0, shares
    low, high = (binomial_limit(m, share, FALSE_ALARMS / tests) / m for share in shares)
    return int(found.sum()) / m, (low, high)


def binomial_limit(n: int, share: float, chance: float) -> int:
    """The count that a binomial variable of n trials exceeds with at most a given chance."""
    total, k = 0.0, -1
    while total < 1 - chance and k < n:
        k += 1
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        total += math.exp(ways + k * math.log(share) + (n - k) * math.log1p(-share))
    return k
