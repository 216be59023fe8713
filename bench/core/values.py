"""Parsing of values written as text: numbers, fractions such as 8/255, true and false, tuples."""

from __future__ import annotations

from typing import Any


def parse_number(text: str | float) -> float:
    """A number from text, which may be a fraction: "8/255".

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(text, str) and "/" in text:
        above, _, below = text.partition("/")
        return float(above) / float(below)
    return float(text)


def parse_value(text: str) -> Any:
    """A value from the command line: a number, a fraction, true or false, none, a tuple, else the text itself."""
    word = text.strip()
    constants = {"true": True, "false": False, "none": None}
    if word.lower() in constants:
        return constants[word.lower()]
    if "," in word or (word[:1], word[-1:]) in (("[", "]"), ("(", ")")):
        return tuple(parse_value(part) for part in word.strip("()[]").split(",") if part.strip())
    for convert in (int, parse_number):
        try:
            return convert(word)
        except (ValueError, ZeroDivisionError):
            continue
    return word
