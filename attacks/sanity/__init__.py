"""Sanity checks for masked gradients, which make measured robustness too high."""
