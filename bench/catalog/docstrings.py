"""Head comments and docstrings cut into their parts: sections ("Inner problem", ...) and arguments."""

from __future__ import annotations

import ast
import re
from typing import Any

from attacks.plugins.registry import Registry
from attacks.plugins.sketch import lineage


def arguments(registry: Registry[Any], name: str) -> dict[str, str]:
    """Argument -> its description, from the docstrings of a method's classes and their bases, its host's included."""
    parts = getattr(registry, "parts", None)
    sketches = [registry.sketch(name)] if parts is None else [table.sketch(part) for table, part in parts(name)]
    found: dict[str, str] = {}
    for sketch in sketches:
        for owner, _ in reversed(lineage(sketch)):
            found.update(_arguments(ast.get_docstring(owner) or ""))
    return found


def split_by_host(doc: str) -> dict[str, str]:
    """Host -> its part of the head comment of a composed method; "" is the outermost composition, or a plain method."""
    pieces = re.split(r"^Around (\S+):$", doc, flags=re.MULTILINE)
    return dict(zip(["", *pieces[1::2]], pieces[::2], strict=True))


def sections(doc: str) -> tuple[str, dict[str, str]]:
    """A head comment: the text before its first section, and the sections ("Inner problem", ...) by their titles."""
    title, _, rest = doc.strip().partition("\n\n")
    before, *texts = re.split(r"^([A-Z][A-Za-z ]{2,20}):[ \n]", rest, flags=re.MULTILINE)
    named = {name: _one_line(text) for name, text in zip(texts[::2], texts[1::2], strict=True)}
    return f"{title}\n\n{before}".strip(), named


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _arguments(doc: str) -> dict[str, str]:
    _, _, rest = doc.partition("Args:\n")
    block = re.split(r"^\S", rest, maxsplit=1, flags=re.MULTILINE)[0]
    found: dict[str, str] = {}
    for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", block, flags=re.MULTILINE):
        found.update(dict.fromkeys(re.split(r", *", names), _one_line(text)))
    return found
