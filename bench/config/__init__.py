"""Configuration of a run: settings, files, defaults, evaluation protocols, speedups, stop rules."""
