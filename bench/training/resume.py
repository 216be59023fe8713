"""Write and read state.pt, from which a run is resumed; its bytes depend on nothing but its content."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.core import files
from bench.distributed.process_group import ProcessGroup
from bench.errors import BenchError

Groups = Mapping[str, Mapping[str, Tensor]]


def save_state(
    path: Path,
    groups: Groups,
    position: Mapping[str, Any],
    *,
    group: ProcessGroup | None = None,
    per_process: Sequence[str] = (),
) -> None:
    """Write tensors in named groups and plain figures, whole; the file loads with weights_only.

    Args:
        path: the file, which the first process of the group writes.
        groups: name -> tensors by name.
        position: epoch, step and figures, as JSON can hold them.
        group: the processes that train together; each of them must call this.
        per_process: groups that differ between processes; those of the others are stored where they do.

    Names are made anew and tensors copied: pickle writes an object that it has seen before as a reference, and what
    a resumed process shares differs from what an undisturbed one does.
    """
    tensors = {
        f"{kind}/{name}": tensor.detach().cpu().clone().contiguous()
        for kind, named in groups.items()
        for name, tensor in named.items()
    }
    if group is not None:
        every = group.gather(
            {name: tensor for name, tensor in tensors.items() if name.partition("/")[0] in per_process}
        )
        for rank, theirs in enumerate(every[1:], start=1):
            differing = {name: t for name, t in theirs.items() if name not in tensors or not t.equal(tensors[name])}
            tensors |= {f"{name}@{rank}": tensor for name, tensor in differing.items()}
        if not group.is_main:
            return
    buffer = io.BytesIO()
    torch.save({"tensors": tensors, "position": json.dumps(position)}, buffer)
    files.write_bytes(path, buffer.getvalue())


def load_state(path: Path, device: torch.device, rank: int = 0) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `save_state` wrote, as one of several processes left it.

    Raises:
        BenchError: if the file is not a state.
    """
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "method": {}, "momentum": {}, "tally": {}}
    try:
        stored = torch.load(path, map_location=device, weights_only=True)
        position = json.loads(stored["position"])
        for full, tensor in sorted(stored["tensors"].items(), key=lambda item: "@" in item[0]):
            name, _, owner = full.partition("@")
            if owner in ("", str(rank)):
                kind, _, name = name.partition("/")
                groups[kind][name] = tensor
    except Exception as error:  # torch raises many kinds for a damaged file; the remedy is the same
        raise BenchError(f"{path}: cannot be resumed from ({error}); delete the folder and run again") from error
    return groups, position
