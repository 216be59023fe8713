"""Compositions: what can be put around any method, written once and named in front of it, as in `awp:trades`.

A composition is a class whose `super()` is the method that it wraps: the class of `awp:trades` inherits from AWP and
TRADES, in this order. A hook that it defines calls the host's through `super()`; one that it leaves alone is the
host's. Settings and buffers of both halves stand side by side, so neither may use a name of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

from attacks.passes import Passes
from methods.base import Method
from methods.composition_facts import compose_facts


class Wrapper(Method):
    """Base class of compositions; hooks call those of the host through `super()`.

    At strength 0, whichever of its settings that is, a composition is its host bit for bit.
    """

    def added_passes(self, host: Passes) -> Passes:
        """Passes per training sample and step besides those of the host.

        `passes` itself is not overridden: what a composition costs may depend on its host, which is known only when
        the two are put together.
        """
        return Passes()


@cache
def compose(wrapper: type[Wrapper], host: Callable[..., Method]) -> type[Method]:
    """The class of a wrapper around a host, with the declarations of both; the same one each time.

    Raises:
        ValueError: if the host is no class, or is one that has the wrapper in it already.
    """
    if not (isinstance(host, type) and issubclass(host, Method)) or issubclass(host, wrapper):
        raise ValueError(f"{wrapper.__name__}: expected the class of a method without it to wrap, got {host}")
    # What a method declares are the class variables of `Method`.
    of_wrapper, of_host = ({name: getattr(part, name) for name in Method.__annotations__} for part in (wrapper, host))
    facts = compose_facts({**of_wrapper, "added_passes": wrapper.added_passes}, {**of_host, "passes": host.passes})
    body = {**facts, "__module__": __name__, "__doc__": wrapper.__doc__}
    return cast("type[Method]", type(f"{wrapper.__name__}{host.__name__}", (wrapper, host), body))
