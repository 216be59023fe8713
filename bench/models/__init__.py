"""Networks: their names, building them, loading weights, teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attacks.plugins.lazy import lazy_names

if TYPE_CHECKING:
    from bench.models.builders import build, builder, network
    from bench.models.normalized import Normalized
    from bench.models.registry import MODELS, Builder, folder_name, resolve, source

__all__ = ["Builder", "MODELS", "Normalized", "build", "builder", "folder_name", "network", "resolve", "source"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "bench.models.builders": ("build", "builder", "network"),
        "bench.models.normalized": ("Normalized",),
        "bench.models.registry": ("MODELS", "Builder", "folder_name", "resolve", "source"),
    },
)
