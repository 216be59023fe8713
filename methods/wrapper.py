"""Compositions: what can be put around any method, written once and named in front of it, as in `awp:trades`.

A composition is a class whose `super()` is the method that it wraps: the class of `awp:trades` inherits from AWP and
TRADES, in this order. A hook that it defines calls the host's through `super()`; one that it leaves alone is the
host's. Settings and buffers of both halves stand side by side, so neither may use a name of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from attacks.passes import Passes
from methods.base import Method
from methods.joined import joined


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


_CLASSES: dict[tuple[type[Wrapper], type[Method]], type[Method]] = {}


def compose(wrapper: type[Wrapper], host: Callable[..., Method]) -> type[Method]:
    """The class of a wrapper around a host, with the declarations of both; the same one each time.

    Raises:
        ValueError: if the host is no class, or is one that has the wrapper in it already.
    """
    if not (isinstance(host, type) and issubclass(host, Method)) or issubclass(host, wrapper):
        raise ValueError(f"{wrapper.__name__}: expected the class of a method without it to wrap, got {host}")
    if (wrapper, host) in _CLASSES:
        return _CLASSES[wrapper, host]
    declared = [
        name for name, value in vars(Method).items()
        if not (name.startswith("_") or callable(value) or isinstance(value, property))
    ]  # fmt: skip
    facts: dict[str, Any] = {name: joined(getattr(wrapper, name), getattr(host, name)) for name in declared}

    def passes(self: Wrapper) -> Passes:
        """Those of the host and those that the composition adds."""
        of_host: Passes = host.passes(self)
        return of_host + wrapper.added_passes(self, of_host)

    body = {**facts, "passes": passes, "__module__": __name__, "__doc__": wrapper.__doc__}
    made = cast("type[Method]", type(f"{wrapper.__name__}{host.__name__}", (wrapper, host), body))
    return _CLASSES.setdefault((wrapper, host), made)
