"""Conditions under which a network may be folded: its layers are plain, and only their own calls read their weights.

`attacks.fast.folded` and `attacks.fast.prepared` refuse every other network, which is then attacked as it is.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from attacks.contexts import mode

PLAIN = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
)  # fmt: skip
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


def trace(model: nn.Module) -> GraphModule:
    """A model traced in eval mode, which shares its layers.

    Raises:
        ValueError: if the model cannot be traced, or its folded form could differ from it.
    """
    if reason := reason_against(model):
        raise ValueError(reason)
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with mode(model, train=False):
            traced = symbolic_trace(model)
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        raise ValueError(f"it cannot be traced ({type(error).__name__}: {error})") from None
    finally:
        changed = any(not torch.equal(buffer.nan_to_num(), old.nan_to_num()) for buffer, old in before)
        with torch.no_grad():
            for buffer, old in before:
                buffer.copy_(old)
    if changed:
        raise ValueError("its buffers change in eval mode")
    modules = dict(traced.named_modules())
    read = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    for name in sorted(read):
        if isinstance(modules.get(name.rpartition(".")[0]), PLAIN):
            raise ValueError(f"its forward reads {name} itself")
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    for name in sorted({name for name in called if called.count(name) > 1}):
        if isinstance(modules[name], PLAIN):
            raise ValueError(f"it calls {name} more than once")
    return traced


def reason_against(model: nn.Module) -> str | None:
    """Why the layers of a model forbid folding; None if they do not."""
    names: dict[int, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if module is not model and any(getattr(module, kind, None) for kind in HOOKS):
            return f"{name} has hooks"  # those of the model itself belong to its call and are compared
        if not isinstance(module, PLAIN):
            if hasattr(module, "parametrizations"):
                return f"{name or 'it'} is parametrised"
            continue
        for attribute in ("weight", "bias"):
            if attribute not in module._parameters or isinstance(
                module._parameters[attribute], nn.parameter.UninitializedParameter
            ):
                return f"{name}.{attribute} is no plain parameter"
        plain = next(kind for kind in PLAIN if isinstance(module, kind))
        if type(module).forward is not plain.forward:
            return f"{name} has a forward of its own ({type(module).__name__})"
        for key in [id(module), *map(id, module.parameters(recurse=False))]:
            if names.setdefault(key, name) != name:
                return f"{names[key]} and {name} share weights"
    return None


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """A copy of a model with other weights and BatchNorm statistics, the same in every call; no global draw is made."""
    copied = copy.deepcopy(model)
    draws = torch.Generator().manual_seed(0)
    for module in copied.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if not tensor.is_floating_point() or (not is_norm and not isinstance(tensor, nn.Parameter)):
                continue
            noise = torch.randn(tensor.shape, generator=draws).to(tensor)
            if is_norm and name == "running_var":
                tensor.copy_(noise.mul_(0.3).exp_())
            elif is_norm:
                tensor.add_(noise, alpha=0.3)
            else:
                tensor.mul_(noise.mul_(0.1).add_(1))
    return copied
