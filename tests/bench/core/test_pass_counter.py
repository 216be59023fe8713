"""The counter of passes: what it counts, in whose column, and that it keeps nothing alive."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from bench.core.pass_counter import PassCounter


def watched(owner: str = "student") -> tuple[nn.Linear, PassCounter]:
    model, counter = nn.Linear(4, 3), PassCounter()
    counter.watch(model, owner)
    return model, counter


def test_samples_not_calls_are_counted() -> None:
    model, counter = watched()
    with torch.no_grad():
        model(torch.rand(5, 4))
        model(torch.rand(2, 4))
    assert counter.counts == {"student": {"forward": 7, "input_grad": 0, "backward": 0}}


def test_a_gradient_to_the_input_is_told_from_one_to_the_weights() -> None:
    model, counter = watched()
    x = torch.rand(5, 4, requires_grad=True)
    torch.autograd.grad(model(x).sum(), x)
    model(torch.rand(3, 4)).sum().backward()
    model(torch.rand(9, 4))  # a forward whose backward never comes
    assert counter.counts["student"] == {"forward": 17, "input_grad": 5, "backward": 3}


def test_another_column_takes_over_and_gives_back() -> None:
    model, counter = watched()
    with counter.count_as("validation"), torch.no_grad():
        model(torch.rand(5, 4))
    with torch.no_grad():
        model(torch.rand(1, 4))
    assert {owner: column["forward"] for owner, column in counter.counts.items()} == {"validation": 5, "student": 1}


def test_outputs_and_their_graphs_are_freed_without_the_garbage_collector() -> None:
    model, _ = watched()
    gc.disable()
    try:
        output = model(torch.rand(5, 4))
        alive = weakref.ref(output)
        output.sum().backward()
        del output
        assert alive() is None
    finally:
        gc.enable()
