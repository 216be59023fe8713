"""Evaluate a model on held-out data under attack during training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks.base import Attack, predicted
from attacks.contexts import mode
from attacks.draws import PartGenerator
from bench.core.out_of_memory import BatchLimit
from bench.data.splits import Part, to_float
from bench.distributed.process_group import ProcessGroup
from methods.base import Validation
from methods.losses import robust_class_counts

CHUNK = 512


def validate(
    model: nn.Module,
    part: Part,
    attack: Attack,
    stream: PartGenerator,
    *,
    device: torch.device,
    group: ProcessGroup,
    limit: BatchLimit,
) -> Validation:
    """Labels (V,), clean and attacked logits (V, K) of a part, the same in every process.

    Each process attacks its share of a chunk; random draws are made for the whole chunk.

    Args:
        model: put in eval mode meanwhile.
        part: the samples.
        attack: draws from the stream.
        stream: of random draws.
        device: where the model is.
        group: the processes that share the work.
        limit: micro-batches of a share.
    """
    found = []
    with mode(model, train=False):
        for rows in torch.arange(len(part)).split(CHUNK):
            state = stream.get_state()
            first, last = group.share(len(rows)) if _is_shared(rows, group) else (0, len(rows))

            def work(rows: Tensor = rows, first: int = first, last: int = last, state: Tensor = state) -> list[Tensor]:
                logits = []
                for a, b in limit.spans(last - first):
                    stream.set_state(state)
                    mine = rows[first + a : first + b]
                    with stream.within(first + a, first + b, len(rows)):
                        logits.append(_logits(model, part, mine, attack, stream, device))
                return logits

            found.append(_merge_shares(limit.retry_smaller(work, last - first), first, rows, group))
    clean, adv = torch.cat(found, dim=1)
    return part.y.to(device), clean, adv


def _logits(
    model: nn.Module, part: Part, rows: Tensor, attack: Attack, stream: torch.Generator, device: torch.device
) -> Tensor:
    """Clean and attacked logits, (2, M, K)."""
    x, y = to_float(part.x[rows].to(device)), part.y[rows].to(device)
    x_adv = attack(model, x, y, generator=stream)
    with torch.no_grad():
        return torch.stack([model(x), model(x_adv)])


def _is_shared(rows: Tensor, group: ProcessGroup) -> bool:
    """Whether the processes share a chunk; one with too few samples is attacked by all."""
    return len(rows) >= 2 * group.size


def _merge_shares(found: list[Tensor], first: int, rows: Tensor, group: ProcessGroup) -> Tensor:
    """Logits of a chunk (2, N, K) from those of this process's share, which begins at `first`."""
    mine = torch.cat(found, dim=1)
    if group.size == 1:
        return mine
    chunk = mine.new_zeros(2, len(rows), mine.shape[2])
    if group.is_main or _is_shared(rows, group):
        chunk[:, first : first + mine.shape[1]] = mine
    return group.reduce(chunk)


def selection_metrics(y: Tensor, clean: Tensor, adv: Tensor, num_classes: int) -> dict[str, float]:
    """The selection score, average plus worst-class accuracy under attack, and its parts; all as fractions.

    Args:
        y: labels (V,).
        clean: logits (V, K).
        adv: logits (V, K) under attack.
        num_classes: K.
    """
    right, of_class, counts = robust_class_counts(y, clean, adv, num_classes)
    average, worst = right.float().mean().item(), (of_class / counts).min().item()
    return {
        "clean": (predicted(clean) == y).float().mean().item(),
        "pgd": average, "worst": worst, "score": average + worst,
    }  # fmt: skip
