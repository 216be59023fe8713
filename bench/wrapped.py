"""What training scripts put around weights, and taking it off: dictionaries, lists of one, prefixes, copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
NAMED = 4


def unwrap(stored: Any, where: str, entry: str | None = None) -> dict[str, Tensor]:
    """The names and tensors inside what a training script saved, of its entry `entry` where that is given.

    Raises:
        UsageError: if there are none, listing what there is.
    """
    if entry is not None:
        if not isinstance(stored, Mapping) or entry not in stored:
            found = few(map(str, stored)) if isinstance(stored, Mapping) else f"a {type(stored).__name__}"
            raise UsageError(f"{where}: expected an entry {entry!r}, got {found}")
        stored = _alone(stored[entry])
    seen = stored
    while isinstance(seen, Mapping):
        inner = _inner(seen)
        if inner is None:
            break
        seen = inner
    items = seen.items() if isinstance(seen, Mapping) else ()
    weights = {str(name): tensor for name, tensor in items if isinstance(tensor, Tensor)}
    weights = {name: tensor for name, tensor in weights.items() if name not in COUNTS}
    if not weights:
        found = few(map(str, stored)) if isinstance(stored, Mapping) else f"a {type(stored).__name__}"
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
        prefix = next((p for p in prefixes if all(name.startswith(p) for name in weights)), None)
        if prefix is None:
            return weights
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
