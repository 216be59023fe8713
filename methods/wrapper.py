"""The contract of compositions, which wrap any method and are named in front of it, as in `awp:trades`.

A wrapper is a class whose `super()` is the method that it wraps, its host: the class of `awp:trades` inherits from AWP
and TRADES, in this order. A hook that the wrapper overrides calls the host's through `super()`. Settings and buffers of
both share one namespace, so neither may use a name of the other. The wrappers are in `methods.compositions`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

from attacks.passes import Passes
from methods.base import Method
from methods.composition_facts import compose_facts


class Wrapper(Method):
    """Base class of wrappers; hooks call those of the host through `super()`.

    With its strength set to 0, a composition equals its host bit for bit.
    """

    def added_passes(self, host: Passes) -> Passes:
        """Passes per training sample and step in addition to those of the host.

        Override this and not `passes`: the cost may depend on the host, which is known only when both are composed.
        """
        return Passes()


@cache
def compose(wrapper: type[Wrapper], host: Callable[..., Method]) -> type[Method]:
    """The class of a wrapper around a host, with the declarations of both; cached.

    Raises:
        ValueError: if the host is not a class of a method, or contains the wrapper already.
    """
    if not (isinstance(host, type) and issubclass(host, Method)) or issubclass(host, wrapper):
        raise ValueError(f"{wrapper.__name__}: expected the class of a method without it to wrap, got {host}")
    # What a method declares are the class variables of `Method`.
    of_wrapper, of_host = ({name: getattr(part, name) for name in Method.__annotations__} for part in (wrapper, host))
    facts = compose_facts({**of_wrapper, "added_passes": wrapper.added_passes}, {**of_host, "passes": host.passes})
    body = {**facts, "__module__": __name__, "__doc__": wrapper.__doc__}
    return cast("type[Method]", type(f"{wrapper.__name__}{host.__name__}", (wrapper, host), body))
