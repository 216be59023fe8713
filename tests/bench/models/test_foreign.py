"""Checkpoints of another project, on the real test images; BENCH_DATA names the folder of both."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data.splits import to_float
from bench.errors import UsageError
from bench.models.builders import build
from bench.models.checkpoints import fit, load_weights
from tests.helpers import foreign

DATA = Path(os.environ["BENCH_DATA"])
BUILDERS = Path(foreign.__file__)
MEAN = (0.4914, 0.4822, 0.4465)
STD, STD_RESNET = (0.2023, 0.1994, 0.2010), (0.2471, 0.2435, 0.2616)


@pytest.fixture(scope="module")
def test_images() -> tuple[torch.Tensor, torch.Tensor]:
    """CIFAR-10's 10,000 test images, from mosaics of 25 rows of 40."""
    mosaics = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((DATA / "cifar10").glob("test-*.webp"))]
    tiles = np.stack(mosaics).reshape(-1, 25, 32, 40, 32, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3, 32, 32)
    with np.load(DATA / "cifar10" / "labels.npz") as labels:
        return torch.from_numpy(tiles.copy()), torch.from_numpy(labels["test"].astype(np.int64))


@pytest.mark.parametrize(
    ("file", "builder", "std", "accuracy"),
    [
        ("cifar_cnn_a_adv4.model", "cnn_a", STD, 60.07),
        ("cifar_conv_small_pgd.pth", "conv_small", STD, 62.92),
        ("resnet4b.pth", "resnet4b", STD_RESNET, 77.20),
    ],
)
def test_clean_accuracy_of_foreign_checkpoints(
    file: str, builder: str, std: tuple[float, ...], accuracy: float, test_images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    x, y = test_images
    model = build(f"{BUILDERS}:{builder}", 10, 3, 32, seed=0)
    model = fit(model, load_weights(DATA / "checkpoints" / file), mean=MEAN, std=std).eval()
    with torch.no_grad():
        right = torch.cat([model(to_float(part)).argmax(1) for part in x.split(1000)]) == y
    assert len(y) == 10000
    assert 100 * right.float().mean().item() == pytest.approx(accuracy, abs=0.011)


def test_a_foreign_checkpoint_in_the_wrong_network() -> None:
    model = build("resnet18", 10, 3, 32, seed=0)
    with pytest.raises(UsageError, match="missing: .*unexpected: .*choose it with --model"):
        fit(model, load_weights(DATA / "checkpoints" / "resnet4b.pth"))
