"""Context managers: train or eval mode, frozen parameters, full float32 precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def mode(model: nn.Module, *, train: bool) -> Iterator[None]:
    """Put a whole model in train or eval mode, and restore the mode of every submodule afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.train(train)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Turn requires_grad off for all parameters, so that a pass stores nothing for their gradients."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
    for parameter in asking:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad = True


@contextmanager
def full_precision() -> Iterator[None]:
    """Forbid TF32 and bfloat16 in products of float32, whatever the process allows."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in _precision_switches()]
    for owner, name, exact in _precision_switches():
        setattr(owner, name, exact)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _precision_switches() -> list[tuple[Any, str, object]]:
    """Attributes that allow reduced precision, each with the value that forbids it.

    Newer versions of torch have one per operator, and refuse to read the old ones once these are in use.
    """
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return [(_MatmulPrecision(), "precision", "highest"), (backends.cudnn, "allow_tf32", False)]
    owners = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    owners += [getattr(backends.mkldnn, name) for name in ("matmul", "conv") if hasattr(backends.mkldnn, name)]
    return [(owner, "fp32_precision", "ieee") for owner in owners]


class _MatmulPrecision:
    """The precision of products as an attribute; `allow_tf32` does not tell "high" from "medium"."""

    @property
    def precision(self) -> str:
        """One of "highest", "high" and "medium"."""
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)
