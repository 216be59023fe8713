"""Fixtures of the checks: a small network, snapshots of modules and global random streams, and their comparison."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from attacks.plugins.ranges import is_checked
from attacks.plugins.sketch import kinds_of

SIDE = 8


class ContractViolation(Exception):
    """A plug-in breaks the contract; the text is one sentence that says how."""


def require_ranges(plugin: Any) -> None:
    """Fail where a setting takes any number, so that a slip of the pen would be a figure."""
    for name, kind in kinds_of(plugin).items():
        if name != "threat" and not is_checked(kind):
            require(False, f"{name} takes any number; say which: {name}: Annotated[float, at_least(0)], say")


def require(holds: bool, sentence: str) -> None:
    """Raise the sentence as a violation unless the condition holds."""
    if not holds:
        raise ContractViolation(sentence)


def network(num_classes: int, seed: int, *, batch_norm: bool = True) -> nn.Sequential:
    """A classifier of 1 x 8 x 8 images, the same for the same seed; its last layer is the head (K, 64)."""

    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), norm(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), norm(16), nn.ReLU(),
            nn.Flatten(), nn.Linear(64, num_classes),
        )  # fmt: skip


def images(n: int, seed: int) -> Tensor:
    """Random images (n, 1, 8, 8) in [0, 1]."""
    return torch.rand(n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def freeze_first_batch_norm(model: nn.Module) -> None:
    """Set train mode everywhere but in the first BatchNorm, as in a partly frozen network."""
    model.train()
    next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()


def state_of(module: nn.Module) -> dict[str, Any]:
    """Copies of weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def gradients_of(module: nn.Module) -> dict[str, Any]:
    """Copies of the weights' gradients, and whether each weight requires one."""
    grads = {f"gradient of {n}": None if p.grad is None else p.grad.clone() for n, p in module.named_parameters()}
    return {**grads, **{f"requires_grad of {n}": p.requires_grad for n, p in module.named_parameters()}}


def modes_of(module: nn.Module) -> dict[str, Any]:
    """Train or eval, of every submodule."""
    return {f"mode of {name or 'the model'}": child.training for name, child in module.named_modules()}


def rng_states() -> dict[str, Any]:
    """States of the global random streams."""
    return {
        "torch": torch.get_rng_state(),
        "numpy": pickle.dumps(np.random.get_state()),  # noqa: NPY002 - the global stream is what is compared
        "random": pickle.dumps(random.getstate()),
    }


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """The first entry in which two snapshots differ, bit for bit; None if they are equal."""
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after or not _equal(before[name], after[name]):
            return name
    return None


def require_equal(before: Mapping[str, Any], after: Mapping[str, Any], sentence: str) -> None:
    """Raise "sentence: entry" as a violation unless two snapshots are equal."""
    changed = difference(before, after)
    require(changed is None, f"{sentence}: {changed}")


class OperationCounter(TorchDispatchMode):
    """Counts dispatched tensor operations while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class LogitsRecorder:
    """Records every tensor of logits with its version, which in-place writes raise."""

    def __init__(self) -> None:
        self.logits: list[tuple[str, Tensor, int]] = []

    def note(self, owner: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """A forward hook for one network."""
        return lambda module, inputs, logits: self.logits.append((owner, logits, logits._version))


def weights_of(model: nn.Module) -> dict[str, Any]:
    """Copies of the weights, without buffers."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def zero_head(model: nn.Sequential) -> None:
    """Make all logits zero."""
    for parameter in model[-1].parameters():
        nn.init.zeros_(parameter)


def permute_head(model: nn.Sequential, order: Tensor) -> None:
    """Give the logit of class k to class order[k]."""
    with torch.no_grad():
        for parameter in model[-1].parameters():
            parameter[order] = parameter.clone()


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())
    return type(a) is type(b) and bool(a == b)
