"""Datasets by name: the registry, which imports nothing heavy, and the way to what `bench.parts` does with them.

A dataset is a function `(root, download) -> Raw`: training and test images as they are published. The suite
cuts two small parts off the training images, one to select checkpoints and one that steers methods; the cut
depends on nothing but the labels' order, so every method, seed and machine sees the same parts.

Facts of the registration, all plain literals:
    classes: number of classes.
    image: (channels, height, width).
    sizes: samples of "train", "select", "steer" and "test".
    eps: the usual radius per norm, in units of x in [0, 1].
    model, teacher_model, recipe: what `bench run` takes when nothing is said.
    block: test samples that are attacked together.
    augment: "none", "crop", "flip" or "crop_flip".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attacks.registry import Registry

if TYPE_CHECKING:
    from bench.augment import AUGMENTATIONS, augment
    from bench.parts import Part, Parts, Raw, limit, load, split, stratified, to_float

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "Dataset",
    "Part",
    "Parts",
    "Raw",
    "augment",
    "limit",
    "load",
    "split",
    "stratified",
    "to_float",
]

Dataset = Callable[[Path, bool], "Raw"]

DATASETS: Registry[Dataset] = Registry(
    kind="dataset",
    group="bench.datasets",
    builtin=dict.fromkeys(("digits", "cifar10", "cifar100", "svhn"), "bench.datasets"),
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bench import augment, parts

    return getattr(augment if hasattr(augment, name) and name in augment.__all__ else parts, name)
