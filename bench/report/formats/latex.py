"""Tables in LaTeX with booktabs: a whole document, which pdflatex compiles as it is."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence

from bench.report.formats.text_table import REPORTERS, Header, TextCell, TextTable

PREAMBLE = r"""\documentclass[10pt]{article}
\usepackage[utf8]{inputenc}
\usepackage[a4paper,landscape,margin=1.5cm]{geometry}
\usepackage{booktabs}
\usepackage{graphicx}
\setlength{\tabcolsep}{4pt}
% Shrinks a table that is wider than the page, and leaves the others alone.
\newsavebox{\tablebox}
\newcommand{\fitted}[1]{\sbox{\tablebox}{#1}%
  \ifdim\wd\tablebox>\linewidth\resizebox{\linewidth}{!}{\usebox{\tablebox}}\else\usebox{\tablebox}\fi}
\begin{document}"""

# Rows that fit on a page; longer tables are continued in further ones.
PAGE_ROWS = 36
_SPECIAL = {
    **{character: "\\" + character for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}"},
    **{">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "[": "{[}", "]": "{]}"},
    **{"±": r"$\pm$", "–": "--", "—": "---", "−": "$-$", "Δ": r"$\Delta$", "×": r"$\times$", "≤": r"$\leq$"},
    **{"†": r"$\dagger$", "‡": r"$\ddagger$", "§": r"\S{}"},
    **{"“": "``", "”": "''", "‘": "`", "’": "'"},
}


@REPORTERS.register("latex")
def latex(tables: Sequence[TextTable]) -> str:
    """One document with all tables, notes below each."""
    return "\n\n".join([PREAMBLE, *(page for table in tables for page in _pages(table)), "\\end{document}\n"])


def _pages(table: TextTable) -> Iterator[str]:
    starts = range(0, max(len(table.rows), 1), PAGE_ROWS)
    for start in starts:
        title = escape(table.title) + (" (continued)" if start else "")
        lines = [r"\begin{table}[p]", r"\centering\footnotesize", rf"\caption{{{title}}}"]
        lines += [r"\fitted{%", *_tabular(table.heads, table.rows[start : start + PAGE_ROWS]), "}"]
        if start == starts[-1] and table.notes:
            notes = " ".join(escape(note) for note in table.notes)
            lines += [r"\par\medskip", rf"\parbox{{\linewidth}}{{\scriptsize\raggedright {notes}}}"]
        yield "\n".join([*lines, r"\end{table}"])


def _tabular(heads: Sequence[Header], rows: Sequence[Sequence[TextCell]]) -> list[str]:
    alignment = "".join("r" if head.is_number else "l" for head in heads)
    lines = [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule"]
    if any(head.group for head in heads):
        lines += _group_header(heads)
    lines += [_line(escape(head.name) for head in heads), r"\midrule"]
    lines += [_line(_cell(cell) for cell in row) for row in rows]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _group_header(heads: Sequence[Header]) -> list[str]:
    cells, rules, place = [], [], 1
    for group, members in itertools.groupby(heads, key=lambda head: head.group):
        size = len(list(members))
        if group:
            cells.append(rf"\multicolumn{{{size}}}{{c}}{{{escape(group)}}}")
            rules.append(rf"\cmidrule(lr){{{place}-{place + size - 1}}}")
        else:
            cells += [""] * size
        place += size
    return [_line(cells), " ".join(rules)]


def _line(cells: Iterator[str] | Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: TextCell) -> str:
    text = escape(cell.text)
    text = rf"\textbf{{{text}}}" if cell.bold else text
    text = rf"\underline{{{text}}}" if cell.underline else text
    if not cell.detail:
        return text
    return rf"\begin{{tabular}}[c]{{@{{}}r@{{}}}}{text}\\{{\tiny {escape(cell.detail)}}}\end{{tabular}}"


def escape(text: str) -> str:
    """Text that pdflatex prints as it reads; a character that its fonts lack becomes its code."""
    printed = "".join(_SPECIAL.get(character) or _printable(character) for character in text)
    return re.sub(r"(?<![\w}-])-(?=\d)", "$-$", printed)


def _printable(character: str) -> str:
    if " " <= character <= "~" or ("À" <= character <= "ÿ" and character not in "ÐðÞþ÷"):
        return character
    ascii_form = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    if character.isspace() or unicodedata.combining(character):
        return " " if character.isspace() else ""
    return "".join(_SPECIAL.get(c, c) for c in ascii_form) or f"U+{ord(character):04X}"
