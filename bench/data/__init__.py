"""Data sets: their names, reading and downloading them, and their fixed parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attacks.plugins.lazy import lazy_names

if TYPE_CHECKING:
    from bench.data.augmentation import AUGMENTATIONS, augment
    from bench.data.raw import Raw, stratified_order
    from bench.data.registry import DATASETS, Dataset
    from bench.data.splits import Part, Parts, limit, load, split, to_float

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
    "stratified_order",
    "to_float",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "bench.data.augmentation": ("AUGMENTATIONS", "augment"),
        "bench.data.raw": ("Raw", "stratified_order"),
        "bench.data.registry": ("DATASETS", "Dataset"),
        "bench.data.splits": ("Part", "Parts", "limit", "load", "split", "to_float"),
    },
)
