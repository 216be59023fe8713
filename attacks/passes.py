"""Cost of an attack or a training step in passes of one sample through a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Passes:
    """Passes per sample, or their total.

    Attributes:
        forward: forward passes.
        input_grad: backward passes to the input.
        backward: backward passes to the weights.
        teacher: forward passes of the teachers.
        teacher_grad: backward passes through a teacher to its input.

    >>> Passes(forward=1, input_grad=1) * 20 + Passes(forward=1)
    Passes(forward=21, input_grad=20, backward=0, teacher=0, teacher_grad=0)
    """

    forward: float = 0
    input_grad: float = 0
    backward: float = 0
    teacher: float = 0
    teacher_grad: float = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: float) -> Passes:
        return Passes(*(getattr(self, f.name) * factor for f in fields(self)))

    def as_dict(self) -> Mapping[str, float]:
        """The five figures by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
