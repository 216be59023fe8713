"""Errors that users see as one sentence, each with its exit code."""

from __future__ import annotations


class BenchError(Exception):
    """A run, a file or a computation failed; exit code 1."""

    exit_code = 1


class UsageError(BenchError):
    """The request itself cannot be carried out as written; exit code 2."""

    exit_code = 2


class Interrupted(BenchError):
    """Ctrl-C or a termination request, after everything was saved; exit code 130."""

    exit_code = 130
