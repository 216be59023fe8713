"""Tables in GitHub's Markdown, padded so that they also read well in a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.report.formats.sheet import REPORTERS, Entry, Head, Sheet


@REPORTERS.register("markdown")
def markdown(sheets: Sequence[Sheet]) -> str:
    """All tables, each under a heading and followed by its notes."""
    return "\n".join(_sheet(sheet) for sheet in sheets)


def _sheet(sheet: Sheet) -> str:
    heads = [escape(f"{head.group} {head.name}".strip()) for head in sheet.heads]
    body = [[_entry(entry) for entry in row] for row in sheet.rows]
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
    rule = [_rule(head, max(width, 3)) for head, width in zip(sheet.heads, widths, strict=True)]
    lines = [_line(heads, sheet.heads, widths), "| " + " | ".join(rule) + " |"]
    lines += [_line(row, sheet.heads, widths) for row in body]
    notes = [f"- {escape(note)}" for note in sheet.notes]
    return "\n".join([f"### {escape(sheet.title)}", "", *lines, "", *notes, ""])


def _line(texts: Sequence[str], heads: Sequence[Head], widths: Sequence[int]) -> str:
    cells = [
        text.rjust(max(width, 3)) if head.is_number else text.ljust(max(width, 3))
        for text, head, width in zip(texts, heads, widths, strict=True)
    ]
    return "| " + " | ".join(cells) + " |"


def _rule(head: Head, width: int) -> str:
    return "-" * (width - 1) + ":" if head.is_number else "-" * width


def _entry(entry: Entry) -> str:
    text = escape(entry.text)
    if entry.underline:
        text = f"<ins>{text}</ins>"
    if entry.bold:
        text = f"**{text}**"
    return f"{text} {escape(entry.detail)}".strip()


def escape(text: str) -> str:
    """Text in which nothing is taken for markup; an underscore inside a word is none."""
    text = re.sub(r"([\\|*`]|<(?=[a-zA-Z/!?]))", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text).replace("\n", " ")
