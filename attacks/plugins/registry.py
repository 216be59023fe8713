"""The generic registry of plug-ins by name; what a name stands for is imported when it is used.

A built-in name is tied to the module that defines it. Asking for the plug-in imports that module; asking for
its sketch (settings, recipes, costs, documentation) only parses the file, so that listing and planning stay
instant. Others add names with the decorator, through entry points, or with a plug-in file.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Generic, TypeVar

from attacks.plugins.sketch import Sketch, sketch_object, sketch_source

T = TypeVar("T")


def canonical(name: str) -> str:
    """The form in which names are compared: lower case, `-` and `_` alike."""
    return name.strip().lower().replace("-", "_")


def suggestion(name: str, names: Iterable[str]) -> str:
    """What a sentence on an unknown name says of the closest of those that there are: `; did you mean 'x'?`, or `;`."""
    known = {canonical(other): other for other in names}
    close = difflib.get_close_matches(canonical(name), known, n=1)
    return f"; did you mean {known[close[0]]!r}?" if close else ";"


class UnknownName(KeyError):
    """A name that no plug-in carries; the text is the whole sentence."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass
class Registry(Generic[T]):
    """A table from names to plug-ins of one kind.

    Args:
        kind: what it holds, for messages: "method", "attack", ...
        group: entry-point group that others use.
        builtin: name -> module that registers it on import.
    """

    kind: str
    group: str
    builtin: Mapping[str, str] = field(default_factory=dict)
    _objects: dict[str, T] = field(default_factory=dict, repr=False)
    _facts: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    _read: dict[str, Sketch] = field(default_factory=dict, repr=False)

    def register(self, name: str, **facts: Any) -> Callable[[T], T]:
        """Decorator that adds a plug-in under a name.

        Raises:
            ValueError: if the name is taken by something defined elsewhere.
        """
        if not name or not canonical(name).replace("_", "").isalnum():
            raise ValueError(f"{self.kind} name {name!r}: expected letters, digits, '-' and '_'")

        def add(thing: T) -> T:
            known = self._spelling(name) or name
            owner = self.builtin.get(known) or getattr(self._objects.get(known), "__module__", None)
            if known in self._objects or (owner is not None and owner != getattr(thing, "__module__", None)):
                raise ValueError(f"{self.kind} {name!r} is already registered by {owner}; choose another name")
            self._objects[name] = thing
            self._facts[name] = facts
            return thing

        return add

    def names(self) -> list[str]:
        """All names: built-in first, in their order, then those of entry points and plug-ins."""
        names = dict.fromkeys([*self.builtin, *self._objects])
        for point in self._entry_points():
            if not any(canonical(point.name) == canonical(name) for name in names):
                names[point.name] = None
        return list(names)

    @property
    def forms(self) -> dict[str, str]:
        """Forms of names that need no registration, with a line on each; none unless a kind has some."""
        return {}

    def accepted(self) -> list[str]:
        """What the sentence on an unknown name lists: all names, and the forms of others."""
        return [*self.names(), *self.forms]

    def resolve(self, name: str) -> str:
        """The registered spelling of a name; `-`, `_` and case do not matter.

        Raises:
            UnknownName: with the closest match and the list.
        """
        known = self._spelling(name)
        if known is None:
            hint = suggestion(name, self.names())
            raise UnknownName(f"unknown {self.kind} {name!r}{hint} available: {', '.join(self.accepted())}")
        return known

    def __getitem__(self, name: str) -> T:
        """The plug-in itself; imports its module when it is not loaded yet."""
        known = self.resolve(name)
        if known not in self._objects:
            if known in self.builtin:
                importlib.import_module(self.builtin[known])
            else:
                thing = next(point for point in self._entry_points() if point.name == known).load()
                self._objects.setdefault(known, thing)
                self._facts.setdefault(known, {})
        return self._objects[known]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._spelling(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def sketch(self, name: str) -> Sketch:
        """What is known of a plug-in; built-in ones are read from their source, unimported, and once."""
        known = self.resolve(name)
        if known in self.builtin:
            if known not in self._read:
                self._read[known] = sketch_source(known, self.builtin[known])
            return self._read[known]
        thing = self[known]
        return sketch_object(known, thing, self._facts[known])

    def _spelling(self, name: str) -> str | None:
        wanted = canonical(name)
        return next((known for known in self.names() if canonical(known) == wanted), None)

    def _entry_points(self) -> tuple[metadata.EntryPoint, ...]:
        if not hasattr(self, "_points"):
            self._points = tuple(metadata.entry_points(group=self.group))
        return self._points
