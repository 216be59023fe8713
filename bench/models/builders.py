"""Building a network by name, with an initialisation that depends on the seed alone."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from bench.errors import BenchError, UsageError
from bench.models.registry import MODELS, ZOO, Builder, builder_file, folder_name, is_unregistered

if TYPE_CHECKING:
    from torch import nn


def builder(name: str) -> Builder:
    """The function that builds a model: registered, of a package, `module:builder` or `file.py:builder`.

    Raises:
        UnknownName: if the name is not registered.
        UsageError: if the module or the builder cannot be found, or the module does not import.
    """
    if not is_unregistered(name):
        return MODELS[name]
    if name.startswith(f"{ZOO}:"):
        raise UsageError(
            f"model {name!r}: networks of the zoo are for checkpoints trained elsewhere; "
            "expected it under `bench evaluate` or --teacher-model"
        )
    place, _, attribute = name.rpartition(":")
    function = getattr(_import_module(place, name), attribute, None)
    if not callable(function):
        raise UsageError(f"model {name!r}: {place} has no function {attribute!r}; expected MODULE:BUILDER")
    loaded: Builder = function
    return loaded


def build(name: str, num_classes: int, in_channels: int, image_size: int, seed: int) -> nn.Module:
    """A model whose initialisation depends on the seed alone; the global random streams are restored.

    >>> import torch
    >>> model = build("small_cnn", num_classes=10, in_channels=1, image_size=8, seed=0)
    >>> tuple(model(torch.zeros(4, 1, 8, 8)).shape)
    (4, 10)

    Args:
        name: of a model, any but `robustbench:ID`.
        num_classes: classes K of the logits.
        in_channels: channels of the images.
        image_size: height and width of the images, at least 8.
        seed: of the initialisation.

    Raises:
        UnknownName, UsageError: see `builder`.
        UsageError: if the numbers are out of range, or the builder does not take them.
        BenchError: if the builder fails, does not return a module, or the module does not return logits.
    """
    import torch

    if num_classes < 2 or in_channels < 1 or image_size < 8:
        raise UsageError(
            f"model {name!r}: expected at least 2 classes, 1 channel and images of 8x8, "
            f"got {num_classes}, {in_channels} and {image_size}x{image_size}"
        )
    make = _check_signature(builder(name), name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model = make(num_classes, in_channels, image_size)
        except BenchError:
            raise
        except Exception as error:  # a user's builder may raise anything; the sentence says where
            raise BenchError(
                f"model {name!r}: its builder fails for {num_classes} classes, {in_channels} channels and images of "
                f"{image_size}x{image_size} ({_describe_error(error, name)})"
            ) from error
    if not isinstance(model, torch.nn.Module):
        raise BenchError(
            f"model {name!r}: expected its builder to return a torch.nn.Module, got {type(model).__name__}"
        )
    model = _without_wrapper(model)
    if ":" in name:
        with torch.random.fork_rng(devices=[]):
            _check_logits(model, name, num_classes, (in_channels, image_size, image_size))
    return model


def network(name: str, dataset: str, norm: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A model to load weights into: any that `build` makes, or the network of an entry of the zoo.

    Args:
        name: of a model.
        dataset: the data set it is for, which identifies an entry of the zoo.
        norm: of the threat model it was trained for, likewise.
        num_classes: see `build`.
        in_channels: see there.
        image_size: see there.

    Raises:
        UnknownName, UsageError, BenchError: see `build` and `bench.models.robustbench.zoo_network`.
    """
    if name.startswith(f"{ZOO}:"):
        from bench.models.robustbench import zoo_network

        return zoo_network(name.partition(":")[2], dataset, norm)
    return build(name, num_classes, in_channels, image_size, seed=0)


def _check_signature(make: Builder, name: str) -> Builder:
    """The builder, if it can be called with three numbers."""
    try:
        signature = inspect.signature(make)
    except ValueError:  # some built-in functions have none
        return make
    try:
        signature.bind(0, 0, 0)
    except TypeError:
        raise UsageError(
            f"model {name!r}: expected BUILDER(num_classes, in_channels, image_size), got "
            f"{name.rpartition(':')[2]}{signature.replace(return_annotation=inspect.Signature.empty)}"
        ) from None
    return make


def _describe_error(error: BaseException, name: str) -> str:
    """Text of an error of a network, and the last line of the builder's file in its traceback."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    file = builder_file(name.rpartition(":")[0], name) if is_unregistered(name) else None
    numbers = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is_file(frame.filename, file)]
    return f"{text}; {file.name}, line {numbers[-1]}" if file is not None and numbers else text


def _is_file(name: str, file: Path | None) -> bool:
    return file is not None and Path(name).resolve() == file.resolve()


def _without_wrapper(model: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel or a compiled module, which the suite does itself."""
    from torch import nn

    while True:
        inner = getattr(model, "_orig_mod", None)  # of torch.compile
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _check_logits(model: nn.Module, name: str, num_classes: int, image: tuple[int, int, int]) -> None:
    """Apply a user's model to two images of its size and check the shape of its logits."""
    import torch

    from attacks.contexts import mode

    given = "x".join(map(str, image))
    try:
        with mode(model, train=False), torch.no_grad():
            logits = model(torch.zeros(2, *image))
    except Exception as error:
        raise BenchError(
            f"model {name!r}: cannot be applied to images of {given} ({_describe_error(error, name)})"
        ) from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (2, num_classes):
        raise BenchError(f"model {name!r}: expected logits (2, {num_classes}) of two images of {given}, got {shape}")


def _import_module(place: str, name: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(f"bench_model_{folder_name(place)}", place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise UsageError(f"model {name!r}: there is no file {place}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module  # where dataclasses look for their module
        spec.loader.exec_module(module)
        return module
    except ImportError as error:
        raise UsageError(
            f"model {name!r}: {place} cannot be imported ({error}); is it installed, or its folder on PYTHONPATH?"
        ) from error
    except BenchError:
        raise
    except (Exception, SystemExit) as error:  # a script, for one, reads a command line of its own, and ends
        raise UsageError(f"model {name!r}: {place} cannot be imported ({_describe_error(error, name)})") from error
