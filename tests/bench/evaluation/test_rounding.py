"""Programs that call `bench.evaluate` may have allowed products to be rounded; meanwhile none is, and then they may."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

SCRIPT = """
import torch
from torch import nn
from attacks.contexts import _precision_switches
from bench import evaluate

backends, seen = torch.backends, []

def state():
    return [getattr(owner, name) for owner, name, _ in _precision_switches()]

class Noting(nn.Linear):
    def forward(self, x):
        seen.append(state())
        return super().forward(x.flatten(1))

{allowed}
before = state()
evaluate(Noting(64, 10), torch.rand(4, 1, 8, 8), torch.arange(4), attacks=["fgsm"])
assert seen and all(each == [exact for _, _, exact in _precision_switches()] for each in seen), seen
assert state() == before, (before, state())
assert {afterwards}
"""
WAYS = [
    ("", "not backends.cuda.matmul.allow_tf32"),
    ("backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = True", "backends.cuda.matmul.allow_tf32"),
    ("torch.set_float32_matmul_precision('medium')", "torch.get_float32_matmul_precision() == 'medium'"),
]
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    WAYS += [
        ("backends.cuda.matmul.fp32_precision = 'tf32'", "backends.cuda.matmul.fp32_precision == 'tf32'"),
        ("backends.cudnn.conv.fp32_precision = 'ieee'", "backends.cudnn.conv.fp32_precision == 'ieee'"),
    ]


@pytest.mark.parametrize(("allowed", "afterwards"), WAYS)
def test_no_product_is_rounded_meanwhile(allowed: str, afterwards: str) -> None:
    """In a process of its own, as the switches of before cannot be read once others are in use."""
    script = SCRIPT.format(allowed=allowed, afterwards=afterwards)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
