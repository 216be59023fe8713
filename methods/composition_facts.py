"""Declarations of a composition (recipes, teachers, passes, ...), composed from those of its wrapper and its host.

Used for the class (`methods.wrapper`) and for the sketch read without importing it (`methods.registry`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacks.passes import Passes


def compose_facts(wrapper: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Any]:
    """The declarations of a composition; its `passes` are the host's plus the wrapper's `added_passes`."""

    def passes(self: Any) -> Passes:
        of_host: Passes = host["passes"](self)
        added: Passes = wrapper["added_passes"](self, of_host)
        return of_host + added

    both = {name: _compose(wrapper[name], host[name]) for name in wrapper.keys() & host.keys()}
    return {**wrapper, **host, **both, "passes": passes}


def _compose(wrapper: Any, host: Any) -> Any:
    """One declaration that both parts make.

    Revisions add up, so that a change of either shows. Tuples and mappings are united, and the host's entry wins where
    both have one. A flag is set if either sets it. Any other value is the host's, or the wrapper's if the host's is
    None.
    """
    if isinstance(host, bool):
        return wrapper or host
    if isinstance(host, int):
        return wrapper + host
    if isinstance(host, tuple):
        return tuple(dict.fromkeys((*host, *wrapper)))
    if isinstance(host, Mapping):
        return {**wrapper, **host}
    return wrapper if host is None else host
