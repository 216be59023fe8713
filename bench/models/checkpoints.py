"""Checkpoints: reading state dicts of any project without running its code, loading, hashing and writing them.

A file is read as tensors only (safetensors, or torch's zip with `weights_only`). What training scripts wrap around
weights is removed; what remains must match the model by name and shape, or the error names the keys.
Of several networks in one file, `FILE#ENTRY` takes the one stored under that name, such as an average of the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import pickle
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bench.core import checksums
from bench.core.files import file_and_entry, write_bytes
from bench.errors import BenchError, UsageError
from bench.models.class_order import CLASS_ORDER, ClassOrder, ordered_weights
from bench.models.file_kinds import HEAD, foreign_archive, foreign_format
from bench.models.normalized import Normalized, describe_pair, input_pair, like_buffer, stored_pairs
from bench.models.unwrap import ARRAYS, abbreviate, is_bookkeeping, plain_names, unused_entries, unwrap

LAYER_1 = "1."  # of nn.Sequential(normalisation, network)
# Name prefixes of classes around the network; removed or added only where the model needs it.
PREFIXES = (
    *("model.", "net.", "network.", "student.", "encoder.", "backbone.", "basic_net.", "basic_model.", "base_model."),
    LAYER_1,
)
# Two spellings of the same layers of a ResNet, tried in both directions.
SPELLINGS = ({"fc": "linear", "downsample": "shortcut"}, {"linear": "fc", "shortcut": "downsample"})


def load_weights(path: Path | str) -> dict[str, Tensor]:
    """State dict of a checkpoint, on the CPU, without wrappers and prefixes of DataParallel.

    Args:
        path: safetensors, or a file of `torch.save` (.pt, .pth, .model, any name); `FILE#ENTRY` for one of several.

    Raises:
        UsageError: if there is no such file or entry, or it holds no weights.
        BenchError: if it is damaged, something else such as a web page, or needs code of its own to be read.
    """
    file, entry = file_and_entry(path)
    return unwrap(read_file(file), str(file), entry)


def load_run_weights(run: Path, checkpoint: str = "last") -> dict[str, Tensor]:
    """State dict of a run in a results folder, if the file is the one that its run.json states.

    Args:
        run: folder of the run.
        checkpoint: "last" or "best".

    Raises:
        BenchError: if run.json or the weights are missing, broken or changed.
    """
    file = run / f"{checkpoint}.safetensors"
    checksums.require(file, checksums.read_record(run / "run.json"))
    return load_weights(file)


def other_entries(path: Path | str) -> tuple[str, ...]:
    """Names of further networks in a file, beside the one that `load_weights` takes.

    Raises:
        UsageError, BenchError: see `load_weights`.
    """
    file, entry = file_and_entry(path)
    return unused_entries(read_file(file), entry)


def read_file(path: Path | str) -> Any:
    """Content of a checkpoint file, read without running any code of it; see `load_weights`."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if (found := foreign_format(head)) is not None:
        raise BenchError(f"{path}: expected weights, got {found}")
    if head[8:9] == b"{":
        try:
            return safetensors.torch.load_file(path)
        except SafetensorError as error:
            raise _damaged(path, error) from error
    try:
        with allow_plain_types(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TorchScript, an error below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error) or "global" in str(error):
            raise BenchError(
                f"{path}: expected tensors only, got pickled objects whose loading runs code "
                f"({_first_global(str(error))}); where you trust it, load it there and save model.state_dict() alone"
            ) from error
        raise _damaged(path, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, IndexError) as error:
        if "TorchScript" in str(error):
            raise BenchError(
                f"{path}: expected tensors only, got a TorchScript program; where you trust it, load it there and save "
                "its state_dict() alone"
            ) from error
        if (found := foreign_archive(path)) is not None:
            raise BenchError(f"{path}: expected weights, got {found}") from error
        raise _damaged(path, error) from error


@contextmanager
def allow_plain_types() -> Iterator[None]:
    """Let `weights_only` read types that run no code and are found beside weights: arrays, paths, arguments."""
    dtypes = [type(np.dtype(kind)) for kind in ARRAYS]
    scalar = np.float64(0).__reduce__()[0]
    array = np.empty(0).__reduce__()[0]
    spellings: list[Any] = [
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in ((scalar, "scalar"), (array, "_reconstruct"))
    ]
    plain = [argparse.Namespace, types.SimpleNamespace, pathlib.PosixPath, pathlib.PurePosixPath]
    with torch.serialization.safe_globals([*spellings, np.dtype, np.ndarray, *dtypes, *plain]):
        yield


def fit(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: int | None = None,
    where: str = "checkpoint",
    flag: str = "--model",
    note: Callable[[str], None] = lambda sentence: None,
) -> nn.Module:
    """Load all weights into a model; returns it, wrapped in a normalisation or an order of classes if there is one.

    Ignored are batch counters of BatchNorm, the first block that TRADES' wide networks carry and never use, and single
    numbers called epoch, loss and the like.
    A prefix that all names share is removed or added, those of DataParallel and torch.compile do not count, and layers
    called fc and downsample are linear and shortcut, where the model needs it. If the file stores a normalisation of
    the input that the model lacks, the model is wrapped in it; a normalisation that the model has and the file lacks
    stays, unless one is given.

    Args:
        model: changed in place.
        weights: names and tensors, of any float type.
        mean: of the normalisation its training used, one per channel, in units of x in [0, 1].
        std: likewise.
        channels: of the images, by which a stored normalisation of the input is known.
        where: name of the weights in messages, such as the file.
        flag: the option that chooses another network, for messages.
        note: receives a sentence on what was taken for a normalisation, or may be the trace of a lost one.

    Raises:
        UsageError: if names or shapes do not match, naming some of them, or a normalisation is given twice.
        BenchError: if a weight is not finite.
    """
    state, given = model.state_dict(), _given_normalisation(mean, std, where)
    own_names = plain_names(state)
    own = {name: state[full] for name, full in own_names.items()}
    if CLASS_ORDER in weights and CLASS_ORDER not in own:
        order, inner = ordered_weights(weights)
        more: Any = {"channels": channels, "where": where, "flag": flag, "note": note}
        return ClassOrder(fit(model, inner, mean=mean, std=std, **more), order)
    weights = {name: weights[full] for name, full in plain_names(weights).items()}
    weights = {name: tensor for name, tensor in weights.items() if name in own or not is_bookkeeping(name, tensor)}
    named, prefix = _best_spelling(weights, own)
    buffers = {name for name, full in own_names.items() if full in dict(model.named_buffers())}
    layer = input_pair({name: tensor for name, tensor in own.items() if name in buffers}, channels, list(own))
    pair = input_pair({name: tensor for name, tensor in named.items() if name not in own}, channels, list(named))
    if given is not None and (pair or any(name in named for name in layer)):
        raise UsageError(f"{where}: holds a normalisation of its own; leave out --mean and --std")
    stored = tuple(named.pop(name) for name in pair)
    normalisation = given or stored
    if normalisation and layer:
        mean_std = Normalized(nn.Identity(), *normalisation)
        named |= {name: like_buffer(values, own[name]) for name, values in zip(layer, mean_std.buffers(), strict=True)}
    kept = {*layer, *filter(_is_counter, buffers)}
    needed = {name: named.get(name, own[name]) for name in own if name in named or name in kept}
    unexpected = [name for name in named if name not in own and not _is_unused(name)]
    _check_fit(own, needed, unexpected, where, flag)
    model.load_state_dict({own_names[name]: tensor for name, tensor in needed.items()})
    if pair:
        note(f"{where}: {describe_pair(pair, stored)} are taken for the normalisation of the input")
    elif prefix == LAYER_1 and given is None:
        note(
            f"{where}: every name begins with {LAYER_1!r}, as behind a layer 0 without weights; if that was a "
            "normalisation, it is not in the file and has to be given"
        )
    return Normalized(model, *normalisation) if normalisation and not layer else model


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(path: Path | str, weights: Mapping[str, Tensor]) -> str:
    """Write safetensors atomically; equal weights give equal bytes.

    Returns:
        SHA-256 of the file.
    """
    tensors = {name: weights[name].detach().cpu().clone().contiguous() for name in sorted(weights)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save(tensors)
    write_bytes(Path(path), data)
    return hashlib.sha256(data).hexdigest()


def _best_spelling(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The weights under the spelling of names that shares most with the model, and the prefix removed from all."""
    candidates: list[tuple[dict[str, Tensor], str]] = []
    for spelling in ({}, *SPELLINGS):
        spelt = {".".join(spelling.get(word, word) for word in name.split(".")): t for name, t in weights.items()}
        candidates.append((spelt, ""))
        for prefix in PREFIXES:
            removed = prefix if all(name.startswith(prefix) for name in spelt) else ""
            candidates.append(({name.removeprefix(prefix): tensor for name, tensor in spelt.items()}, removed))
            candidates.append(({prefix + name: tensor for name, tensor in spelt.items()}, ""))
    unambiguous = (candidate for candidate in candidates if len(candidate[0]) == len(weights))
    return max(unambiguous, key=lambda candidate: len(candidate[0].keys() & own.keys()))


def _given_normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, where: str
) -> tuple[Sequence[float], Sequence[float]] | None:
    if (mean is None) != (std is None):
        raise UsageError(f"{where}: expected --mean and --std together, got one of them")
    return None if mean is None or std is None else (mean, std)


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _is_unused(name: str) -> bool:
    return name.startswith("sub_block1.") or _is_counter(name)


def _check_fit(
    own: Mapping[str, Tensor], needed: Mapping[str, Tensor], unexpected: Sequence[str], where: str, flag: str
) -> None:
    missing = [name for name in own if name not in needed]
    unequal = [name for name, tensor in needed.items() if tensor.shape != own[name].shape]
    if missing or unexpected or unequal:
        shapes = [f"{name} {tuple(needed[name].shape)} for {tuple(own[name].shape)}" for name in unequal]
        found = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
        faults = "; ".join(f"{len(names)} {what}: {abbreviate(names)}" for what, names in found if names)
        only_last = not missing and not unexpected and all(own[name].ndim <= 2 for name in unequal)
        remedy = (
            "another number of classes or image size? choose the dataset it was trained on"
            if only_last
            else f"another network? choose it with {flag}, by name or as MODULE:BUILDER"
        )
        for mean, std in stored_pairs(unexpected)[:1]:
            faults += (
                f"; {mean} and {std} are not taken for the normalisation of the input, which has a value for each "
                "channel and lies in front of the network"
            )
        raise UsageError(f"{where}: the weights do not fit the model ({faults}); {remedy}")
    broken = [name for name, tensor in needed.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise BenchError(
            f"{where}: expected finite weights, got NaN or infinity in {abbreviate(broken)}; training diverged"
        )


def _first_global(text: str) -> str:
    """The class that torch's error message names."""
    words = [word.strip("`'\",.()") for word in text.split()]
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "GLOBAL"]
    return named[0] if named else "a class that is not a tensor"


def _damaged(path: Path, error: Exception) -> BenchError:
    reason = str(error).partition(". ")[0].partition("\n")[0] or type(error).__name__
    return BenchError(
        f"{path}: expected safetensors or a file of torch.save, got something damaged or cut short "
        f"({path.stat().st_size} bytes; {reason}); fetch it again"
    )
