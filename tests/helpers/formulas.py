"""The papers' formulas in NumPy and double precision, written from the formulas and not from the code under test.

B samples, K classes; z are logits (B, K), y labels (B,).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=1, keepdims=True)
    scores: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return scores


def softmax(z: Array) -> Array:
    return np.exp(log_softmax(z))


def ce(z: Array, y: Labels) -> Array:
    return np.array([-row[label] for row, label in zip(log_softmax(z), y, strict=True)])


def kl(p: Array, z: Array) -> Array:
    """KL(p || softmax(z)) per sample, summed over classes."""
    divergence: Array = (p * (np.log(p) - log_softmax(z))).sum(axis=1)
    return divergence


def mean_bk(values: Array, num_classes: int) -> float:
    """The default reduction of a KL of shape (B, K): a mean over samples and classes."""
    return float(values.sum() / (len(values) * num_classes))


def trades(z: Array, z_adv: Array, y: Labels, beta: float) -> float:
    return float(ce(z, y).mean() + beta * kl(softmax(z), z_adv).mean())


def mart(z: Array, z_adv: Array, y: Labels, beta: float) -> Array:
    """Per sample; the guards of the released logarithms are below the precision of the comparison."""
    rows = np.arange(len(y))
    p, q = softmax(z), softmax(z_adv)
    others = q.copy()
    others[rows, y] = 0
    boosted = ce(z_adv, y) - np.log(1.0001 - others.max(axis=1))
    loss: Array = boosted + beta * kl(p, z_adv) * (1.0000001 - p[rows, y])
    return loss


def cfa_trades(z: Array, z_adv: Array, y: Labels, beta: Array) -> float:
    """With one beta per class (K,); the release keeps beta / (1 + beta)."""
    share = (beta / (1 + beta))[y]
    return float(((1 - share) * ce(z, y) + share * kl(softmax(z), z_adv)).mean())


def bat(z: Array, z_first: Array, z_last: Array, y: Labels, beta: float, uniform: float) -> float:
    def from_uniform(scores: Array) -> Array:
        p = softmax(scores)
        divergence: Array = (p * np.log(p * scores.shape[1])).sum(axis=1)
        return divergence

    loss = ce(z_last, y) + beta * kl(softmax(z), z_first) + uniform * (from_uniform(z_last) + from_uniform(z_first))
    return float(loss.mean())


def wat(z: Array, z_adv: Array, y: Labels, weights: Array, beta: float) -> float:
    """With K + 1 weights: the class sums of the weighted loss, and the last weight times the mean."""
    each = ce(z, y) + beta * kl(softmax(z), z_adv)
    by_class = sum(weights[k] * each[y == k].sum() for k in range(len(weights) - 1)) / len(y)
    return float(by_class + weights[-1] * each.mean())


def dafa_weights(p: Array, strength: float) -> Array:
    """Pair by pair, as the paper's case distinction has it; p (K, K) without equal diagonal entries."""
    k = len(p)
    weights = np.ones(k)
    for i in range(k):
        for j in range(k):
            if i != j:
                weights[i] += strength * p[i, j] * p[j, j] if p[i, i] < p[j, j] else -strength * p[j, i] * p[i, i]
    return weights


def frl(z: Array, z_adv: Array, y: Labels, l0: Array, l1: Array, beta: float) -> float:
    w0, w1 = frl_weights(l0)[y], frl_weights(l1)[y]
    clean = (w0 * ce(z, y)).sum() / w0.sum()
    return float(clean + beta * (w1 * kl(softmax(z), z_adv)).sum() / w1.sum())


def frl_weights(multiplier: Array) -> Array:
    k = len(multiplier)
    return np.array([1 / k + multiplier[i] - sum(multiplier) / k for i in range(k)])


def frl_project(multiplier: Array, limit: float) -> Array:
    positive = np.array([max(value, 0.0) for value in multiplier])
    return positive * limit / positive.sum() if positive.sum() > limit else positive


def ard(teacher: Array, z: Array, z_adv: Array, y: Labels, alpha: float, t: float) -> float:
    distilled = mean_bk(kl(softmax(teacher / t), z_adv / t), z.shape[1])
    return float(alpha * t**2 * distilled + (1 - alpha) * ce(z, y).mean())


def rslad(teacher: Array, z: Array, z_adv: Array) -> float:
    p = softmax(teacher)
    return 5 / 6 * mean_bk(kl(p, z_adv), z.shape[1]) + 1 / 6 * mean_bk(kl(p, z), z.shape[1])


def absld(teacher: Array, z: Array, z_adv: Array, y: Labels, tau_adv: Array, tau_clean: Array, product: bool) -> float:
    if product:
        tau_adv = tau_clean = tau_adv * tau_clean
    p_adv = np.stack([softmax(row[None] / tau_adv[k])[0] for row, k in zip(teacher, y, strict=True)])
    p_clean = np.stack([softmax(row[None] / tau_clean[k])[0] for row, k in zip(teacher, y, strict=True)])
    return 5 / 6 * mean_bk(kl(p_adv, z_adv), z.shape[1]) + 1 / 6 * mean_bk(kl(p_clean, z), z.shape[1])


def absld_update(tau: Array, means: Array, rate: float) -> Array:
    gap = means - means.mean()
    moved: Array = np.clip(tau - rate * gap / np.abs(gap).max(), 0.5, 5.0)
    return moved


def mtard(robust: Array, natural: Array, z: Array, z_adv: Array, share: float) -> float:
    """`robust` are the robust teacher's logits on adversarial, `natural` the natural teacher's on clean inputs."""
    k = z.shape[1]
    return (1 - share) * mean_bk(kl(softmax(robust), z_adv), k) + share * mean_bk(kl(softmax(natural), z), k)


def mtard_update(share: float, first: Array, now: Array, rate: float) -> float:
    """The share of the natural term after a step; `first` and `now` are the terms (robust, natural)."""
    robust, natural = now / first
    return float(share - rate * (share - natural / (robust + natural)))


def adaad(teacher_adv: Array, teacher: Array, z: Array, z_adv: Array, alpha: float) -> float:
    k = z.shape[1]
    return alpha * mean_bk(kl(softmax(teacher_adv), z_adv), k) + (1 - alpha) * mean_bk(kl(softmax(teacher), z), k)


def faal_gains(z_adv: Array, y: Labels, mean: bool) -> Array:
    """Class sums, or class means with -1 for absent classes, of the margins of probabilities."""
    q, k = softmax(z_adv), z_adv.shape[1]
    margins: list[list[float]] = [[] for _ in range(k)]
    for row, label in zip(q, y, strict=True):
        margins[label].append(max(value for j, value in enumerate(row) if j != label) - row[label])
    if mean:
        return np.array([sum(m) / len(m) if m else -1.0 for m in margins])
    return np.array([sum(m) for m in margins])


def faal_weights(gains: Array, radius: float) -> Array:
    """K times the worst distribution, by plain bisection on eta."""
    k, top = len(gains), gains.max()
    low, high = 0.0, 1e9
    for _ in range(500):
        middle = (low * high) ** 0.5 if low > 0 else high / 2
        q = 1 / (top + middle - gains)
        q /= q.sum()
        low, high = (middle, high) if (np.log(1 / k) - np.log(q)).mean() > radius else (low, middle)
    shares: Array = k * q
    return shares


def fair(weights: Array, terms: list[tuple[Array, Array, float]]) -> float:
    """Weighted distillation: per-sample weights, and (teacher's logits, student's logits, factor) of each term."""
    each = sum(factor * kl(softmax(teacher), student) for teacher, student, factor in terms)
    return mean_bk(weights * each, terms[0][0].shape[1])


def fair_weights(kappa: Array, power: float = 2.0) -> Array:
    """Class weights from the class means of kappa."""
    raw = np.array([(value + 1e-5) ** -power for value in kappa])
    return np.array([min(max(value * len(raw) / raw.sum(), 5 / 6), 5 / 2) for value in raw])


def flexmatch_threshold(sigma: Array, unlabelled: int, tau: float) -> Array:
    beta = sigma / max(sigma.max(), unlabelled - sigma.sum())
    return np.array([tau * b / (2 - b) for b in beta])


def flexmatch(host: Array, weak: Array, adv: Array, hidden: Labels, threshold: Array, weight: float) -> float:
    """Mean of the host's losses (B,) over the labelled, plus that of the used cross-entropies over the others."""
    labelled = float(np.mean([loss for loss, hides in zip(host, hidden, strict=True) if not hides]))
    guessed = []
    for p, a, hides in zip(softmax(weak), adv, hidden, strict=True):
        q = int(p.argmax())
        if hides:
            guessed.append(ce(a[None], np.array([q]))[0] if p[q] > threshold[q] else 0.0)
    return labelled + weight * float(np.mean(guessed))


def n_pair(anchors: Array, positives: Array, y: Labels, norm_weight: float) -> Array:
    found = []
    for a, p, label in zip(anchors, positives, y, strict=True):
        scores = np.array([a @ other for other in positives])
        chance = log_softmax(scores[None])[0]
        same = [j for j, other in enumerate(y) if other == label]
        norms = (a**2).sum() + (p**2).sum()
        found.append(-sum(chance[j] for j in same) / len(same) + 0.25 * norm_weight * norms)
    return np.array(found)


def gradient(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    """Central differences."""
    found = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        move = np.zeros_like(at)
        move[place] = step
        found[place] = (function(at + move) - function(at - move)) / (2 * step)
    return found
