"""What an attack asks a model, query by query, for the tests of the native ensemble."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attacks.base import Attack
from bench.conformance.fixtures import images, network


@dataclass
class Queries:
    """The points a model is asked about.

    Attributes:
        points: one tensor (M, C, H, W) per forward.
        fooled: (M,) per forward, whether the point is not classified as the label of its original.
        rows: (M,) per forward, the original that is nearest to the point.
    """

    points: list[Tensor] = field(default_factory=list)
    fooled: list[Tensor] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled(classes: int, n: int = 12, seed: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in eval mode and double precision, images, and the classes it gives them."""
    model, x = network(classes, seed).eval().double(), images(n, 9).double()
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def robust(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        verdict: Tensor = model(x).argmax(1) == y
    return verdict


def watch(model: nn.Module, attack: Attack, x: Tensor, y: Tensor, seed: int = 0) -> tuple[Queries, Tensor]:
    """Run an attack and note every query; x are expected to be much further apart than eps."""
    queries = Queries()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        points = inputs[0].detach().clone()
        rows = torch.cdist(points.flatten(1), x.flatten(1)).argmin(1)
        queries.points.append(points)
        queries.rows.append(rows)
        queries.fooled.append(output.detach().argmax(1) != y[rows])

    handle = model.register_forward_hook(note)
    try:
        return queries, attack(model, x, y, generator=stream(seed))
    finally:
        handle.remove()
