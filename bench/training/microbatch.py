"""Micro-batches: a batch cut into parts, and what the parts have found put together again."""

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

LEAST_WITH_NORM = 4  # so that no part of an even cut is a single sample, of which BatchNorm has no statistics


DROPPED_PATHS = ("StochasticDepth", "DropPath")  # of torchvision and timm


def has_norm(model: nn.Module) -> bool:
    """Whether a model has BatchNorm."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def is_exact(model: nn.Module) -> bool:
    """Whether parts of a batch give what the whole gives, up to rounding."""
    return not any(
        isinstance(module, (_BatchNorm, _DropoutNd)) or type(module).__name__ in DROPPED_PATHS
        for module in model.modules()
    )


def micro_batch(batch: Batch, adv: Adversarial, first: int, last: int) -> tuple[Batch, Adversarial]:
    """The samples first to last of those that are trained on, as a micro-batch of the same optimiser step.

    Of an attack that left out samples, a part has the others alone: a part of the batch could be left with none.
    """
    span = slice(first, last)
    extras = {name: extra[span] for name, extra in adv.extras.items()}
    if adv.rows is None:
        return rows_of(batch, span), Adversarial(adv.x[span], None, extras)
    every = torch.arange(len(adv.x[span]), device=adv.x.device)
    return rows_of(batch, adv.rows[span]), Adversarial(adv.x[span], every, extras)


def rows_of(batch: Batch, rows: slice | Tensor) -> Batch:
    """Some samples of a batch; the step stays the same."""
    return replace(batch, x=batch.x[rows], y=batch.y[rows], index=batch.index[rows])


def joined(found: Sequence[Adversarial], spans: Sequence[tuple[int, int]]) -> Adversarial:
    """What the parts of a batch have found, as if it had been found at once."""
    if len(found) == 1:
        return found[0]
    rows = None
    if any(adv.rows is not None for adv in found):
        every = [torch.arange(b - a, device=adv.x.device) for adv, (a, b) in zip(found, spans, strict=True)]
        kept = [one if adv.rows is None else adv.rows for adv, one in zip(found, every, strict=True)]
        rows = torch.cat([own + first for own, (first, _) in zip(kept, spans, strict=True)])
    return Adversarial(torch.cat([adv.x for adv in found]), rows, _stacked([adv.extras for adv in found]))


def joined_terms(found: Sequence[Terms], like: Tensor) -> Terms:
    """The terms of the parts of a batch, of none if there were none, detached."""
    if len(found) == 1:
        return found[0]
    if not found:
        return Terms(like.new_zeros(0), {})
    loss = torch.cat([terms.loss.detach() for terms in found])
    return Terms(loss, _stacked([terms.logits for terms in found]), _stacked([terms.extras for terms in found]))


def _stacked(groups: Sequence[Any]) -> dict[str, Tensor]:
    for name, tensor in groups[0].items():
        if tensor.ndim == 0:
            raise BenchError(f"micro-batches: expected one row per sample in {name!r}, got a single number")
    return {name: torch.cat([group[name].detach() for group in groups]) for name in groups[0]}
