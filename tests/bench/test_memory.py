"""Memory that is freed stays with the process, where the C library is glibc, and nothing happens elsewhere."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench.memory import keep_freed

FAULTS = """
import resource, sys, torch
from bench.memory import keep_freed
if sys.argv[1] == "kept": keep_freed()
def use(): [torch.ones(1 << 20) for _ in range(8)]
for _ in range(3): use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_freed_tensors_cost_no_fresh_pages() -> None:
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        assert not keep_freed()
        return
    usual, kept = faults("usual"), faults("kept")
    assert usual > 20_000 and kept < 2_000, "160 tensors of 1,024 pages each"


@pytest.mark.parametrize("library", [SimpleNamespace(), None])
def test_other_c_libraries_are_left_alone(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: None) -> object:
        if library is None:
            raise TypeError("no library of that name")
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert keep_freed() is False
