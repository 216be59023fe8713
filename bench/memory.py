"""Memory that tensors free stays with the process.

glibc takes every tensor of some size from the system and gives it back when it is freed, so that each pass of a network
on a CPU pays for fresh pages, a fifth of its time and more. No number depends on it.
"""

from __future__ import annotations

import contextlib
import ctypes

# Of glibc's mallopt: the least to ask the system for, the free memory above which some goes back, the size of mmaps.
TOP_PAD, TRIM_ABOVE, MAP_ABOVE = -2, -1, -3
KEPT = {MAP_ABOVE: 32 << 20, TRIM_ABOVE: 2**31 - 1, TOP_PAD: 64 << 20}  # the first is the most that glibc takes


def keep_freed() -> bool:
    """Have this process keep what tensors free, from now on.

    Returns:
        Whether the C library can do that; where it is not glibc nothing happens.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - only glibc has it
        return all(library.mallopt(what, size) == 1 for what, size in KEPT.items())
    return False
