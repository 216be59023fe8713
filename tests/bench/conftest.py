"""Tests that need real CIFAR-10 and foreign checkpoints are collected where BENCH_DATA names their folder."""

import os

collect_ignore = [] if os.environ.get("BENCH_DATA") else ["test_foreign.py"]
