"""state.pt: what resuming a run needs, in bytes that depend on nothing but their content."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import store
from bench.errors import BenchError

Groups = Mapping[str, Mapping[str, Tensor]]


def save_state(path: Path, groups: Groups, position: Mapping[str, Any]) -> None:
    """Write tensors in named groups and plain figures, whole; the file loads with weights_only.

    Names are made anew and tensors copied: pickle writes an object that it has seen before as a reference, and what
    a resumed process shares differs from what an undisturbed one does.
    """
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().clone().contiguous()
        for group, named in groups.items()
        for name, tensor in named.items()
    }
    buffer = io.BytesIO()
    torch.save({"tensors": tensors, "position": json.dumps(position)}, buffer)
    store.write_bytes(path, buffer.getvalue())


def load_state(path: Path, device: torch.device) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `save_state` wrote.

    Raises:
        BenchError: if the file is not a state.
    """
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "method": {}, "momentum": {}, "tally": {}}
    try:
        stored = torch.load(path, map_location=device, weights_only=True)
        position = json.loads(stored["position"])
        for full, tensor in stored["tensors"].items():
            group, _, name = full.partition("/")
            groups[group][name] = tensor
    except Exception as error:  # torch raises many kinds for a damaged file; the remedy is the same
        raise BenchError(f"{path}: cannot be resumed from ({error}); delete the folder and run again") from error
    return groups, position
