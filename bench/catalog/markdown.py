"""Markdown: prose, tables and lists, and the same laid out for a terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

GREEK = ("alpha", "beta", "gamma", "delta", "eps", "eta", "lambda", "sigma", "tau")
WIDTH = 110  # of prose on a terminal


def value_text(value: Any, empty: str = "()") -> str:
    """A setting's value: numbers to four digits, no brackets but around lists within a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        lists = {key: f"({value_text(item)})" for key, item in value.items() if isinstance(item, tuple)}
        return ", ".join(f"{key} {lists.get(key) or value_text(item)}" for key, item in value.items())
    if isinstance(value, tuple):
        return ", ".join(map(value_text, value)) or empty
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def prose(text: str) -> str:
    """Docstring text as Markdown: a line for each paragraph, signs of a formula escaped, indented blocks kept."""
    return "\n\n".join(_paragraph(text) for text in re.split(r"\n\s*\n", text) if text.strip())


def _paragraph(text: str) -> str:
    if all(line.startswith("    ") for line in text.splitlines()):
        return text
    return re.sub(r"([*<]|\](?=\())", r"\\\1", re.sub(r"\s+", " ", text).strip())


def sentence(text: str) -> str:
    """Prose with a capital, unless it begins with a symbol or the name of a setting."""
    first = re.match(r"m[ai][xn]imise\b|[a-z]{2,}\b(?=[.,:;]? *[A-Za-z]|\.$|'s)", text)
    return prose(text[:1].upper() + text[1:] if first and first[0] not in GREEK else text)


def cell(text: str) -> str:
    """Text that can stand in a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells that may hold a bar come through `cell`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def for_terminal(text: str) -> str:
    """Markdown without escapes, prose wrapped, the columns of tables aligned but for the last."""
    return "\n\n".join(map(_laid_out, text.split("\n\n")))


def _laid_out(block: str) -> str:
    if block.startswith("|"):
        return _aligned(block)
    if block.startswith("    "):
        return block
    lines = re.sub(r"\\([*<\]])", r"\1", block).splitlines()
    return "\n".join(_wrapped(line) for line in lines)


def _wrapped(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _aligned(block: str) -> str:
    rows = [[cell.replace("\\", "") for cell in re.split(r"(?<!\\) \| ", line[2:-2])] for line in block.splitlines()]
    widths = [max(len(row[i]) for row in rows if row[0] != "---") for i in range(len(rows[0]) - 1)] + [0]
    lines = (["-" * (width or 3) for width in widths] if row[0] == "---" else row for row in rows)
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)
