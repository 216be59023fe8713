"""What training scripts put around weights, and taking it off: dictionaries, lists of one, prefixes, copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import UsageError

# Where training scripts put the weights, the more specific names first; an average comes after what it averages.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model_dict",
    "net_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "student",
    "ema_state_dict",
    "state_dict_ema",
    "ema_model_state_dict",
    "swa_state_dict",
    "model_ema",
    "ema_model",
    "ema",
    "swa_model",
    "swa",
    "last",
    "best",
)
# What DataParallel and torch.compile put before every name.
ALWAYS_STRIPPED = ("module.", "_orig_mod.")
# What beside weights stands among them: how many were averaged.
COUNTS = ("n_averaged",)
# What some scripts save as a single number beside the weights, in the same dictionary.
BOOKKEEPING = frozenset(
    (
        *("epoch", "epochs", "step", "steps", "global_step", "iter", "iters", "iteration", "iterations"),
        *("acc", "accuracy", "best_acc", "loss", "best_loss", "lr", "eps", "seed"),
    )
)
# Types of numpy's arrays that are read, and taken for tensors where there are none.
ARRAYS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
NAMED = 4


def unwrap(stored: Any, where: str, entry: str | None = None) -> dict[str, Tensor]:
    """The names and tensors inside what a training script saved, of its entry `entry` where that is given.

    Raises:
        UsageError: if there are none, listing what there is.
    """
    if entry is not None:
        if not isinstance(stored, Mapping) or entry not in stored:
            raise UsageError(f"{where}: expected an entry {entry!r}, got {_listed(stored)}")
        stored = _alone(stored[entry])
    weights = _named(_innermost(stored))
    if all(is_bookkeeping(name, tensor) for name, tensor in weights.items()):
        weights = _named(_innermost(_as_tensors(stored))) or weights
    if not weights:
        inner = _innermost(stored)
        found = _listed(stored if not isinstance(inner, Mapping) or inner else {})
        raise UsageError(
            f"{where}: expected names and tensors, got {found}; save model.state_dict() under 'state_dict', "
            "or name the entry that holds it as FILE#ENTRY"
        )
    return _without_copies(_without_prefixes(weights, ALWAYS_STRIPPED))


def others(stored: Any, entry: str | None) -> tuple[str, ...]:
    """Names under which more weights are stored than those that `unwrap` takes."""
    held = [name for name, value in stored.items() if _holds_weights(value)] if isinstance(stored, Mapping) else []
    taken = entry or next((name for name in WRAPPERS if name in held), None)
    return tuple(str(name) for name in held if name != taken)


def few(names: Iterable[str]) -> str:
    """The first names of many, for messages."""
    listed = list(names)
    rest = len(listed) - NAMED
    return ", ".join(listed[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def is_bookkeeping(name: str, tensor: Tensor) -> bool:
    """Whether something is a single number about the training, and not a weight."""
    return tensor.ndim == 0 and name in BOOKKEEPING


def _listed(stored: Any) -> str:
    """What is there, for messages."""
    if not isinstance(stored, Mapping):
        return f"a {type(stored).__name__}"
    return few(map(str, stored)) if stored else "an empty dictionary"


def _innermost(stored: Any) -> Any:
    """What lies within all wrappers."""
    while isinstance(stored, Mapping) and (inner := _inner(stored)) is not None:
        stored = inner
    return stored


def _named(stored: Any) -> dict[str, Tensor]:
    """The tensors of a table, but for counts."""
    items = stored.items() if isinstance(stored, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, Tensor) and str(name) not in COUNTS}


def _as_tensors(held: Any) -> Any:
    """The same with a tensor in the place of every array of numbers."""
    if isinstance(held, np.ndarray) and held.dtype.name in ARRAYS and held.dtype.isnative:
        return torch.tensor(held)
    if isinstance(held, Mapping):
        return {name: _as_tensors(value) for name, value in held.items()}
    return [_as_tensors(held[0])] if isinstance(held, list) and len(held) == 1 else held


def _alone(held: Any) -> Any:
    """What stands in a list of one, which is how some scripts save the weights of one network of several."""
    return held[0] if isinstance(held, list) and len(held) == 1 else held


def _inner(stored: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """What lies under one of the usual names; else the one thing that holds weights, whatever it is called."""
    usual = next((held for key in WRAPPERS if isinstance(held := _alone(stored.get(key)), Mapping)), None)
    others = [_alone(held) for held in stored.values() if _holds_weights(held)]
    return others[0] if usual is None and len(others) == 1 else usual


def _holds_weights(held: Any) -> bool:
    """Whether something is a table of names and tensors, or has one in it under a usual name."""
    held = _alone(held)
    if not isinstance(held, Mapping):
        return False
    named = (isinstance(name, str) and isinstance(value, Tensor) for name, value in held.items())
    return any(named) or any(_holds_weights(held.get(name)) for name in WRAPPERS)


def _without_copies(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the second copy that an attack around the network (`attacker.`) holds of them."""
    copy = "attacker."
    return {
        name: tensor
        for name, tensor in weights.items()
        if not (name.startswith(copy) and name.removeprefix(copy) in weights)
    }


def _without_prefixes(weights: dict[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    while True:
        named = [name for name, tensor in weights.items() if not is_bookkeeping(name, tensor)]
        prefix = next((p for p in prefixes if named and all(name.startswith(p) for name in named)), None)
        if prefix is None:
            return weights
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
