"""Per-sample losses, class weights and per-class sums that several methods share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attacks.base import predicted


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of logits (N, K) with labels y (N,); (N,)."""
    return F.cross_entropy(logits, y, reduction="none")


def kl(target: Tensor, logits: Tensor) -> Tensor:
    """KL(target || softmax(logits)), summed over classes; (N,).

    Args:
        target: (N, K) probabilities, constant.
        logits: (N, K).
    """
    entropy: Tensor = torch.special.entr(target).sum(1)
    return -entropy - (target * F.log_softmax(logits, 1)).sum(1)


def kl_logits(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(softmax(p) || softmax(q)), summed over classes, with gradients through both; (N,).

    >>> p, q = torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    >>> [round(value, 4) for value in kl_logits(p, q).tolist()]
    [0.0, 0.4338]
    """
    log_p, log_q = F.log_softmax(p_logits, 1), F.log_softmax(q_logits, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def of_class(values: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """The entry (N,) for each sample's class of a quantity per class (K,), such as a weight or a radius, as `dtype`."""
    return values.to(dtype)[y]


def step_share(weight: Tensor, y: Tensor, step_labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Class weights (K,) as factors of the samples y (N,) whose mean over the optimiser step is 1; (N,).

    The mean over the step of factor times loss is then sum_i w_i loss_i / sum_i w_i, over micro-batches and ranks.
    """
    return (weight[y] * len(step_labels) / weight[step_labels].sum()).to(dtype)


def tempered(teacher_logits: Tensor, temperature: Tensor, y: Tensor) -> Tensor:
    """Soft labels (N, K): softmax of a teacher's logits (N, K) at the temperature (K,) of each sample's class."""
    return (teacher_logits / of_class(temperature, y, teacher_logits.dtype)[:, None]).softmax(1)


def sum_dtype(device: torch.device) -> torch.dtype:
    """The dtype of running sums: float64, or float32 on devices without float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def class_sums(values: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Sums of values (N,), or of several rows of them (V, N), over the samples of each class; (K,) or (V, K).

    Hidden labels belong to no class.

    A product with the one-hot labels rather than a scatter: the order of additions, and so every bit, is fixed
    on a GPU as well. The result has the dtype `sum_dtype`.

    >>> losses, y = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2])
    >>> sums, counts = class_sums(losses, y, 3), class_sums(torch.ones(3), y, 3)
    >>> sums.tolist(), class_means(sums[[0, 2]], counts[[0, 2]]).tolist()
    ([1.0, 0.0, 6.0], [1.0, 3.0])
    """
    dtype = sum_dtype(values.device)
    one_hot = y[:, None] == torch.arange(num_classes, device=y.device)  # F.one_hot would wait for the GPU
    sums: Tensor = values.to(dtype) @ one_hot.to(dtype)
    return sums


def robust_class_counts(y: Tensor, clean: Tensor, adv: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Samples that are classified correctly both clean and under attack, their number and all samples by class.

    Args:
        y: labels (V,).
        clean: logits (V, K).
        adv: logits (V, K) under attack.
        num_classes: K.

    Returns:
        correct (V,) bool, correct samples per class (K,), samples per class (K,).
    """
    right = (predicted(clean) == y) & (predicted(adv) == y)
    return right, class_sums(right, y, num_classes), class_sums(torch.ones_like(right), y, num_classes)


def class_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Class means (K,) from sums and counts; a class without samples gets the mean of the others."""
    seen = counts > 0
    means = sums / counts.clamp_min(1)
    return torch.where(seen, means, means[seen].mean() if bool(seen.any()) else torch.zeros_like(means))
