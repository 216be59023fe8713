"""Models by name: the registry, which imports nothing heavy, and the way to a model with its own initialisation.

A builder is `build(num_classes, in_channels, image_size) -> Module`: the module takes x (N, C, H, W) in [0, 1]
and returns logits (N, K); a normalisation is a layer of it (`Normalized`). Facts of the registration:
`parameters` and `mmacs` (millions of multiply-adds per image), both at 10 classes and the `image` it was made for.
A builder that is not registered is named by `package.module:builder` or `path/to/file.py:builder`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attacks.registry import Registry
from bench.errors import BenchError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from bench.normalized import Normalized

__all__ = ["MODELS", "Builder", "Normalized", "build", "builder", "resolve"]

Builder = Callable[[int, int, int], "nn.Module"]

MODELS: Registry[Builder] = Registry(
    kind="model",
    group="bench.models",
    builtin={
        "small_cnn": "bench.architectures.small",
        "small_cnn_wide": "bench.architectures.small",
        "small_resnet": "bench.architectures.small_resnet",
        "small_resnet_wide": "bench.architectures.small_resnet",
        "resnet18": "bench.architectures.resnet",
        "preact_resnet18": "bench.architectures.resnet",
        "preact_resnet18_plain": "bench.architectures.resnet",
        "mobilenet_v2": "bench.architectures.mobilenet",
        "wrn28_10": "bench.architectures.wide_resnet",
        "wrn34_10": "bench.architectures.wide_resnet",
    },
)


def __getattr__(name: str) -> Any:
    if name != "Normalized":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench.normalized import Normalized

    return Normalized


def resolve(name: str) -> str:
    """The registered spelling of a model's name; `module:builder` is returned as it is.

    Raises:
        UnknownName: with the closest match.
    """
    return name if ":" in name else MODELS.resolve(name)


def builder(name: str) -> Builder:
    """The function that builds a model: a registered one, or one named by `module:builder` or `file.py:builder`.

    Raises:
        UnknownName: if the name is not registered.
        UsageError: if the module or the builder cannot be found.
    """
    if ":" not in name:
        return MODELS[name]
    place, _, attribute = name.rpartition(":")
    found = getattr(_module(place, name), attribute, None)
    if not callable(found):
        raise UsageError(f"model {name!r}: {place} has no function {attribute!r}; expected MODULE:BUILDER")
    loaded: Builder = found
    return loaded


def build(name: str, num_classes: int, in_channels: int, image_size: int, seed: int) -> nn.Module:
    """A model whose initialisation depends on the seed alone; the caller's random stream is left as it was.

    Args:
        name: a registered model, or `module:builder`.
        num_classes: classes K of the logits.
        in_channels: channels of the images.
        image_size: height and width of the images, at least 8.
        seed: of the initialisation.

    Raises:
        UnknownName, UsageError: see `builder`.
        UsageError: if the numbers make no model.
        BenchError: if the builder returns something else than a module.
    """
    import torch

    if num_classes < 2 or in_channels < 1 or image_size < 8:
        raise UsageError(
            f"model {name!r}: expected at least 2 classes, 1 channel and images of 8x8, "
            f"got {num_classes}, {in_channels} and {image_size}x{image_size}"
        )
    make = builder(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = make(num_classes, in_channels, image_size)
    if not isinstance(model, torch.nn.Module):
        raise BenchError(
            f"model {name!r}: expected its builder to return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def _module(place: str, name: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        if spec is None or spec.loader is None or not Path(place).is_file():
            raise UsageError(f"model {name!r}: there is no file {place}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ImportError as error:
        raise UsageError(
            f"model {name!r}: {place} cannot be imported ({error}); is it installed, or its folder on PYTHONPATH?"
        ) from error
