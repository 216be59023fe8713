"""Extraction of a state dict from what training scripts save: dictionaries, lists of one, prefixes, copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.errors import UsageError

# Keys of state dicts in files, the more specific names first; an average comes after what it averages.
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
# Prefixes that DataParallel and torch.compile add to every name.
PARALLEL_PREFIXES = ("module.", "_orig_mod.")
# Entries that are no weights: the number of averaged models.
COUNTS = ("n_averaged",)
# Single numbers that some scripts save in the same dictionary as the weights.
BOOKKEEPING = frozenset(
    (
        *("epoch", "epochs", "step", "steps", "global_step", "iter", "iters", "iteration", "iterations"),
        *("acc", "accuracy", "best_acc", "loss", "best_loss", "lr", "eps", "seed"),
    )
)
# Dtypes of NumPy arrays that are read, and taken as weights where there are no tensors.
ARRAYS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
SHOWN = 4


def unwrap(stored: Any, where: str, entry: str | None = None) -> dict[str, Tensor]:
    """The state dict inside what a training script saved, under `entry` if given.

    Raises:
        UsageError: if there is none, listing the entries that exist.
    """
    if entry is not None:
        if not isinstance(stored, Mapping) or entry not in stored:
            raise UsageError(f"{where}: expected an entry {entry!r}, got {_describe(stored)}")
        stored = _sole_item(stored[entry])
    weights = _named_tensors(_innermost(stored))
    if all(is_bookkeeping(name, tensor) for name, tensor in weights.items()):
        weights = _named_tensors(_innermost(_as_tensors(stored))) or weights
    if not weights:
        inner = _innermost(stored)
        found = _describe(stored if not isinstance(inner, Mapping) or inner else {})
        raise UsageError(
            f"{where}: expected names and tensors, got {found}; save model.state_dict() under 'state_dict', "
            "or name the entry that holds it as FILE#ENTRY"
        )
    return _without_copies(_without_prefixes(weights, PARALLEL_PREFIXES))


def unused_entries(stored: Any, entry: str | None) -> tuple[str, ...]:
    """Names of further networks beside the one that `unwrap` takes."""
    held = [name for name, value in stored.items() if _holds_weights(value)] if isinstance(stored, Mapping) else []
    taken = entry or next((name for name in WRAPPERS if name in held), None)
    return tuple(str(name) for name in held if name != taken)


def abbreviate(names: Iterable[str]) -> str:
    """The first names of many, for messages."""
    listed = list(names)
    rest = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Names by what they are without the prefixes of DataParallel and torch.compile, wherever in a name these are.

    >>> plain_names(["0.mean", "1.module.conv.weight"])
    {'0.mean': '0.mean', '1.conv.weight': '1.module.conv.weight'}
    """
    full = list(names)
    added = {prefix.removesuffix(".") for prefix in PARALLEL_PREFIXES}
    words = [name.split(".") for name in full]
    plain = [".".join([*(word for word in inner if word not in added), last]) for *inner, last in words]
    return dict(zip(plain if len(set(plain)) == len(full) else full, full, strict=True))


def is_bookkeeping(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is a single number about the training, and not a weight."""
    return tensor.ndim == 0 and name in BOOKKEEPING


def _describe(stored: Any) -> str:
    """The entries of a dictionary, or the type of something else, for messages."""
    if not isinstance(stored, Mapping):
        return f"a {type(stored).__name__}"
    return abbreviate(map(str, stored)) if stored else "an empty dictionary"


def _innermost(stored: Any) -> Any:
    """The content of all nested wrappers."""
    while isinstance(stored, Mapping) and (inner := _inner(stored)) is not None:
        stored = inner
    return stored


def _named_tensors(stored: Any) -> dict[str, Tensor]:
    """The tensors of a dictionary, without counts."""
    items = stored.items() if isinstance(stored, Mapping) else ()
    return {str(name): value for name, value in items if isinstance(value, Tensor) and str(name) not in COUNTS}


def _as_tensors(held: Any) -> Any:
    """The same with every array of numbers converted to a tensor."""
    if isinstance(held, np.ndarray) and held.dtype.name in ARRAYS and held.dtype.isnative:
        return torch.tensor(held)
    if isinstance(held, Mapping):
        return {name: _as_tensors(value) for name, value in held.items()}
    return [_as_tensors(held[0])] if isinstance(held, list) and len(held) == 1 else held


def _sole_item(held: Any) -> Any:
    """The item of a list of one, in which some scripts save the weights of a network."""
    return held[0] if isinstance(held, list) and len(held) == 1 else held


def _inner(stored: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """The value under the first of `WRAPPERS`; else the only value that holds weights."""
    wrapped = next((held for key in WRAPPERS if isinstance(held := _sole_item(stored.get(key)), Mapping)), None)
    holders = [_sole_item(held) for held in stored.values() if _holds_weights(held)]
    return holders[0] if wrapped is None and len(holders) == 1 else wrapped


def _holds_weights(held: Any) -> bool:
    """Whether a value is a state dict, or holds one under one of `WRAPPERS`."""
    held = _sole_item(held)
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
