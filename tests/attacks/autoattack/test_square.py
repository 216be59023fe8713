"""Square: sizes and shapes of the proposals, margins that only fall, and what a query costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attacks.autoattack import square
from attacks.autoattack.apgd import APGDCE
from attacks.autoattack.reference import reference_package
from attacks.autoattack.square import (
    Proposals,
    Square,
    SquareState,
    grid_of_hills,
    hill,
    moved_hills,
    profiles,
    side,
    square_of_one_sign,
    stripes,
    window,
)
from attacks.threat import Norm, ThreatModel
from tests.helpers.watched import labelled, robust, stream

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def released(norm: Norm) -> Any:
    name = {"linf": "Linf", "l2": "L2"}[norm]
    return reference_package().AutoAttack(nn.Flatten(), norm=name, eps=0.1, device="cpu").square


def walk(n: int, channels: int, height: int, width: int, eps: float, norm: Norm) -> tuple[SquareState, torch.Size]:
    x = torch.rand(n, channels, height, width, generator=stream(4), dtype=torch.float64)
    start = (stripes if norm == "linf" else grid_of_hills)(x, eps, stream(5))
    state = SquareState(
        torch.arange(n), torch.zeros(n, dtype=torch.int64), x.flatten(2), start.flatten(2), torch.zeros(n)
    )
    return state, x.shape[-2:]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (6, 11)])
def test_the_side_follows_the_schedule_of_the_released_code(height: int, width: int) -> None:
    member = released("linf")
    for query in range(5000):
        pixels = math.sqrt(member.p_selection(query) * height * width)
        size = torch.Size((height, width))
        assert side(query, size, odd=False) == min(max(round(pixels), 1), height, width)
        odd = max(round(pixels), 3)
        assert side(query, size, odd=True) == min(odd + (odd % 2 == 0), height, width)


def windows(draw: Tensor, side: int, size: torch.Size) -> Tensor:
    """The squares that draws (M, 2) place."""
    moves = Proposals.drawn(draw[None], 2, [side], size).at(0)
    return window(moves.corners[:, 0], side, size[1])


def test_windows_lie_in_the_image_and_reach_every_place() -> None:
    found = windows(torch.rand(4000, 2, generator=stream()), 2, torch.Size((3, 5)))
    assert found.shape == (4000, 1, 4)
    corners = found[:, 0, 0]
    assert set(corners.tolist()) == {0, 1, 2, 3, 5, 6, 7, 8}, "two rows and four columns of places"
    assert torch.equal(found[:, 0] - corners[:, None], torch.tensor([0, 1, 5, 6]).expand(4000, 4))
    extreme = windows(torch.full((1, 2), 1 - 2**-24), 1, torch.Size((3, 5)))
    assert extreme.item() == 14


def moves(n: int, places: int, channels: int, side: int, size: torch.Size) -> Proposals:
    """What is proposed once, in double precision."""
    draws = next(square._draws(1, places, stream(), torch.zeros(n, channels, 1, 1, dtype=torch.float64)))
    return Proposals.drawn(draws, places, [side], size).at(0)


def test_draws_are_the_same_however_many_queries_there_are() -> None:
    x = torch.zeros(7, 3, 4, 4)
    few, everything = (torch.cat([*square._draws(n, 2, stream(), x)]) for n in (3, 200))
    assert everything.shape == (200, 7, 5)
    assert everything[..., 2:].unique().tolist() == [-1, 1] and everything[..., :2].unique().numel() > 2000
    assert few.shape == (3, 7, 5) and few.dtype == torch.float32


def test_a_linf_proposal_sets_one_square_to_the_faces_of_the_ball() -> None:
    state, size = walk(50, 3, 7, 9, 0.1, "linf")
    new = square_of_one_sign(state, moves(50, 2, 3, 4, size), 4, size[1], 0.1)
    faces = (state.x - 0.1).clamp(0, 1), (state.x + 0.1).clamp(0, 1)
    assert ((new == faces[0]) | (new == faces[1])).all()
    changed = (new != state.here).view(50, 3, 7, 9)
    for image in changed.any(1):
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        if len(rows):
            assert rows.max() - rows.min() < 4 and columns.max() - columns.min() < 4
    assert len({tuple(image.flatten().tolist()) for image in changed.any(1)}) > 20, "samples have squares of their own"


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7, 8, 13])
def test_hills_and_profiles_are_those_of_the_released_code(length: int) -> None:
    member = released("l2")
    expected = member.eta_rectangles(length, 2 * length)
    ours = hill(length, 2 * length)
    torch.testing.assert_close((ours / ours.norm()).float(), expected)
    with torch.random.fork_rng(devices=[]):
        theirs = {tuple(member.eta(length).flatten().tolist()) for _ in range(20)}
    both = profiles(length, torch.zeros(1))
    for flat in theirs:
        assert (both - torch.tensor(flat)).abs().amax(1).min() < 1e-6
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 12, 7), (4, 5, 20), (2, 3, 3)])
def test_an_l2_proposal_moves_mass_between_two_squares(channels: int, height: int, width: int) -> None:
    state, size = walk(40, channels, height, width, 0.5, "l2")
    proposed = moves(40, 5, channels, 3, size)
    new = moved_hills(state, proposed, 3, width, 0.5)
    assert ((new - state.x).flatten(1).norm(dim=1) <= 0.5 + 1e-9).all() and new.min() >= 0 and new.max() <= 1
    inner = SquareState(
        state.rows, state.y, 0 * state.x + 0.5, 0.5 + (state.here - state.x), state.margin
    )  # far from the box
    before = inner.here - inner.x
    after = moved_hills(inner, proposed, 3, width, 0.5) - inner.x
    torch.testing.assert_close(after.flatten(1).norm(dim=1), torch.full((40,), 0.5, dtype=torch.float64))
    inside = torch.zeros(40, height * width, dtype=torch.bool)
    to, source = (window(corner, 3, width)[:, 0] for corner in proposed.corners.T)
    inside.scatter_(1, to, True)
    only_source = torch.zeros_like(inside).scatter_(1, source, True) & ~inside
    assert (after.abs().sum(1)[only_source] == 0).all(), "the second square gives all its mass away"
    outside = ~(inside | only_source)
    for old, found, rest in zip(before, after, outside, strict=True):
        if old[:, rest].abs().sum() > 0:  # the rest keeps its shape, up to the scale of the whole
            cosine = nn.functional.cosine_similarity(old[:, rest].flatten(), found[:, rest].flatten(), dim=0)
            assert cosine > 1 - 1e-9


@NORMS
def test_starts_fill_the_ball_and_stay_in_the_box(norm: Norm) -> None:
    x = torch.full((20, 3, 11, 6), 0.5, dtype=torch.float64)
    delta = (stripes if norm == "linf" else grid_of_hills)(x, 0.2, stream()) - x
    size = delta.abs().flatten(1).amax(1) if norm == "linf" else delta.flatten(1).norm(dim=1)
    torch.testing.assert_close(size, torch.full((20,), 0.2, dtype=torch.float64))
    if norm == "linf":
        assert torch.equal(delta, delta[:, :, :1].expand_as(delta)), "stripes run from top to bottom"
    assert not torch.equal(delta[0], delta[1])


@NORMS
def test_the_margin_only_falls_and_is_that_of_the_kept_point(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = labelled(5)
    margins: dict[int, float] = {}
    look, seen = square._query, []

    def watched(model: nn.Module, standing: Any, walk: SquareState, points: Tensor) -> bool:
        going = look(model, standing, walk, points)
        for row, margin in zip(walk.rows.tolist(), walk.margin.tolist(), strict=True):
            assert margin <= margins.get(row, math.inf)
            margins[row] = margin
        logits = model(walk.here.view(-1, 1, 8, 8))
        others = logits.scatter(1, walk.y[:, None], -torch.inf).amax(1)
        torch.testing.assert_close(walk.margin, logits.gather(1, walk.y[:, None])[:, 0] - others)
        seen.append(len(walk.rows))
        return going

    monkeypatch.setattr(square, "_query", watched)
    Square(ThreatModel(norm, 0.02), queries=60)(model, x, y, generator=stream())
    assert len(seen) == 61 and seen[-1] > 0


def test_square_wins_where_gradients_are_masked() -> None:
    model, x, y = labelled(5, n=24)

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model((x * 16).round() / 16)

    threat = ThreatModel("linf", 0.1)
    standing = {
        attack.name: int(robust(Rounded(), attack(Rounded(), x, y, generator=stream()), y).sum())
        for attack in (APGDCE(threat, 20), Square(threat, 300))
    }
    assert standing["square"] < standing["apgd-ce"] - 3
