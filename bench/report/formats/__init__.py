"""How a table is written: Markdown, LaTeX, CSV, JSON."""
