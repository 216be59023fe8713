"""Split a batch into micro-batches, and concatenate their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from bench.errors import BenchError
from methods.base import Adversarial, Batch, Terms

MIN_SIZE_WITH_BATCHNORM = 4  # so that no micro-batch of an even split is a single sample, without statistics

STOCHASTIC_DEPTH = ("StochasticDepth", "DropPath")  # of torchvision and timm


def has_batchnorm(model: nn.Module) -> bool:
    """Whether a model has BatchNorm."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def splits_exactly(model: nn.Module) -> bool:
    """Whether micro-batches give the results of the whole batch, up to rounding."""
    return not any(
        isinstance(module, (_BatchNorm, _DropoutNd)) or type(module).__name__ in STOCHASTIC_DEPTH
        for module in model.modules()
    )


def micro_batch(batch: Batch, adv: Adversarial, first: int, last: int) -> tuple[Batch, Adversarial]:
    """The samples first to last of those that are trained on, as a micro-batch of the same optimiser step.

    Where the attack left out samples they are left out here too: a micro-batch of such samples alone could not train.
    """
    span = slice(first, last)
    extras = {name: extra[span] for name, extra in adv.extras.items()}
    if adv.rows is None:
        return select_rows(batch, span), Adversarial(adv.x[span], None, extras)
    every = torch.arange(len(adv.x[span]), device=adv.x.device)
    return select_rows(batch, adv.rows[span]), Adversarial(adv.x[span], every, extras)


def select_rows(batch: Batch, rows: slice | Tensor) -> Batch:
    """Some samples of a batch, with the labels of the same step."""
    return replace(batch, x=batch.x[rows], y=batch.y[rows], index=batch.index[rows])


def concat_adversarials(found: Sequence[Adversarial], spans: Sequence[tuple[int, int]]) -> Adversarial:
    """The adversarial inputs of a batch from those of its micro-batches."""
    if len(found) == 1:
        return found[0]
    rows = None
    if any(adv.rows is not None for adv in found):
        every = [torch.arange(b - a, device=adv.x.device) for adv, (a, b) in zip(found, spans, strict=True)]
        kept = [one if adv.rows is None else adv.rows for adv, one in zip(found, every, strict=True)]
        rows = torch.cat([own + first for own, (first, _) in zip(kept, spans, strict=True)])
    return Adversarial(torch.cat([adv.x for adv in found]), rows, _concat([adv.extras for adv in found]))


def concat_terms(found: Sequence[Terms], like: Tensor) -> Terms:
    """The terms of a batch from those of its micro-batches, detached; empty if there are none."""
    if len(found) == 1:
        return found[0]
    if not found:
        return Terms(like.new_zeros(0), {})
    loss = torch.cat([terms.loss.detach() for terms in found])
    return Terms(loss, _concat([terms.logits for terms in found]), _concat([terms.extras for terms in found]))


def _concat(groups: Sequence[Any]) -> dict[str, Tensor]:
    for name, tensor in groups[0].items():
        if tensor.ndim == 0:
            raise BenchError(f"micro-batches: expected one row per sample in {name!r}, got a single number")
    return {name: torch.cat([group[name].detach() for group in groups]) for name in groups[0]}
