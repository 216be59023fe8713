"""Timing of functions in turns, and of bare passes through a network."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Task = Callable[[], object]
LONG_ENOUGH = 0.2  # seconds that one measurement of bare passes should take


def interleave(tasks: Mapping[str, Task], rounds: int, *, warm_up: bool = True) -> dict[str, list[float]]:
    """Run tasks in turns, so that what else the machine does falls on all of them.

    Args:
        tasks: by name; every second round runs them in the opposite order.
        rounds: how often each is timed.
        warm_up: run each once before, untimed.

    Returns:
        The seconds of each task, one per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for task in tasks.values() if warm_up else ():
        task()
    for turn in range(rounds):
        for name in list(tasks) if turn % 2 == 0 else reversed(list(tasks)):
            seconds[name].append(clock(tasks[name]))
    return seconds


def clock(task: Task) -> float:
    """Seconds of one run, to the end of what it started on a GPU."""
    _wait()
    began = time.perf_counter()
    task()
    _wait()
    return time.perf_counter() - began


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """Logits, without a graph."""
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    """The gradient of a logit of each sample with respect to its input."""
    with torch.enable_grad():
        here = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(model(here)[:, 0].sum(), here)
    return found


@dataclass(frozen=True)
class Bare:
    """Passes over one full batch, repeated so often that the clock is fine enough.

    Args:
        kind: what is passed, `forward` or `gradient`.
        model: the network.
        x: the batch (N, C, H, W).
        repeat: passes in one measurement.
    """

    kind: Callable[[nn.Module, Tensor], Tensor]
    model: nn.Module
    x: Tensor
    repeat: int

    @classmethod
    def fitted(cls, kind: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, x: Tensor) -> Bare:
        """With the number of passes that fills a fifth of a second."""
        kind(model, x)
        once = min(clock(lambda: kind(model, x)) for _ in range(3))
        return cls(kind, model, x, max(1, math.ceil(LONG_ENOUGH / max(once, 1e-6))))

    def __call__(self) -> None:
        """Make the passes."""
        for _ in range(self.repeat):
            self.kind(self.model, self.x)

    def each(self, seconds: list[float]) -> float:
        """Median seconds per sample, from those of the measurements."""
        return statistics.median(seconds) / (self.repeat * len(self.x))


@dataclass(frozen=True)
class Floor:
    """What a pass of one sample costs bare, on full batches.

    Attributes:
        forward: seconds of a forward without a graph.
        gradient: seconds of a forward and the input gradient after it.
    """

    forward: float
    gradient: float

    def seconds(self, passes: Mapping[str, float]) -> float:
        """The least that passes can take; a pass with a gradient is counted as forward and as input_grad."""
        both = passes["input_grad"]
        return both * self.gradient + max(0.0, passes["forward"] - both) * self.forward


def bare_tasks(label: str, model: nn.Module, x: Tensor) -> dict[str, Bare]:
    """Both kinds of bare passes of a model, to be interleaved with what they are the floor of."""
    return {f"{label} {kind.__name__}": Bare.fitted(kind, model, x) for kind in (forward, gradient)}


def floor(label: str, tasks: Mapping[str, Bare], seconds: Mapping[str, list[float]]) -> Floor:
    """The floor of a model whose bare passes were measured."""
    return Floor(*(tasks[name].each(seconds[name]) for name in (f"{label} forward", f"{label} gradient")))


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
