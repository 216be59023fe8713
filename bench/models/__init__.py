"""Networks: names, building them, weights from files."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "MODELS": "registry",
    "Builder": "registry",
    "build": "builders",
    "builder": "builders",
    "network": "builders",
    "resolve": "registry",
    "folder_name": "registry",
    "source": "registry",
    "Normalized": "normalized",
}
__all__ = ["Builder", "MODELS", "Normalized", "build", "builder", "folder_name", "network", "resolve", "source"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"bench.models.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
