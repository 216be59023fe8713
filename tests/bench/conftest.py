"""What several files of tests read; tests that need real CIFAR-10 are collected where BENCH_DATA names its folder."""

import os
from pathlib import Path

import pytest

from bench.data.splits import Parts, load
from tests.helpers.jobs import small, train_all

collect_ignore = [] if os.environ.get("BENCH_DATA") else ["models/test_foreign.py"]


@pytest.fixture(scope="session")
def digits() -> Parts:
    """Digits, of which sixty are to be attacked."""
    return load("digits", test_limit=60)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one short run of PGD-AT in it; evaluations are added."""
    out = tmp_path_factory.mktemp("short_run")
    train_all(small(methods=("pgd_at",), epochs=4, train_limit=600), out)
    return out
