"""Data sets: their names, reading and downloading them, and their fixed parts."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "DATASETS": "registry",
    "Dataset": "registry",
    "AUGMENTATIONS": "augmentation",
    "augment": "augmentation",
    "Part": "splits",
    "Parts": "splits",
    "limit": "splits",
    "load": "splits",
    "split": "splits",
    "to_float": "splits",
    "Raw": "raw",
    "stratified_order": "raw",
}
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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"bench.data.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
