"""Models by name: the registry, which imports nothing heavy, and the way to a model with its own initialisation.

A builder is `build(num_classes, in_channels, image_size) -> Module`: the module takes x (N, C, H, W) in [0, 1]
and returns logits (N, K); a normalisation is a layer of it (`Normalized`). Facts of the registration:
`parameters` and `mmacs` (millions of multiply-adds per image), both at 10 classes and the `image` it was made for.

What is not registered has a colon in its name: `torchvision:NAME` and `timm:NAME` (see `bench.models.packages`), a
builder of one's own as `package.module:builder` or `path/to/file.py:builder`, and for checkpoints trained elsewhere
`robustbench:ID`, the network of that entry of the zoo.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attacks.plugins.registry import Registry
from attacks.plugins.sketch import Sketch
from bench.core.files import file_hash
from bench.errors import BenchError, UsageError
from bench.models import packages

if TYPE_CHECKING:
    from torch import nn

    from bench.models.normalized import Normalized

__all__ = ["MODELS", "Builder", "Normalized", "build", "builder", "folder_name", "network", "resolve", "source"]

Builder = Callable[[int, int, int], "nn.Module"]
ZOO = "robustbench"


class Models(Registry[Builder]):
    """The registered networks, and those of torchvision and timm."""

    @property
    def forms(self) -> dict[str, str]:
        """How a network that is not registered is named, with a line on each."""
        own = {
            "FILE.py:BUILDER": "A function build(num_classes, in_channels, image_size) of your own; also MODULE:BUILDER"
        }
        return {**packages.FORMS, **own}

    def __getitem__(self, name: str) -> Builder:
        """The function that builds a network."""
        outside = packages.parse(self.resolve(name))
        return super().__getitem__(name) if outside is None else partial(packages.build, *outside)

    def sketch(self, name: str) -> Sketch:
        """What is known of a network without building it."""
        outside = packages.parse(self.resolve(name))
        return super().sketch(name) if outside is None else packages.sketch(*outside)

    def _spelling(self, name: str) -> str | None:
        outside = packages.parse(name)
        return super()._spelling(name) if outside is None else packages.spelling(*outside)


MODELS = Models(
    kind="model",
    group="bench.models",
    builtin={
        "small_cnn": "bench.models.architectures.small",
        "small_cnn_wide": "bench.models.architectures.small",
        "small_resnet": "bench.models.architectures.small_resnet",
        "small_resnet_wide": "bench.models.architectures.small_resnet",
        "resnet18": "bench.models.architectures.resnet",
        "preact_resnet18": "bench.models.architectures.resnet",
        "preact_resnet18_plain": "bench.models.architectures.resnet",
        "mobilenet_v2": "bench.models.architectures.mobilenet",
        "wrn28_10": "bench.models.architectures.wide_resnet",
        "wrn34_10": "bench.models.architectures.wide_resnet",
        "wrn34_20": "bench.models.architectures.wide_resnet",
    },
)


def __getattr__(name: str) -> Any:
    if name != "Normalized":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench.models.normalized import Normalized

    return Normalized


def resolve(name: str) -> str:
    """The known spelling of a model's name; `module:builder` and `robustbench:ID` are returned as they are.

    Raises:
        UnknownName: with the closest match.
        UsageError: if the package that a name asks for is not installed.
    """
    return name if _is_own(name) else MODELS.resolve(name)


def folder_name(name: str) -> str:
    """A model's name as that of a folder."""
    return re.sub(r"[/\\:]", "_", name)


def source(name: str) -> str:
    """The hash of the file with a builder that is not the suite's or a package's, since its name says nothing of it.

    Raises:
        UsageError: if a builder's file is not there.
    """
    if not _is_own(name):
        known = MODELS.resolve(name)
        file = None if known in MODELS.builtin or ":" in known else MODELS.sketch(known).source
    else:
        file = _file(name.rpartition(":")[0], name)
    return "" if file is None else file_hash(file)


def builder(name: str) -> Builder:
    """The function that builds a model: one that is registered or of a package, `module:builder` or `file.py:builder`.

    Raises:
        UnknownName: if the name is not registered.
        UsageError: if the module or the builder cannot be found, or the module does not import.
    """
    if not _is_own(name):
        return MODELS[name]
    if name.startswith(f"{ZOO}:"):
        raise UsageError(
            f"model {name!r}: networks of the zoo are for checkpoints trained elsewhere; "
            "expected it under `bench evaluate` or --teacher-model"
        )
    place, _, attribute = name.rpartition(":")
    found = getattr(_module(place, name), attribute, None)
    if not callable(found):
        raise UsageError(f"model {name!r}: {place} has no function {attribute!r}; expected MODULE:BUILDER")
    loaded: Builder = found
    return loaded


def build(name: str, num_classes: int, in_channels: int, image_size: int, seed: int) -> nn.Module:
    """A model whose initialisation depends on the seed alone; the caller's random stream is left as it was.

    Args:
        name: of a model, in any of its forms but `robustbench:ID`.
        num_classes: classes K of the logits.
        in_channels: channels of the images.
        image_size: height and width of the images, at least 8.
        seed: of the initialisation.

    Raises:
        UnknownName, UsageError: see `builder`.
        UsageError: if the numbers make no model, or the builder does not take them.
        BenchError: if the builder fails or returns something else than a module, or the module something else than
            logits.
    """
    import torch

    if num_classes < 2 or in_channels < 1 or image_size < 8:
        raise UsageError(
            f"model {name!r}: expected at least 2 classes, 1 channel and images of 8x8, "
            f"got {num_classes}, {in_channels} and {image_size}x{image_size}"
        )
    make = _checked(builder(name), name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            model = make(num_classes, in_channels, image_size)
        except BenchError:
            raise
        except Exception as error:  # a user's builder may raise anything; the sentence says where
            raise BenchError(
                f"model {name!r}: its builder fails for {num_classes} classes, {in_channels} channels and images of "
                f"{image_size}x{image_size} ({_told(error, name)})"
            ) from error
    if not isinstance(model, torch.nn.Module):
        raise BenchError(
            f"model {name!r}: expected its builder to return a torch.nn.Module, got {type(model).__name__}"
        )
    if ":" in name:
        with torch.random.fork_rng(devices=[]):
            _check_logits(model, name, num_classes, (in_channels, image_size, image_size))
    return model


def network(name: str, dataset: str, norm: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A model that weights are to be put into: any that `build` makes, or the network of an entry of the zoo.

    Args:
        name: of a model, in any of its forms.
        dataset: the data set it is for, which the zoo needs to know.
        norm: likewise, the norm it was trained for.
        num_classes: see `build`.
        in_channels: likewise.
        image_size: likewise.

    Raises:
        UnknownName, UsageError, BenchError: see `build` and `bench.models.robustbench.zoo_network`.
    """
    if name.startswith(f"{ZOO}:"):
        from bench.models.robustbench import zoo_network

        return zoo_network(name.partition(":")[2], dataset, norm)
    return build(name, num_classes, in_channels, image_size, seed=0)


def _is_own(name: str) -> bool:
    return ":" in name and packages.parse(name) is None


def _checked(make: Builder, name: str) -> Builder:
    """The builder, if three numbers in the agreed order can be given to it."""
    try:
        takes = inspect.signature(make)
    except ValueError:  # a function of another language does not say what it takes
        return make
    try:
        takes.bind(0, 0, 0)
    except TypeError:
        raise UsageError(
            f"model {name!r}: expected BUILDER(num_classes, in_channels, image_size), got "
            f"{name.rpartition(':')[2]}{takes.replace(return_annotation=inspect.Signature.empty)}"
        ) from None
    return make


def _told(error: BaseException, name: str) -> str:
    """What an error of a network says, and the last line of the builder's own file that it passed."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    file = _file(name.rpartition(":")[0], name) if _is_own(name) else None
    passed = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is_at(frame.filename, file)]
    return f"{said}; {file.name}, line {passed[-1]}" if file is not None and passed else said


def _is_at(name: str, file: Path | None) -> bool:
    return file is not None and Path(name).resolve() == file.resolve()


def _check_logits(model: nn.Module, name: str, num_classes: int, image: tuple[int, int, int]) -> None:
    """Let a model that nobody has tested see two images of the size it is for."""
    import torch

    from attacks.contexts import mode

    given = "x".join(map(str, image))
    try:
        with mode(model, train=False), torch.no_grad():
            logits = model(torch.zeros(2, *image))
    except Exception as error:
        raise BenchError(f"model {name!r}: cannot be applied to images of {given} ({_told(error, name)})") from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (2, num_classes):
        raise BenchError(f"model {name!r}: expected logits (2, {num_classes}) of two images of {given}, got {shape}")


def _file(place: str, name: str) -> Path | None:
    """The file of a builder's module, found without importing anything; None if it has none, or is not installed."""
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise UsageError(f"model {name!r}: there is no file {place}")
        return Path(place)
    top, *rest = place.split(".")
    spec = importlib.util.find_spec(top) if top else None
    if spec is None or not rest:
        return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None
    places = [Path(root, *rest) for root in spec.submodule_search_locations or ()]
    files = [file for folder in places for file in (folder.with_name(folder.name + ".py"), folder / "__init__.py")]
    return next((file for file in files if file.is_file()), None)


def _module(place: str, name: str) -> ModuleType:
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
        raise UsageError(f"model {name!r}: {place} cannot be imported ({_told(error, name)})") from error
