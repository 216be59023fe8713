"""Weights in files: reading those of other projects without running their code, fitting them, hashing, writing.

A file is read as tensors only (safetensors, or torch's zip with `weights_only`). What training scripts wrap
around weights is taken off; what remains must fit the model by name and shape, or the error names the keys.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bench.errors import BenchError, UsageError
from bench.normalized import Normalized
from bench.store import write_bytes

# Where training scripts put the weights, the more specific names first; an average comes after what it averages.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "student",
    "ema_state_dict",
    "model_ema",
    "ema",
    "last",
    "best",
)
# What DataParallel and torch.compile put before every name.
ALWAYS_STRIPPED = ("module.", "_orig_mod.")
# What a class around the network may put there; taken off or put on only where the model asks for it.
PREFIXES = ("model.", "net.", "network.", "student.", "encoder.", "backbone.", "1.")
NORMALISATIONS = (("mean", "std"), ("mu", "sigma"), ("normalize.mean", "normalize.std"), ("0.mean", "0.std"))
NAMED = 4


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint, on the CPU, without its wrappers and parallel prefixes.

    Args:
        path: safetensors, or a file of `torch.save` (.pt, .pth, .model, any name).

    Raises:
        UsageError: if there is no such file, or it holds no weights.
        BenchError: if it is damaged, a web page, or needs code of its own to be read.
    """
    return unwrap(read_file(path), str(path))


def read_file(path: Path | str) -> Any:
    """What a checkpoint file holds, read without running any code of it; see `load_weights`."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    with path.open("rb") as file:
        head = file.read(512)
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise BenchError(
            f"{path}: expected weights, got a web page (a download that asked for a confirmation, or an error); "
            "delete it and fetch the file with a browser"
        )
    if head[8:9] == b"{":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise _damaged(path, error) from error
    try:
        with inert_types():
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error) or "global" in str(error):
            raise BenchError(
                f"{path}: expected tensors only, got pickled objects whose loading runs code "
                f"({_first_global(str(error))}); where you trust it, load it there and save model.state_dict() alone"
            ) from error
        raise _damaged(path, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, IndexError) as error:
        raise _damaged(path, error) from error


@contextmanager
def inert_types() -> Iterator[None]:
    """Let `weights_only` read what checkpoints carry beside weights and what runs nothing: NumPy numbers, arguments."""
    dtypes = [type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "bool")]
    scalar = np.float64(0).__reduce__()[0]
    spellings: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*spellings, np.dtype, *dtypes, argparse.Namespace]):
        yield


def unwrap(stored: Any, where: str) -> dict[str, Tensor]:
    """The names and tensors inside what a training script saved.

    Raises:
        UsageError: if there are none, listing what there is.
    """
    seen = stored
    while isinstance(seen, Mapping):
        inner = next((held for key in WRAPPERS if isinstance(held := _alone(seen.get(key)), Mapping)), None)
        if inner is None:
            break
        seen = inner
    items = seen.items() if isinstance(seen, Mapping) else ()
    weights = {str(name): tensor for name, tensor in items if isinstance(tensor, Tensor)}
    if not weights:
        found = _few(map(str, stored)) if isinstance(stored, Mapping) else f"a {type(stored).__name__}"
        raise UsageError(
            f"{where}: expected names and tensors, got {found}; save model.state_dict() under 'state_dict'"
        )
    return _without_prefixes(weights, ALWAYS_STRIPPED)


def fit(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    where: str = "checkpoint",
) -> nn.Module:
    """Put weights into a model, every one of them, and return it, behind a normalisation where there is one.

    Passed over are counters of batches and the first block that TRADES' wide networks carry and never use.
    A prefix that all names share is taken off or put on. Where the file stores a normalisation that the model
    lacks, the model is put behind it.

    Args:
        model: changed in place.
        weights: names and tensors, of any float type.
        mean: of the normalisation its training used, one per channel, in units of x in [0, 1].
        std: likewise.
        where: what the messages call the weights, such as the file.

    Raises:
        UsageError: if names or shapes do not fit, naming some of them, or a normalisation is given twice.
        BenchError: if a weight is not finite.
    """
    own = model.state_dict()
    named, stored = _normalisation(_rename(weights, own), own)
    given = _given(mean, std, where)
    if given is not None and stored is not None:
        raise UsageError(f"{where}: holds a normalisation of its own; leave out --mean and --std")
    needed = {name: named.get(name, own[name]) for name in own if name in named or _is_counter(name)}
    unexpected = [name for name in named if name not in own and not _is_unused(name)]
    _check_fit(own, needed, unexpected, where)
    model.load_state_dict(needed)
    normalisation = given or stored
    return model if normalisation is None else Normalized(model, *normalisation)


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(path: Path | str, weights: Mapping[str, Tensor]) -> None:
    """Write safetensors, whole or not at all; equal weights give equal bytes."""
    tensors = {name: weights[name].detach().cpu().clone().contiguous() for name in sorted(weights)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(Path(path), safetensors.torch.save(tensors))


def _alone(held: Any) -> Any:
    """What stands in a list of one, which is how some scripts save the weights of one network of several."""
    return held[0] if isinstance(held, list) and len(held) == 1 else held


def _without_prefixes(weights: dict[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    while True:
        prefix = next((p for p in prefixes if all(name.startswith(p) for name in weights)), None)
        if prefix is None:
            return weights
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def _rename(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names that most agree with the model's: as they are, or with a prefix off or on."""
    as_they_are = dict(weights)
    forms = [as_they_are]
    for prefix in PREFIXES:
        forms.append({name.removeprefix(prefix): tensor for name, tensor in weights.items()})
        forms.append({prefix + name: tensor for name, tensor in weights.items()})
    return max((form for form in forms if len(form) == len(weights)), key=lambda form: len(form.keys() & own.keys()))


def _normalisation(
    weights: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor] | None]:
    """Take a stored normalisation out of weights for a model that has none."""
    for mean, std in NORMALISATIONS:
        if mean in weights and std in weights and mean not in own and std not in own:
            rest = {name: tensor for name, tensor in weights.items() if name not in (mean, std)}
            return rest, (weights[mean], weights[std])
    return weights, None


def _given(
    mean: Sequence[float] | None, std: Sequence[float] | None, where: str
) -> tuple[Sequence[float], Sequence[float]] | None:
    if (mean is None) != (std is None):
        raise UsageError(f"{where}: expected --mean and --std together, got one of them")
    return None if mean is None or std is None else (mean, std)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _is_unused(name: str) -> bool:
    return name.startswith("sub_block1.") or _is_counter(name)


def _check_fit(own: Mapping[str, Tensor], needed: Mapping[str, Tensor], unexpected: Sequence[str], where: str) -> None:
    missing = [name for name in own if name not in needed]
    unequal = [name for name, tensor in needed.items() if tensor.shape != own[name].shape]
    if missing or unexpected or unequal:
        shapes = [f"{name} {tuple(needed[name].shape)} for {tuple(own[name].shape)}" for name in unequal]
        found = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
        faults = "; ".join(f"{len(names)} {what}: {_few(names)}" for what, names in found if names)
        only_last = not missing and not unexpected and all(own[name].ndim <= 2 for name in unequal)
        remedy = (
            "another number of classes or image size? choose the dataset it was trained on"
            if only_last
            else "another network? choose it with --model, by name or as MODULE:BUILDER"
        )
        raise UsageError(f"{where}: the weights do not fit the model ({faults}); {remedy}")
    broken = [name for name, tensor in needed.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise BenchError(f"{where}: expected finite weights, got NaN or infinity in {_few(broken)}; training diverged")


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    rest = len(listed) - NAMED
    return ", ".join(listed[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _first_global(text: str) -> str:
    """The class that torch's message names."""
    words = [word.strip("`'\",.()") for word in text.split()]
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "GLOBAL"]
    return named[0] if named else "a class that is not a tensor"


def _damaged(path: Path, error: Exception) -> BenchError:
    reason = str(error).partition(". ")[0].partition("\n")[0] or type(error).__name__
    return BenchError(
        f"{path}: expected safetensors or a file of torch.save, got something damaged or cut short "
        f"({path.stat().st_size} bytes; {reason}); fetch it again"
    )
