"""Registries of training methods and of compositions, which wrap any method as in `awp:trades`. Imports no torch."""

from __future__ import annotations

from collections import ChainMap
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from attacks.plugins.registry import Registry, UnknownName
from attacks.plugins.sketch import Sketch, sketch_class
from methods.composition_facts import compose_facts

if TYPE_CHECKING:
    from collections.abc import Callable

    from methods.base import Method
    from methods.wrapper import Wrapper  # noqa: F401 - in a quoted type


MethodT = TypeVar("MethodT", bound="Callable[..., Method]")


class Compositions(Registry["type[Wrapper]"]):
    """The registered compositions."""

    def added_settings(self, name: str) -> dict[str, Any]:
        """The settings that a composition adds to those of every method, with their defaults."""
        return {key: value for key, value in self.sketch(name).settings.items() if key not in _base_settings()}


COMPOSITIONS = Compositions(
    kind="composition",
    group="bench.compositions",
    builtin={
        "awp": "methods.compositions.awp",
        "fawa": "methods.compositions.fawa",
        "ema": "methods.compositions.ema",
        "swa": "methods.compositions.swa",
        "fair_weight": "methods.fair_weight",
    },
)


class Methods(Registry["Callable[..., Method]"]):
    """The registered methods, and any composition of them: `awp:trades` wraps trades, `awp:ema:trades` ema:trades."""

    @property
    def forms(self) -> dict[str, str]:
        """The pattern by which each composition is named, with a line on it."""
        lines = {name: COMPOSITIONS.sketch(name) for name in COMPOSITIONS}
        return {f"{name}:METHOD": (s.fact("own_doc") or s.doc).strip().split("\n")[0] for name, s in lines.items()}

    def accepted(self) -> list[str]:
        """The methods alone; an unknown composition raises its own message."""
        return self.names()

    def resolve(self, name: str) -> str:
        """The registered spelling of a name; `-`, `_` and case do not matter.

        Raises:
            UnknownName: for an unknown part, and for a composition whose parts do not go together.
        """
        outer, colon, host = name.partition(":")
        if not colon:
            if name in COMPOSITIONS and name not in self:
                raise UnknownName(f"{name!r} is a composition, expected a method behind it: {name}:trades")
            return super().resolve(name)
        wrapper, known = COMPOSITIONS.resolve(outer), self.resolve(host)
        if wrapper in known.split(":")[:-1]:
            raise UnknownName(f"{wrapper}:{known}: {wrapper} stands there twice; leave one out")
        shared = sorted(COMPOSITIONS.added_settings(wrapper).keys() & self._sketch(known).settings.keys())
        if shared:
            raise UnknownName(
                f"{wrapper}:{known}: {wrapper} and {known} both have the setting {shared[0]!r}, and --set could not "
                "tell them apart; rename one of them, or leave one of the two out"
            )
        return f"{wrapper}:{known}"

    def parts(self, name: str) -> list[tuple[Registry[Any], str]]:
        """The plug-ins that a name consists of, the outermost first, each with its registry."""
        *wrappers, method = self.resolve(name).split(":")
        return [*((COMPOSITIONS, wrapper) for wrapper in wrappers), (self, method)]

    def __getitem__(self, name: str) -> Callable[..., Method]:
        """The class; that of a composition is composed of the classes of its parts."""
        outer, colon, host = self.resolve(name).partition(":")
        if not colon:
            return super().__getitem__(outer)
        from methods.wrapper import compose

        return compose(COMPOSITIONS[outer], self[host])  # type: ignore[arg-type]  # a class is hashable

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or ":" not in name:
            return super().__contains__(name)
        try:
            return bool(self.resolve(name))
        except UnknownName:
            return False

    def sketch(self, name: str) -> Sketch:
        """Documentation, settings and facts of a method or a composition, read without importing it."""
        return self._sketch(self.resolve(name))

    def _sketch(self, known: str) -> Sketch:
        outer, colon, rest = known.partition(":")
        if not colon:
            return super().sketch(outer)
        wrapper, host = COMPOSITIONS.sketch(outer), self._sketch(rest)
        own_doc = "\n\n".join(filter(None, (part.fact("own_doc") for part in (wrapper, host))))
        return Sketch(
            name=f"{wrapper.name}:{host.name}",
            doc=f"{wrapper.doc.strip()}\n\nAround {host.name}:\n\n{host.doc.strip()}",
            settings={**host.settings, **COMPOSITIONS.added_settings(outer)},
            facts={**compose_facts(wrapper.facts, host.facts), "own_doc": own_doc},
            source=host.source if wrapper.source is None else wrapper.source,
            kinds=ChainMap(host.kinds, wrapper.kinds),  # type: ignore[arg-type]  # of a chain that is only read
        )


@cache
def _base_settings() -> frozenset[str]:
    """The settings that every method has."""
    return frozenset(sketch_class("methods.base", "Method").settings)


METHODS = Methods(
    kind="method",
    group="bench.methods",
    builtin={
        "natural": "methods.natural",
        "pgd_at": "methods.pgd_at",
        "trades": "methods.trades",
        "mart": "methods.mart",
        "frl": "methods.frl",
        "frl_remargin": "methods.frl",
        "cfa": "methods.cfa",
        "bat": "methods.bat",
        "wat": "methods.wat",
        "dafa": "methods.dafa",
        "ard": "methods.ard",
        "rslad": "methods.rslad",
        "absld": "methods.absld",
        "ham": "methods.ham",
        "mtard": "methods.mtard",
        "adaad": "methods.adaad",
        "faal": "methods.faal",
        "fair_ard": "methods.fair_ard",
        "fair_rslad": "methods.fair_ard",
        "fair_mtard": "methods.fair_ard",
        "flexmatch_at": "methods.flexmatch_at",
        "npair_at": "methods.npair_at",
    },
)


def register(name: str, **facts: Any) -> Callable[[MethodT], MethodT]:
    """Decorator that adds a method under a name.

    A plug-in file is loaded with `--plugin FILE`, an installed package through the entry point `bench.methods`.

    Args:
        name: letters, digits, `-` and `_`.
        facts: `check_arguments`, settings with which `bench check` builds the method.

    Raises:
        ValueError: if the name is taken by something defined elsewhere.

    >>> from methods import METHODS, register
    >>> from methods.trades import TRADES
    >>> @register("half_trades")
    ... class HalfTRADES(TRADES):
    ...     def loss(self, model, batch, adv, ctx):
    ...         terms = super().loss(model, batch, adv, ctx)
    ...         return type(terms)(terms.loss / 2, terms.logits)
    >>> METHODS["Half-TRADES"](beta=3.0).settings()["beta"]
    3.0
    """
    return cast("Callable[[MethodT], MethodT]", METHODS.register(name, **facts))
