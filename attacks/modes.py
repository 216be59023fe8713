"""What a network and the arithmetic are put into for a while, and back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
    """No product of float32 is rounded to TF32, whatever the process has allowed."""
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
