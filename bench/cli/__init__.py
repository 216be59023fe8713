"""The command line `bench`."""

from bench.cli.app import main

__all__ = ["main"]
