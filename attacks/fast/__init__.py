"""A network made faster to search: frozen, BatchNorm folded, gradients written out."""
