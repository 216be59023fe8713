"""Square attack (Andriushchenko et al., ECCV 2020, arXiv:1912.00049): random search with square updates, no gradient.

Minimises: the margin z_y - max of the others; a proposal is kept if it lowers the margin.
Proposals: in Linf, a square of the perturbation is set to +eps or -eps, one sign per channel. In L2, a square gets the
    profile of two opposite hills, added to what was there, with the mass of a second square, which is set to zero.
Sizes: the side is that of a share p of the image (L2: odd, at least 3); p starts at 0.8 and halves after 10, 50, 200,
    500, 1,000, 2,000, 4,000, 6,000 and 8,000 queries, however many there are, as in AutoAttack.
Start: vertical stripes of +-eps (Linf), or hills on a 5 x 5 grid (L2). Defaults: 5,000 queries, one run.
Departures: each sample has squares of its own, anywhere in the image, as in the paper; the released code shares them
    within a batch and never reaches the last row and column. A sample leaves at the first point that fools the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache

import torch
from torch import Tensor, nn

from attacks.draws import rand, rounds
from attacks.passes import Passes
from attacks.stage import Stage, Standing, lengths
from attacks.tables import ATTACKS
from attacks.threat import ThreatModel

P_INIT = 0.8
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
LINF_DRAWS, L2_DRAWS = 2, 5  # per proposal, beside a sign per channel
CHUNK = 64  # queries whose draws are made at once
TINY = 1e-12


@dataclass
class Walk:
    """What the search knows of each standing sample (M, ...); images are flattened to (M, C, H W).

    Attributes:
        rows: positions in the batch.
        y: labels.
        x: originals.
        here: the best point so far.
        margin: of that point (M,).
    """

    rows: Tensor
    y: Tensor
    x: Tensor
    here: Tensor
    margin: Tensor

    def keep(self, which: Tensor) -> None:
        """Drop all other samples."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[which])


@ATTACKS.register("square")
@dataclass(frozen=True)
class Square(Stage):
    """Random search with square updates.

    Args:
        threat: norm and radius.
        queries: proposals per sample.
    """

    queries: int = 5000
    name = "square"

    def passes(self, num_classes: int) -> Passes:
        """One forward per query, one for the start and one for the original."""
        return Passes(forward=self.queries + 2)

    def search(self, model: nn.Module, standing: Standing, generator: torch.Generator) -> None:
        """One run."""
        random_search(model, standing, generator, threat=self.threat, queries=self.queries)


def random_search(
    model: nn.Module, standing: Standing, generator: torch.Generator, *, threat: ThreatModel, queries: int,
    give_up: Callable[[int, Walk], Tensor | None] = lambda query, walk: None,
) -> None:  # fmt: skip
    """One run on what stands: a forward for the start and one per query and sample, at most.

    Args:
        model: in eval mode.
        standing: samples that fall leave at once.
        generator: of the draws.
        threat: norm and radius.
        queries: proposals per sample.
        give_up: `give_up(query, walk)` is asked before every query, counted from 0; samples where it says True, (M,)
            bool, leave. None lets all go on.
    """
    linf, eps = threat.norm == "linf", threat.eps
    start = (stripes if linf else grid_of_hills)(standing.x, eps, generator).flatten(2)
    rows, x = standing.rows, standing.x.flatten(2)
    if len(rows) == 0:
        return
    walk = Walk(rows, standing.y[rows], x[rows], start[rows], x.new_full((len(rows),), torch.inf))
    _look(model, standing, walk, walk.here)
    shape = standing.x.shape
    propose, count = (square_of_one_sign, LINF_DRAWS) if linf else (moved_hills, L2_DRAWS)
    for query, draw in enumerate(_draws(queries, count, generator, standing.x)):
        lost = give_up(query, walk)
        if lost is not None:
            walk.keep(~lost)
        if len(walk.rows) == 0:
            return
        size = side(query, shape[-2:], odd=not linf)
        _look(model, standing, walk, propose(walk, draw[walk.rows], size, shape[-2:], eps))


def _look(model: nn.Module, standing: Standing, walk: Walk, points: Tensor) -> None:
    """Query the model once, keep what is better, and let go of what fell."""
    images = points.view(-1, *standing.x.shape[1:])
    logits = model(images)
    label = walk.y[:, None]
    margin = (logits.gather(1, label) - logits.scatter(1, label, -torch.inf).amax(1, keepdim=True)).squeeze(1)
    better = margin < walk.margin
    walk.here = torch.where(better[:, None, None], points, walk.here)
    walk.margin = torch.where(better, margin, walk.margin)
    gone = standing.judge(walk.rows, images, logits.argmax(1) != walk.y)
    if gone is not None:
        walk.keep(~gone)


def _draws(queries: int, places: int, generator: torch.Generator, x: Tensor) -> Iterator[Tensor]:
    """Draws (N, places + C) for every sample of the batch, query by query: from U(0, 1), then a sign per channel.

    They are made many queries at a time, which is faster.
    """
    for first in range(0, queries, CHUNK):
        many = min(CHUNK, queries - first)
        draws = rounds(many, len(x), places + x.shape[1], generator=generator)
        draws = draws.to(x.device, torch.promote_types(x.dtype, draws.dtype))
        draws[..., places:] = signs(draws[..., places:])
        yield from draws


def side(query: int, size: torch.Size, *, odd: bool) -> int:
    """The side in pixels of the square that a query, counted from 0, changes in images of size (H, W)."""
    halvings = sum(query > at for at in HALVINGS)
    pixels = max(round(math.sqrt(P_INIT * 0.5**halvings * size[0] * size[1])), 1)
    if odd:
        pixels = max(pixels, 3) // 2 * 2 + 1
    return min(pixels, size[0], size[1])


def window(draw: Tensor, side: int, size: torch.Size) -> Tensor:
    """The pixels (M, 1, side * side) of a square placed by two draws (M, 2), as positions in the flattened image."""
    height, width = size
    top = (draw[:, 0] * (height - side + 1)).long()
    left = (draw[:, 1] * (width - side + 1)).long()
    return (top * width + left)[:, None, None] + _offsets(side, width, draw.device)


@cache
def _offsets(side: int, width: int, device: torch.device) -> Tensor:
    """Positions (side * side,) of the pixels of a square relative to its first one."""
    step = torch.arange(side, device=device)
    return (step[:, None] * width + step).flatten()


def signs(draw: Tensor) -> Tensor:
    """-1 or 1 by draws from U(0, 1)."""
    return torch.where(draw < 0.5, -1, 1).to(draw.dtype)


def stripes(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Vertical stripes of +-eps, one pixel wide, each channel and column with a sign of its own; (N, C, H, W)."""
    n, channels, _, width = x.shape
    draw = rand(n, channels, 1, width, generator=generator).to(x)
    return (x + eps * signs(draw)).clamp_(0, 1)


def square_of_one_sign(walk: Walk, draw: Tensor, side: int, size: torch.Size, eps: float) -> Tensor:
    """A proposal in Linf (M, C, H W), from draws (M, 2) and signs (M, C): a square becomes x +- eps."""
    pixels = window(draw, side, size).expand(-1, walk.x.shape[1], -1)
    patch = (walk.x.gather(2, pixels) + eps * draw[:, LINF_DRAWS:, None]).clamp_(0, 1)
    return walk.here.scatter(2, pixels, patch)


def hill(height: int, width: int) -> Tensor:
    """A hill on a rectangle (height, width): the sum of 1/k^2 over the concentric squares that cover a pixel."""
    rings = max(height // 2, width // 2) + 1
    levels = (1 / torch.arange(rings, 0, -1, dtype=torch.float64) ** 2).cumsum(0)
    away = [(torch.arange(length) - length // 2).abs() for length in (height, width)]
    ring = torch.maximum(away[0][:, None], away[1])
    return levels[rings - 1 - ring]


def profiles(side: int, like: Tensor) -> Tensor:
    """Two opposite hills of unit norm on a square, one above the other and side by side; (2, side * side)."""
    upper, lower = (
        part / part.norm().clamp_min(TINY) for part in (hill(side // 2, side), hill(side - side // 2, side))
    )
    both = torch.cat([upper, -lower])
    both = both / both.norm()
    return torch.stack([both, both.T]).flatten(1).to(like)


def grid_of_hills(x: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Hills on a 5 x 5 grid, with signs and directions of their own, scaled to length eps; (N, C, H, W)."""
    n, channels, height, width = x.shape
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    draw = rand(n, channels + 1, rows, columns, generator=generator).to(x)
    shapes = profiles(side, x).view(2, side, side)[(draw[:, :1] < 0.5).long()]  # (N, 1, rows, columns, side, side)
    tiles = shapes * signs(draw[:, 1:])[..., None, None]
    delta = torch.zeros_like(x)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    field = tiles.permute(0, 1, 2, 4, 3, 5).reshape(n, channels, rows * side, columns * side)
    delta[..., top : top + rows * side, left : left + columns * side] = field
    return (x + _scaled(delta.flatten(2), eps).view_as(x)).clamp_(0, 1)


def moved_hills(walk: Walk, draw: Tensor, side: int, size: torch.Size, eps: float) -> Tensor:
    """A proposal in L2 (M, C, H W), from draws (M, 5) and signs (M, C): mass moves from a square to hills elsewhere."""
    channels = walk.x.shape[1]
    to, source = (window(d, side, size).expand(-1, channels, -1) for d in (draw[:, :2], draw[:, 2:4]))
    delta = walk.here - walk.x
    old = delta.gather(2, to)
    rest = delta.scatter(2, source, 0).scatter_(2, to, 0)
    mass, kept = delta.square().sum(2), rest.square().sum(2)
    unused = (eps**2 - mass.sum(1, keepdim=True)).clamp_min(0) / channels
    budget = (unused + (mass - kept).clamp_min(0)).sqrt()[..., None]
    shape = profiles(side, walk.x)[(draw[:, 4] < 0.5).long()][:, None]
    new = shape * draw[:, L2_DRAWS:, None] + old / (old.norm(dim=2, keepdim=True) + TINY)
    moved = rest.scatter_(2, to, new * (budget / (new.norm(dim=2, keepdim=True) + TINY)))
    return (walk.x + _scaled(moved, eps)).clamp_(0, 1)


def _scaled(delta: Tensor, eps: float) -> Tensor:
    """Perturbations (M, C, H W) brought to length eps."""
    scaled: Tensor = delta * (eps / (lengths(delta, "l2") + TINY))
    return scaled
