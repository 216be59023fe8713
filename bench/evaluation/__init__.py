"""Attacking a checkpoint: blocks and stages, shards, sanity checks, status, cards of teachers."""
