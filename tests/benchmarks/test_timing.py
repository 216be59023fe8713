"""Turns, floors and tables: what the benchmarks compute from seconds, without measuring any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import timing
from benchmarks.tables import Page, spread


def test_tasks_take_turns_and_who_is_first_changes() -> None:
    seen: list[str] = []
    seconds = timing.interleave({name: lambda name=name: seen.append(name) for name in "ab"}, 3)
    assert "".join(seen) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}


def test_a_floor_counts_a_gradient_pass_once() -> None:
    floor = timing.Floor(forward=1.0, gradient=3.0)
    assert floor.seconds({"forward": 10, "input_grad": 4}) == 4 * 3 + 6 * 1
    assert floor.seconds({"forward": 2, "input_grad": 4}) == 12


def test_bare_passes_per_sample() -> None:
    bare = timing.Bare(timing.forward, nn.Identity(), torch.zeros(5, 2), repeat=4)
    assert bare.each([30.0, 10.0, 20.0]) == 1.0


def test_a_gradient_pass_is_that_of_the_first_logit_and_leaves_weights_alone() -> None:
    model = nn.Linear(2, 3)
    with torch.no_grad():
        found = timing.gradient(model, torch.zeros(4, 2))
    assert torch.equal(found, model.weight[0].detach().expand(4, 2))
    assert model.weight.grad is None


def test_a_page_is_whole_after_every_line(tmp_path: Path) -> None:
    page = Page("title", tmp_path / "deep", "name")
    page.table("what", ["a", "b"], [["1", "2"]])
    text = (tmp_path / "deep" / "name.md").read_text()
    assert text == "# title\n\nwhat\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
    with pytest.raises(ValueError, match="expected rows of 2 cells, got 1"):
        page.table("what", ["a", "b"], [["1"]])


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.5]) == "2.50 (1.00 to 3.00)"
