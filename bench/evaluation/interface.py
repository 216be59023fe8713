"""Validation of a model and its data before it is attacked: logits, gradient, input left unchanged, precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attacks.contexts import mode
from bench.data.streamed import ImageTensor
from bench.errors import UsageError


class _Function(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def as_module(model: Any) -> nn.Module:
    """A model as a module; a plain function is wrapped.

    Raises:
        UsageError: if it cannot be called.
    """
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise UsageError(f"model: expected a torch.nn.Module or a function of images, got {type(model).__name__}")
    return _Function(model)


def check_interface(model: nn.Module, x: ImageTensor, y: Tensor, *, needs_gradient: bool) -> None:
    """Let a model see one image and two, and refuse what would end in a wrong figure or another's error later.

    Args:
        model: x (N, C, H, W) in [0, 1] -> logits (N, K).
        x: (n, C, H, W).
        y: (n,) labels.
        needs_gradient: whether the attack uses input gradients.

    Raises:
        UsageError: with what was expected.
    """
    if len(x) == 0 or len(y) != len(x):
        raise UsageError(f"evaluate: expected as many labels as images, and at least one, got {len(y)} and {len(x)}")
    device = next((p.device for p in model.parameters()), x.device)
    images = x[:2].to(device)
    if images.dtype != torch.float32:
        raise UsageError(f"evaluate: expected images in float32, got {images.dtype}; convert them with x.float()")
    devices = [device] if device.type == "cuda" else []
    with mode(model, train=False), torch.random.fork_rng(devices=devices), torch.enable_grad():
        for given in (images[:1], images):
            kept = given.clone()
            logits = model(kept)
            classes = check_logits(logits, len(given))
            if not torch.equal(kept, given):
                raise UsageError(
                    "model: changes its input in place, and so the images that it is judged on; take operations that "
                    "return a new tensor (x = x - mean instead of x.sub_(mean))"
                )
        if not 0 <= int(y.min()) <= int(y.max()) < classes:
            raise UsageError(f"evaluate: expected labels from 0 to {classes - 1}, got {int(y.min())} to {int(y.max())}")
        moved = images.clone().requires_grad_()
        logits = model(moved * 1.0) if needs_gradient else moved
        if not logits.requires_grad or torch.autograd.grad(logits.sum(), moved, allow_unused=True)[0] is None:
            raise UsageError(
                "model: expected outputs with a gradient to the input, got none (no_grad, numpy or integers inside?); "
                "gradient attacks cannot follow it: take the part out, or attack with square alone"
            )


def check_logits(logits: Any, n: int) -> int:
    """The number of classes of a model's output on n images.

    Raises:
        UsageError: if the output is not a tensor (n, K) of at least two classes.
    """
    if not isinstance(logits, Tensor):
        raise UsageError(f"model: expected logits ({n}, K), got {type(logits).__name__}; return the tensor alone")
    if logits.ndim != 2 or len(logits) != n or logits.shape[1] < 2:
        images = "1 image" if n == 1 else f"{n} images"
        raise UsageError(f"model: expected logits ({n}, K), K at least 2, of {images}, got {tuple(logits.shape)}")
    return int(logits.shape[1])
