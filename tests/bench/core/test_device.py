"""Memory that is freed stays with the process, where the C library is glibc, and nothing happens elsewhere."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench.core.device import keep_freed_memory

MAPPED = """
import ctypes, resource, sys, torch
from bench.core.device import keep_freed_memory

class Info(ctypes.Structure):  # glibc's mallinfo; hblks counts what was taken from the system piece by piece
    _fields_ = [(name, ctypes.c_int) for name in "arena ordblks smblks hblks a b c d e f".split()]

mallinfo = ctypes.CDLL(None).mallinfo
mallinfo.restype = Info
if sys.argv[1] == "kept": keep_freed_memory()
before = mallinfo().hblks
large = torch.empty(4 << 20)
mapped = mallinfo().hblks - before
def use(): [torch.ones(1 << 20) for _ in range(8)]
for _ in range(3): use()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): use()
print(mapped, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


def measured(how: str) -> list[int]:
    """Pieces taken for a large tensor, and fresh pages for 160 tensors of 1,024 pages."""
    done = subprocess.run([sys.executable, "-c", MAPPED, how], capture_output=True, text=True, check=True)
    return [int(figure) for figure in done.stdout.split()]


def test_tensors_come_from_what_the_process_keeps() -> None:
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        assert not keep_freed_memory()
        return
    assert measured("usual")[0] == 1
    mapped, faults = measured("kept")
    assert mapped == 0 and faults < 5_000


@pytest.mark.parametrize("library", [SimpleNamespace(), None])
def test_other_c_libraries_are_left_alone(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: None) -> object:
        if library is None:
            raise TypeError("no library of that name")
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert keep_freed_memory() is False
