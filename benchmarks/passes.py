"""Recorded passes of a training step by kind, and the time that each kind takes by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.contexts import frozen, mode
from benchmarks.timing import LONG_ENOUGH, Task

MOST = 100  # times that anything is done in one measurement
Gradient = Literal["none", "input", "weights"]


@dataclass(frozen=True)
class Kind:
    """What tells the cost of a pass.

    Attributes:
        owner: "student" or "teacher".
        form: "as it is", or "folded".
        training: whether BatchNorm uses the statistics of the batch.
        gradient: what is differentiated.
    """

    owner: str
    form: str
    training: bool
    gradient: Gradient

    @property
    def name(self) -> str:
        """For a table."""
        work = {"none": "forward", "input": "forward + input gradient", "weights": "forward + weight gradient"}
        form = "" if self.form == "as it is" else f", {self.form}"
        return f"{self.owner}: {work[self.gradient]}, {'train' if self.training else 'eval'} mode{form}"


class Ledger:
    """Watches networks, and notes how many samples pass through in which way."""

    def __init__(self) -> None:
        self.samples: dict[Kind, int] = {}
        self.networks: dict[Kind, nn.Module] = {}

    @contextmanager
    def watching(self, networks: Mapping[tuple[str, str], nn.Module]) -> Iterator[None]:
        """Note the passes of networks, by owner and form, in this context."""
        with ExitStack() as stack:
            for (owner, form), network in networks.items():
                stack.enter_context(_hook(network, owner, form, self))
            yield

    def add(self, kind: Kind, network: nn.Module, samples: int) -> None:
        """Note a pass."""
        self.samples[kind] = self.samples.get(kind, 0) + samples
        self.networks.setdefault(kind, network)

    def totals(self) -> dict[str, int]:
        """Samples by the names of `attacks.passes.Passes`."""
        sums = dict.fromkeys(("forward", "input_grad", "backward", "teacher", "teacher_grad"), 0)
        for kind, samples in self.samples.items():
            student = kind.owner == "student"
            sums["forward" if student else "teacher"] += samples
            if kind.gradient == "input":
                sums["input_grad" if student else "teacher_grad"] += samples
            elif kind.gradient == "weights":
                sums["backward"] += samples
        return sums

    def short_of(self, declared: Mapping[str, float]) -> dict[Gradient, float]:
        """How many times as many of the student's passes are declared as were made, by what is differentiated."""
        made = self.totals()
        bare = {"none": "forward", "input": "input_grad", "weights": "backward"}
        wanted = {**declared, "forward": declared["forward"] - declared["input_grad"] - declared["backward"]}
        made["forward"] -= made["input_grad"] + made["backward"]
        return {kind: wanted[name] / made[name] for kind, name in bare.items() if made[name]}  # type: ignore[misc]

    def seconds(self, bare: Mapping[Kind, float], factors: Mapping[Gradient, float] | None = None) -> float:
        """The least that the passes take.

        Args:
            bare: seconds of a sample of each kind.
            factors: of the student's, as `short_of` gives them, for a floor of the passes that are declared.
        """
        return sum(
            samples * bare[kind] * ((factors or {}).get(kind.gradient, 1.0) if kind.owner == "student" else 1.0)
            for kind, samples in self.samples.items()
        )


class BarePasses:
    """A task: passes of one kind over a full batch, repeated so often that the clock is fine enough.

    Args:
        kind: which.
        network: through what.
        x: the batch.
    """

    def __init__(self, kind: Kind, network: nn.Module, x: Tensor) -> None:
        self.kind, self.network, self.x = kind, network, x.detach()
        self.parameters = list(network.parameters())
        self.repeat = 1

    def fitted(self, clock: Callable[[Task], float]) -> BarePasses:
        """With so many passes that they fill a part of a second."""
        self()
        self.repeat = often(self, LONG_ENOUGH / 8, clock)
        return self

    def each(self, seconds: float) -> float:
        """Seconds per sample, from those of the task."""
        return seconds / (self.repeat * len(self.x))

    def __call__(self) -> None:
        """Make the passes."""
        work = {"none": self._forward, "input": self._input, "weights": self._weights}[self.kind.gradient]
        with ExitStack() as stack:
            stack.enter_context(mode(self.network, train=self.kind.training))
            if self.kind.gradient != "weights":
                stack.enter_context(frozen(self.network))
            for _ in range(self.repeat):
                work()

    def _forward(self) -> None:
        with torch.no_grad():
            self.network.forward(self.x)

    def _input(self) -> None:
        here = self.x.detach().requires_grad_()
        torch.autograd.grad(self.network.forward(here)[:, 0].sum(), here)

    def _weights(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        self.network.forward(self.x)[:, 0].sum().backward()


def often(task: Task, seconds: float, clock: Callable[[Task], float]) -> int:
    """How often a task is done in so many seconds, at least once; a clock that stands still is not believed."""
    once = max(clock(task) for _ in range(3))
    return max(1, min(MOST, math.ceil(seconds / max(once, 1e-6))))


def kind_of(owner: str, form: str, network: nn.Module, x: Tensor) -> Kind:
    """The kind of a pass that is about to be made."""
    gradient: Gradient = "none"
    if torch.is_grad_enabled():
        learning = owner == "student" and any(parameter.requires_grad for parameter in network.parameters())
        gradient = "input" if x.requires_grad else "weights" if learning else "none"
    return Kind(owner, form, network.training, gradient)


@contextmanager
def _hook(network: nn.Module, owner: str, form: str, ledger: Ledger) -> Iterator[None]:
    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        ledger.add(kind_of(owner, form, module, inputs[0]), module, inputs[0].shape[0])

    handle = network.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
