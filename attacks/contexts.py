"""What a network and the arithmetic are put into for a while, and back afterwards."""

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
    """No parameter of a model asks for a gradient meanwhile, so that a pass keeps nothing for the sake of one."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.is_leaf]
    for parameter in asking:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad = True


@contextmanager
def unrounded() -> Iterator[None]:
    """No product of float32 is rounded to TF32 or bfloat16, whatever the process has allowed."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in _roundings()]
    for owner, name, exact in _roundings():
        setattr(owner, name, exact)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _roundings() -> list[tuple[Any, str, object]]:
    """The switches that allow products to be rounded, and what forbids it.

    Newer versions of torch have one per operator, and refuse to read the old ones once these are in use.
    """
    backends: Any = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return [(_Products(), "precision", "highest"), (backends.cudnn, "allow_tf32", False)]
    owners = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    owners += [getattr(backends.mkldnn, name) for name in ("matmul", "conv") if hasattr(backends.mkldnn, name)]
    return [(owner, "fp32_precision", "ieee") for owner in owners]


class _Products:
    """The precision of products as an attribute; `allow_tf32` does not tell "high" from "medium"."""

    @property
    def precision(self) -> str:
        """One of "highest", "high" and "medium"."""
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)
