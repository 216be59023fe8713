"""The order of a network's classes, where it is not the data set's: read from a file, and a layer that follows it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import UsageError
from bench.models.unwrap import abbreviate

CLASS_ORDER = "class_order"


class ClassOrder(nn.Module):
    """A model with its outputs in another order: column k is the model's column `class_order[k]`.

    >>> ClassOrder(nn.Flatten(), torch.tensor([2, 0, 1]))(torch.tensor([[0.1, 0.2, 0.3]])).tolist()
    [[0.30000001192092896, 0.10000000149011612, 0.20000000298023224]]
    """

    class_order: Tensor

    def __init__(self, model: nn.Module, order: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer(CLASS_ORDER, order)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of x (N, C, H, W), in the order of the data set."""
        logits: Tensor = self.model(x).index_select(1, self.class_order)
        return logits


def ordered_weights(weights: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The order and the weights of the inner model, from the state dict of a `ClassOrder`."""
    inner = {name.removeprefix("model."): tensor for name, tensor in weights.items() if name != CLASS_ORDER}
    return weights[CLASS_ORDER], inner


def read_class_order(path: Path | str, class_names: Sequence[str]) -> Tensor:
    """For each class of a data set the output (K,) int64 of a network that stands for it.

    Args:
        path: text with a name per line in the order of the outputs; or JSON, a list of names, a dictionary of their
            indices such as torchvision's `class_to_idx`, or one of names by their indices.
        class_names: of the data set.

    Raises:
        UsageError: if it cannot be read, or does not hold every name once.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--class-order {path}: cannot be read ({error}); expected text in UTF-8") from None
    where, known = f"--class-order {path}", set(class_names)
    names = _names(text, where)
    faults = {
        "missing": sorted(known - set(names)),
        "unknown": sorted(set(names) - known),
        "twice": [name for name, n in Counter(names).items() if n > 1],
    }
    if any(faults.values()):
        found = "; ".join(f"{what}: {abbreviate(which)}" for what, which in faults.items() if which)
        raise UsageError(
            f"{where}: expected the names of the {len(class_names)} classes of the data set, each once, in the order "
            f"of the network's outputs; {found}"
        )
    return torch.tensor([names.index(name) for name in class_names])


def _names(text: str, where: str) -> list[str]:
    """Names in the order of the outputs."""
    try:
        held: Any = json.loads(text) if text.lstrip().startswith(("[", "{")) else None
    except ValueError:
        held = None  # a name that begins with a bracket
    if isinstance(held, Mapping):
        index = {str(name): number for number, name in held.items()} if _is_index_to_name(held) else held
        if sorted(map(str, index.values())) != sorted(map(str, range(len(index)))):
            raise UsageError(f"{where}: expected an index from 0 to {len(held) - 1} for each class, each once")
        return sorted(index, key=lambda name: int(index[name]))
    lines = held if isinstance(held, list) else text.splitlines()
    return [name for line in lines if (name := str(line).strip())]


def _is_index_to_name(held: Mapping[str, Any]) -> bool:
    return all(key.isdecimal() and isinstance(value, str) for key, value in held.items())
