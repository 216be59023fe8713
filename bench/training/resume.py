"""Write and read state.pt, from which a run is resumed; its bytes depend on nothing but its content."""

from __future__ import annotations

import hashlib
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
from bench.models.checkpoints import weights_hash

Groups = Mapping[str, Mapping[str, Tensor]]


def save_state(
    path: Path,
    groups: Groups,
    position: Mapping[str, Any],
    *,
    key: str,
    group: ProcessGroup | None = None,
    per_process: Sequence[str] = (),
) -> None:
    """Write tensors in named groups and plain figures, whole; the file loads with weights_only.

    Args:
        path: the file, which the first process of the group writes.
        groups: name -> tensors by name.
        position: epoch, step and figures, as JSON can hold them.
        key: of the run.
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
    text = json.dumps(position)
    digest = _content_hash(tensors, text, key)
    torch.save({"tensors": tensors, "position": text, "key": key, "sha256": digest}, buffer)
    files.write_bytes(path, buffer.getvalue())


def _content_hash(tensors: Mapping[str, Tensor], position: str, key: str) -> str:
    return hashlib.sha256(f"{weights_hash(tensors)}\n{key}\n{position}".encode()).hexdigest()


def load_state(
    path: Path, device: torch.device, *, key: str, rank: int = 0
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read what `save_state` wrote, as one of several processes left it; states of before have no hash and no key.

    Raises:
        BenchError: if the file is not a state, was changed, or is that of another run.
    """
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "method": {}, "momentum": {}, "tally": {}}
    try:
        stored = torch.load(path, map_location=device, weights_only=True)
        position, owner_key, digest = json.loads(stored["position"]), stored.get("key", key), stored.get("sha256")
        intact = digest in (None, _content_hash(stored["tensors"], stored["position"], owner_key))
        for full, tensor in sorted(stored["tensors"].items(), key=lambda item: "@" in item[0]):
            name, _, owner = full.partition("@")
            if owner in ("", str(rank)):
                kind, _, name = name.partition("/")
                groups[kind][name] = tensor
    except Exception as error:  # torch raises many kinds for a damaged file; the remedy is the same
        raise BenchError(f"{path}: cannot be resumed from ({error}); delete the folder and run again") from error
    if not intact:
        raise BenchError(f"{path}: its content is not that of the SHA-256 in it; delete the folder and run again")
    if owner_key != key:
        raise BenchError(f"{path}: expected the state of run {key}, got that of {owner_key}; delete it and run again")
    return groups, position
