"""Reporters, which write tables as Markdown, LaTeX, CSV or JSON."""
