"""What the tests of the benchmarks share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.data.splits import load
from bench.models.builders import build
from bench.models.checkpoints import save_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network after an epoch of plain training on digits."""
    parts, model = load("digits"), build("small_cnn", 10, 1, 8, seed=0)
    x, y = parts.train.x.float() / 255, parts.train.y
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for rows in torch.arange(len(y)).split(64):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    save_weights(path, model.state_dict())
    return path
