"""Tables in GitHub's Markdown, padded so that they also read well in a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bench.report.formats.text_table import REPORTERS, Header, TextCell, TextTable


@REPORTERS.register("markdown")
def markdown(tables: Sequence[TextTable]) -> str:
    """All tables, each under a heading and followed by its notes."""
    return "\n".join(_table(table) for table in tables)


def _table(table: TextTable) -> str:
    heads = [escape(f"{head.group} {head.name}".strip()) for head in table.heads]
    body = [[_cell(cell) for cell in row] for row in table.rows]
    widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
    rule = [_rule(head, max(width, 3)) for head, width in zip(table.heads, widths, strict=True)]
    lines = [_line(heads, table.heads, widths), "| " + " | ".join(rule) + " |"]
    lines += [_line(row, table.heads, widths) for row in body]
    notes = [f"- {escape(note)}" for note in table.notes]
    return "\n".join([f"### {escape(table.title)}", "", *lines, "", *notes, ""])


def _line(texts: Sequence[str], heads: Sequence[Header], widths: Sequence[int]) -> str:
    cells = [
        text.rjust(max(width, 3)) if head.is_number else text.ljust(max(width, 3))
        for text, head, width in zip(texts, heads, widths, strict=True)
    ]
    return "| " + " | ".join(cells) + " |"


def _rule(head: Header, width: int) -> str:
    return "-" * (width - 1) + ":" if head.is_number else "-" * width


def _cell(cell: TextCell) -> str:
    text = escape(cell.text)
    if cell.underline:
        text = f"<ins>{text}</ins>"
    if cell.bold:
        text = f"**{text}**"
    return f"{text} {escape(cell.detail)}".strip()


def escape(text: str) -> str:
    """Escape everything that Markdown would take for markup; an underscore inside a word is none."""
    text = re.sub(r"([\\|*`]|<(?=[a-zA-Z/!?]))", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text).replace("\n", " ")
