"""A tiny network for the RobustBench zoo, the zoo's dictionaries, and networks with random weights and buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.models.robustbench import import_robustbench


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


def entries(dataset: str, norm: str) -> dict[str, Any]:
    dicts = import_robustbench().model_zoo.model_dicts
    return next(e for d, t in dicts.items() if d.value == dataset for k, e in t.items() if k.value == norm)


def random_model(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network of which no buffer has its initial value either."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        model.train()(torch.rand(8, 3, 32, 32)) if make is not Tiny else None
    return model.eval()
