"""Facts of a composition from those of its parts, for its class (`wrapper`) and its sketch (`registry`) alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacks.passes import Passes


def compose_facts(wrapper: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a composition; its `passes` are the host's and the wrapper's `added_passes`."""

    def passes(self: Any) -> Passes:
        of_host: Passes = host["passes"](self)
        added: Passes = wrapper["added_passes"](self, of_host)
        return of_host + added

    both = {name: _compose(wrapper[name], host[name]) for name in wrapper.keys() & host.keys()}
    return {**wrapper, **host, **both, "passes": passes}


def _compose(wrapper: Any, host: Any) -> Any:
    """One fact that both parts have.

    Revisions add up, so that a change of either shows. Lists and tables hold the entries of both, and the host's wins
    where both have one. A flag is set if either sets it. Any other fact is the host's, or the wrapper's if the host has
    none.
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
