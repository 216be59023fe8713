"""Penultimate features of a model: the input of its last linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def has_linear(model: nn.Module) -> bool:
    """Whether a model has a linear layer."""
    return any(isinstance(module, nn.Linear) for module in model.modules())


def with_features(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and penultimate features in one forward pass.

    The features are the input of the linear layer that runs last, recorded by hooks that exist for this pass alone and
    change nothing in it.

    Args:
        model: x -> logits (N, K).
        x: (N, C, H, W).

    Returns:
        logits (N, K) and features (N, D).

    Raises:
        ValueError: if the logits do not come from the last linear layer.
    """
    seen: list[tuple[nn.Linear, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.Linear)
        seen.append((module, inputs[0]))

    handles = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        logits: Tensor = model(x)
    finally:
        for handle in handles:
            handle.remove()
    where = f"features of {type(model).__name__}: expected its logits from a torch.nn.Linear"
    if not seen:
        raise ValueError(f"{where}, got a forward pass without one; end the model in nn.Linear, and do not compile it")
    head, features = seen[-1]
    shape, classes = tuple(features.shape), logits.shape[1]
    if head.out_features != classes or features.ndim != 2 or len(features) != len(x):
        raise ValueError(
            f"{where} on (N, D), got {classes} classes and, as the last one to run, a layer to {head.out_features} "
            f"features on {shape}; end the model in nn.Linear"
        )
    return _SharedBackward.apply(logits, features)  # type: ignore[no-any-return]


class _SharedBackward(torch.autograd.Function):
    """The identity on logits and features; its backward sends a gradient to both, zeros where there is none.

    Backward passes are counted at the logits, so one through the features alone has to pass there too.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        return logits.view_as(logits), features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads
