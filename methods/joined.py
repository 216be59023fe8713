"""Facts of a composition, joined from those of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def joined(outer: Any, host: Any) -> Any:
    """A fact of a composition from that of the wrapper and that of its host.

    Revisions add up, so that a change of either shows. Lists and tables hold the entries of both, and the host's wins
    where both have one. A flag is set if either sets it. Any other fact is the host's, or the wrapper's if the host has
    none.
    """
    if isinstance(host, bool):
        return outer or host
    if isinstance(host, int):
        return outer + host
    if isinstance(host, tuple):
        return tuple(dict.fromkeys((*host, *outer)))
    if isinstance(host, Mapping):
        return {**outer, **host}
    return outer if host is None else host
