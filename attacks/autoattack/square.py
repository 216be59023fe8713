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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache

import torch
from torch import Tensor, nn

from attacks.autoattack.stage import Stage, Standing, lengths
from attacks.base import predicted
from attacks.draws import rand, rounds
from attacks.passes import Passes
from attacks.plugins.ranges import Count
from attacks.registry import ATTACKS
from attacks.threat import ThreatModel

P_INIT = 0.8
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
LINF_DRAWS, L2_DRAWS = 2, 5  # per proposal, beside a sign per channel: two for each square, and one in L2
CHUNK = 64  # queries whose draws are made at once
TINY = 1e-12


@dataclass
class SquareState:
    """State of the search for each standing sample (M, ...); images are flattened to (M, C, H W).

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


@dataclass
class Proposals:
    """The proposals of several queries for the samples of a batch (..., M).

    Attributes:
        corners: (..., M, squares) position of the first pixel of each square in the flattened image.
        signs: (..., M, C) -1 or 1.
        draw: (..., M) what is left, from U(0, 1).
    """

    corners: Tensor
    signs: Tensor
    draw: Tensor

    @classmethod
    def drawn(cls, draws: Tensor, places: int, sides: Sequence[int], size: torch.Size) -> Proposals:
        """From draws (Q, M, places + C): two for each square, one that may be left, a sign per channel.

        Args:
            draws: in [0, 1).
            places: 2 or 5.
            sides: of the squares at each query (Q,).
            size: of the images (H, W).
        """
        pairs = draws[..., : places // 2 * 2].unflatten(-1, (-1, 2))
        room = torch.tensor([[size[0] - side + 1, size[1] - side + 1] for side in sides]).to(draws)
        steps = torch.tensor([size[1], 1], device=draws.device)
        corners = (pairs * room[:, None, None]).long().mul_(steps).sum(-1)
        return cls(corners, draws[..., places:], draws[..., places - 1])

    def of(self, rows: Tensor) -> Proposals:
        """Those of the samples at rows (M,)."""
        return Proposals(self.corners[:, rows], self.signs[:, rows], self.draw[:, rows])

    def at(self, query: int) -> Proposals:
        """Those of one query, counted from the first."""
        return Proposals(self.corners[query], self.signs[query], self.draw[query])


@ATTACKS.register("square")
@dataclass(frozen=True)
class Square(Stage):
    """Random search with square updates.

    Args:
        threat: norm and radius.
        queries: proposals per sample.
    """

    queries: Count = 5000
    name = "square"

    def passes(self, num_classes: int) -> Passes:
        """One forward per query, one for the start and one for the original."""
        return Passes(forward=self.queries + 2)

    def search(self, model: nn.Module, standing: Standing, generator: torch.Generator) -> None:
        """One run."""
        random_search(model, standing, generator, threat=self.threat, queries=self.queries)


def random_search(
    model: nn.Module, standing: Standing, generator: torch.Generator, *, threat: ThreatModel, queries: int,
    give_up: Callable[[int, SquareState], Tensor | None] = lambda query, state: None,
) -> None:  # fmt: skip
    """One run on what stands: a forward for the start and one per query and sample, at most.

    Args:
        model: in eval mode.
        standing: samples that fall leave at once.
        generator: of the draws.
        threat: norm and radius.
        queries: proposals per sample.
        give_up: `give_up(query, state)` is asked before every query, counted from 0; samples where it says True, (M,)
            bool, leave. None lets all go on.
    """
    linf, eps = threat.norm == "linf", threat.eps
    start = (stripes if linf else grid_of_hills)(standing.x, eps, generator).flatten(2)
    rows, x = standing.rows, standing.x.flatten(2)
    if len(rows) == 0:
        return
    state = SquareState(rows, standing.y[rows], x[rows], start[rows], x.new_full((len(rows),), torch.inf))
    _query(model, standing, state, state.here)
    shape = standing.x.shape
    propose, count = (square_of_one_sign, LINF_DRAWS) if linf else (moved_hills, L2_DRAWS)
    sides = [side(query, shape[-2:], odd=not linf) for query in range(queries)]
    for first, draws in zip(range(0, queries, CHUNK), _draws(queries, count, generator, standing.x), strict=True):
        chunk = Proposals.drawn(draws, count, sides[first : first + CHUNK], shape[-2:])
        rows, mine = state.rows, chunk.of(state.rows)
        for query in range(first, first + len(draws)):
            lost = give_up(query, state)
            if lost is not None:
                state.keep(~lost)
            if len(state.rows) == 0:
                return
            if len(state.rows) < len(rows):
                rows, mine = state.rows, chunk.of(state.rows)
            points = propose(state, mine.at(query - first), sides[query], shape[-1], eps)
            _query(model, standing, state, points)


def _query(model: nn.Module, standing: Standing, state: SquareState, points: Tensor) -> None:
    """Query the model once, keep improvements, and drop samples that are fooled."""
    images = points.view(-1, *standing.x.shape[1:])
    logits = model(images)
    label = state.y[:, None]
    margin = logits.gather(1, label)[:, 0] - logits.scatter(1, label, -torch.inf).amax(1)
    better = margin < state.margin
    # Mixing by 1 and 0 is exact, and faster than choosing.
    state.here = torch.lerp(state.here, points, better.to(points)[:, None, None])
    state.margin = torch.where(better, margin, state.margin)
    if margin.amin() > 0:  # nothing is fooled, and nothing is not a number
        return
    gone = standing.record(state.rows, images, predicted(logits) != state.y)
    if gone is not None:
        state.keep(~gone)


def _draws(queries: int, places: int, generator: torch.Generator, x: Tensor) -> Iterator[Tensor]:
    """Draws (CHUNK, N, places + C) of as many queries for every sample of the batch: U(0, 1), then signs per channel.

    They are made many queries at a time, which is faster; the last time fewer.
    """
    for first in range(0, queries, CHUNK):
        many = min(CHUNK, queries - first)
        draws = rounds(many, len(x), places + x.shape[1], generator=generator)
        draws = draws.to(x.device, torch.promote_types(x.dtype, draws.dtype))
        draws[..., places:] = signs(draws[..., places:])
        yield draws


def side(query: int, size: torch.Size, *, odd: bool) -> int:
    """The side in pixels of the square that a query, counted from 0, changes in images of size (H, W)."""
    halvings = sum(query > at for at in HALVINGS)
    pixels = max(round(math.sqrt(P_INIT * 0.5**halvings * size[0] * size[1])), 1)
    if odd:
        pixels = max(pixels, 3) // 2 * 2 + 1
    return min(pixels, size[0], size[1])


def window(corner: Tensor, side: int, width: int) -> Tensor:
    """The pixels (M, 1, side * side) of squares that begin at corners (M,), as positions in the flattened image."""
    return corner[:, None, None] + _offsets(side, width, corner.device)


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


def square_of_one_sign(state: SquareState, moves: Proposals, side: int, width: int, eps: float) -> Tensor:
    """A proposal in Linf (M, C, H W): a square becomes x +- eps."""
    pixels = window(moves.corners[:, 0], side, width).expand(-1, state.x.shape[1], -1)
    patch = torch.add(state.x.gather(2, pixels), moves.signs[:, :, None], alpha=eps).clamp_(0, 1)
    return state.here.scatter(2, pixels, patch)


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


def moved_hills(state: SquareState, moves: Proposals, side: int, width: int, eps: float) -> Tensor:
    """A proposal in L2 (M, C, H W): mass moves from the second square to hills on the first."""
    channels = state.x.shape[1]
    to, source = (window(corner, side, width).expand(-1, channels, -1) for corner in moves.corners.T)
    delta = state.here - state.x
    old = delta.gather(2, to)
    rest = delta.scatter(2, source, 0).scatter_(2, to, 0)
    mass, kept = delta.square().sum(2), rest.square().sum(2)
    unused = (eps**2 - mass.sum(1, keepdim=True)).clamp_min(0) / channels
    budget = (unused + (mass - kept).clamp_min(0)).sqrt()[..., None]
    shape = profiles(side, state.x)[(moves.draw < 0.5).long()][:, None]
    new = shape * moves.signs[..., None] + old / (old.norm(dim=2, keepdim=True) + TINY)
    moved = rest.scatter_(2, to, new * (budget / (new.norm(dim=2, keepdim=True) + TINY)))
    return (state.x + _scaled(moved, eps)).clamp_(0, 1)


def _scaled(delta: Tensor, eps: float) -> Tensor:
    """Perturbations (M, C, H W) brought to length eps."""
    scaled: Tensor = delta * (eps / (lengths(delta, "l2") + TINY))
    return scaled
