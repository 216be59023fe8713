"""The registry of models; it imports nothing heavy. `bench.models.builders` builds them.

A builder is `build(num_classes, in_channels, image_size) -> Module`: the module takes x (N, C, H, W) in [0, 1]
and returns logits (N, K); a normalisation is a layer of it (`Normalized`). Facts of the registration:
`parameters` and `mmacs` (millions of multiply-adds per image), both at 10 classes and the `image` it was made for.

Unregistered models have a colon in their name: `torchvision:NAME` and `timm:NAME` (see `bench.models.packages`), a
user's builder as `package.module:builder` or `path/to/file.py:builder`, and, for checkpoints trained elsewhere,
`robustbench:ID`, the network of that entry of the RobustBench zoo.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from attacks.plugins.registry import Registry
from attacks.plugins.sketch import Sketch
from bench.core.files import file_hash
from bench.errors import UsageError
from bench.models import packages

if TYPE_CHECKING:
    from torch import nn

Builder = Callable[[int, int, int], "nn.Module"]
ZOO = "robustbench"


class Models(Registry[Builder]):
    """The registered networks, and those of torchvision and timm."""

    @property
    def forms(self) -> dict[str, str]:
        """Patterns of names of unregistered networks, with a line on each."""
        user_builders = {
            "FILE.py:BUILDER": "A function build(num_classes, in_channels, image_size) of your own; also MODULE:BUILDER"
        }
        return {**packages.FORMS, **user_builders}

    def __getitem__(self, name: str) -> Builder:
        """The function that builds a network."""
        outside = packages.parse(self.resolve(name))
        return super().__getitem__(name) if outside is None else partial(packages.build, *outside)

    def sketch(self, name: str) -> Sketch:
        """Name, description and facts of a network, known without building it."""
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


def resolve(name: str) -> str:
    """The known spelling of a model's name; `module:builder` and `robustbench:ID` are returned as they are.

    Raises:
        UnknownName: with the closest match.
        UsageError: if the package that a name asks for is not installed.
    """
    return name if is_unregistered(name) else MODELS.resolve(name)


def folder_name(name: str) -> str:
    """A model's name as a folder's name."""
    return re.sub(r"[/\\:]", "_", name)


def source(name: str) -> str:
    """The hash of the file of a plug-in's or user's builder, since its name does not identify the code; else "".

    Raises:
        UsageError: if a builder's file is not there.
    """
    if not is_unregistered(name):
        known = MODELS.resolve(name)
        file = None if known in MODELS.builtin or ":" in known else MODELS.sketch(known).source
    else:
        file = builder_file(name.rpartition(":")[0], name)
    return "" if file is None else file_hash(file)


def is_unregistered(name: str) -> bool:
    """Whether a name is a user's builder or an entry of the zoo, neither registered nor of a package."""
    return ":" in name and packages.parse(name) is None


def builder_file(place: str, name: str) -> Path | None:
    """The file of a builder's module, found without importing it; None if it has none or is not installed."""
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
