"""Parsers of the tables that a report prints, in Markdown and LaTeX."""

from __future__ import annotations

import re


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Every table of a Markdown text: rows of cells, the heading first; markup taken off."""
    tables: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
        rows = [[re.sub(r"\*\*|</?ins>", "", cell).replace("\\", "").strip() for cell in line] for line in lines]
        tables.append([rows[0], *rows[2:]])
    return tables


def latex_tables(text: str) -> list[list[list[str]]]:
    """Every table of a LaTeX text: rows of cells, the head of columns first; markup taken off."""
    tables = []
    for body in re.findall(r"\\toprule(.*?)\\bottomrule", text, flags=re.DOTALL):
        lines = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        cells = [re.split(r"(?<!\\)&", line.removesuffix(r"\\")) for line in lines]
        tables.append([[latex_plain(cell) for cell in row] for row in cells])
    return tables


def latex_plain(cell: str) -> str:
    """The text of a cell."""
    cell = re.sub(r"\\begin\{tabular\}\[c\]\{@\{\}r@\{\}\}|\\end\{tabular\}", "", cell)
    cell = re.sub(r"\\(textbf|underline|tiny)\b", "", cell).replace(r"\\", " ")
    for sign, printed in (("{[}", "["), ("{]}", "]"), (r"$\pm$", "±"), ("--", "–"), (r"\%", "%"), (r"\_", "_")):
        cell = cell.replace(sign, printed)
    return " ".join(cell.replace("{", "").replace("}", "").split())
