"""Sums over a training epoch: loss, and right predictions by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.base import Terms
from methods.losses import class_sums, sum_dtype

PENDING_STEPS = 50  # steps whose predictions are reduced together, which costs less than one by one


class EpochSums:
    """Loss and class accuracies of an epoch, summed on the device and read when the epoch ends.

    Args:
        num_classes: K.
        device: where the sums live.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes, self.device = num_classes, device
        self.clear()

    def clear(self) -> None:
        """Set every sum to zero."""
        self.loss = torch.zeros((), dtype=sum_dtype(self.device), device=self.device)
        self.count = torch.zeros((), dtype=sum_dtype(self.device), device=self.device)
        self._classes: dict[str, Tensor] = {}
        self._pending: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.skipped = 0

    @property
    def classes(self) -> dict[str, Tensor]:
        """View ("adv", "clean") -> right samples and all samples of each class, (2, K)."""
        self._reduce_pending()
        return self._classes

    def _reduce_pending(self) -> None:
        for view, pending in self._pending.items():
            right, y = (torch.cat(parts) for parts in zip(*pending, strict=True))
            sums = class_sums(torch.stack([right, torch.ones_like(right)]), y, self.num_classes)
            self._classes[view] = self._classes[view] + sums if view in self._classes else sums
        self._pending = {}

    def add(self, terms: Terms, y: Tensor) -> None:
        """Add one step; samples with a hidden label count for the loss alone."""
        self.loss += terms.loss.detach().sum(dtype=self.loss.dtype)
        self.count += len(terms.loss)
        for view, logits in terms.logits.items():
            self._pending.setdefault(view, []).append((logits.detach().argmax(1) == y, y))
        if any(len(pending) >= PENDING_STEPS for pending in self._pending.values()):
            self._reduce_pending()

    def merge(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the sums of another process, as `tensors` gives them."""
        for name, sums in tensors.items():
            sums = sums.to(self.device)
            if name in ("loss", "count"):
                setattr(self, name, getattr(self, name) + sums)
            else:
                self.classes[name] = self.classes[name] + sums if name in self.classes else sums

    def row(self) -> dict[str, Any]:
        """Loss and accuracies for the history; null for a class that was not trained on."""
        train = {}
        for view, (right, count) in self.classes.items():
            by_class = (right / count).tolist()
            train[view] = {
                "accuracy": (right.sum() / count.sum()).item(),
                "class_accuracy": [value if value == value else None for value in by_class],
            }
        loss = (self.loss / self.count.clamp_min(1)).item()
        return {"loss": loss, "train": train, "skipped_steps": self.skipped}

    def tensors(self) -> dict[str, Tensor]:
        """The sums, for a state."""
        return {"loss": self.loss, "count": self.count, **self.classes}

    def load(self, tensors: Mapping[str, Tensor], skipped: int) -> None:
        """Restore the sums of a state."""
        self.loss, self.count, self.skipped = tensors["loss"], tensors["count"], skipped
        self._pending = {}
        self._classes = {name: sums for name, sums in tensors.items() if name not in ("loss", "count")}
