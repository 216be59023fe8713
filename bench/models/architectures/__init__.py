"""The built-in networks, one family per file, with the field's names of layers, so that its checkpoints load."""
