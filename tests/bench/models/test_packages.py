"""Networks of torchvision and timm, and builders of one's own: by name through planning, training and attacking."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from attacks.plugins.registry import UnknownName
from bench.errors import BenchError, UsageError
from bench.models import Normalized, packages
from bench.models.builders import build
from bench.models.checkpoints import fit
from bench.models.registry import MODELS, resolve, source
from bench.report import load_results
from tests.helpers.jobs import COMMAND, bench, plan

BUILDER = """
from torch import nn

def build(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

def cramped(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Conv2d(in_channels, num_classes, 64), nn.Flatten())

def images(num_classes, in_channels, image_size):
    return nn.Identity()

def pair(num_classes, in_channels, image_size):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()
"""


@pytest.fixture
def builder(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(BUILDER)
    return file


def test_the_names_are_those_that_the_packages_register() -> None:
    timm, torchvision = (packages._import_package(name) for name in ("timm", "torchvision"))
    assert set(packages.names("torchvision")) == set(torchvision.models.list_models(module=torchvision.models))
    # robustbench registers some more with timm once it is imported
    assert set(packages.names("timm")) <= set(timm.list_models())
    assert {"resnet50", "vit_tiny_patch16_224", "convnext_nano"} <= set(packages.names("timm"))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("TorchVision:resnet50", "torchvision:resnet50"),
        ("timm: ConvNeXt-Nano", "timm:convnext_nano"),
        ("timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("Small-ResNet", "small_resnet"),
        ("mine.py:build", "mine.py:build"),
        ("timm.models:resnet18", "timm.models:resnet18"),
    ],
)
def test_names_have_one_spelling(name: str, known: str) -> None:
    assert resolve(name) == known


def test_a_wrong_name_is_told_the_closest() -> None:
    with pytest.raises(
        UnknownName, match=r"unknown model 'timm:resnt50' among the \d+ of timm; did you mean 'timm:resnet"
    ):
        resolve("timm:resnt50")
    with pytest.raises(
        UnknownName, match="unknown model 'resnt18'; did you mean 'resnet18'.*torchvision:NAME, timm:NAME"
    ):
        resolve("resnt18")
    result = bench("run", "--model", "torchvision:resnet51", "--dry-run")
    assert result.exit_code == 2
    assert "did you mean 'torchvision:resnet50'?" in result.stderr


def test_a_package_that_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None)))
    packages.names.cache_clear()
    result = bench("run", "--model", "timm:resnet18", "--dry-run")
    assert result.exit_code == 2
    assert result.stderr.strip() == (
        "bench: timm is not installed, which models named timm:NAME need; `pip install timm`"
    )


def test_planning_and_showing_import_no_framework(builder: Path) -> None:
    heavy = {"torch", "torchvision", "timm"}
    for arguments in (
        ["list", "models"],
        ["show", "timm:resnet50"],
        [
            "run",
            "--dry-run",
            "--methods",
            "rslad",
            "--model",
            "torchvision:resnet18",
            "--teacher-model",
            f"{builder}:build",
        ],
    ):
        code = (
            f"import sys; sys.argv[1:] = {arguments!r}\nfrom bench.cli.app import main\n"
            f"try: main()\nfinally: print(sorted({heavy!r} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", arguments


def test_a_plan_has_no_colon_in_its_folders() -> None:
    found = plan(methods=("rslad",), model="timm:resnet18", teacher_model="torchvision:vgg11")
    assert [job.folder.parts[1] for job in found.train] == ["torchvision_vgg11", "timm_resnet18"]
    assert found.train[1].teachers["robust"]["model"] == "torchvision:vgg11"


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("torchvision:mobilenet_v3_small", 3, 32),
        ("torchvision:googlenet", 3, 64),
        ("timm:test_efficientnet", 2, 40),
        ("timm:test_vit", 1, 32),
    ],
)
def test_networks_take_classes_channels_and_size_and_start_from_the_seed(name: str, channels: int, size: int) -> None:
    before = torch.get_rng_state()
    first, again, other = (build(name, 7, channels, size, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert all(module.training for module in first.modules())
    assert first(torch.rand(2, channels, size, size)).shape == (2, 7)


def test_the_normalisation_is_the_packages_own_and_part_of_the_model() -> None:
    model = build("torchvision:mobilenet_v3_small", 10, 3, 32, seed=0)
    assert isinstance(model, Normalized)
    assert model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert model.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    vit = build("timm:test_vit", 10, 1, 32, seed=0)
    assert isinstance(vit, Normalized)
    assert (vit.mean.flatten().tolist(), vit.std.flatten().tolist()) == ([0.5], [0.5])


def test_published_weights_fit_behind_the_normalisation() -> None:
    """A file of torchvision's holds the network alone; the normalisation is the model's, unless one is given."""
    name = "torchvision:mobilenet_v3_small"
    plain = packages._import_package("torchvision").models.mobilenet_v3_small(weights=None, num_classes=10).eval()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def expected(mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        return plain((x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1))

    with torch.no_grad():
        fitted = fit(build(name, 10, 3, 32, seed=0), plain.state_dict()).eval()
        torch.testing.assert_close(fitted(x), expected(*packages.IMAGENET))
        mean, std = (0.0, 0.1, 0.2), (1.0, 2.0, 1.5)
        given = fit(build(name, 10, 3, 32, seed=0), plain.state_dict(), mean=mean, std=std).eval()
        torch.testing.assert_close(given(x), expected(mean, std))
        stored = {**plain.state_dict(), "normalize.mean": torch.tensor(mean), "normalize.std": torch.tensor(std)}
        torch.testing.assert_close(fit(build(name, 10, 3, 32, seed=0), stored).eval()(x), expected(mean, std))
        again = fit(build(name, 10, 3, 32, seed=1), given.state_dict()).eval()
        assert torch.equal(again(x), given(x))
    with pytest.raises(UsageError, match="holds a normalisation of its own"):
        fit(build(name, 10, 3, 32, seed=0), given.state_dict(), mean=mean, std=std)


@pytest.mark.parametrize(
    ("name", "channels", "size", "message"),
    [
        ("torchvision:resnet18", 1, 32, r"cannot build it for 5 classes, 1 channels .*three channels; those of timm"),
        ("timm:test_vit", 3, 8, r"cannot (build|be applied)"),
        ("torchvision:squeezenet1_1", 3, 8, "cannot be applied to images of 3x8x8"),
    ],
)
def test_what_a_network_cannot_take_is_said(name: str, channels: int, size: int, message: str) -> None:
    with pytest.raises(BenchError, match=f"model '{name}': .*{message}"):
        build(name, 5, channels, size, seed=0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("cramped", "cannot be applied to images of 1x8x8"),
        ("images", r"expected logits \(2, 10\) of two images of 1x8x8, got \(2, 1, 8, 8\)"),
        ("pair", r"expected logits \(2, 10\) .*, got tuple"),
    ],
)
def test_a_builder_is_tried_before_hours_are_spent(builder: Path, tmp_path: Path, function: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        build(f"{builder}:{function}", 10, 1, 8, seed=0)
    result = bench("run", "--methods", "rslad", "--model", f"{builder}:{function}", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_a_builders_file_is_part_of_a_runs_identity(builder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = source(f"{builder}:build")
    assert len(first) == 64
    builder.write_text(BUILDER + "\n")
    assert source(f"{builder}:build") not in ("", first)
    monkeypatch.syspath_prepend(builder.parent)
    assert source("mine:build") == source(f"{builder}:build")
    assert [source(name) for name in ("small_cnn", "timm:resnet18", "no_such_package:build", "json:build")][:3] == [
        ""
    ] * 3


def test_a_network_of_the_zoo_is_not_trained(tmp_path: Path) -> None:
    result = bench("run", "--methods", "natural", "--model", "robustbench:Wong2020Fast", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "expected it under `bench evaluate` or --teacher-model" in result.stderr


@pytest.fixture
def stripes(tmp_path: Path) -> Path:
    """Three classes of 32x32 images, told apart by the channel that is bright."""
    draw = np.random.default_rng(0)
    y = np.arange(90) % 3
    x = draw.integers(0, 60, (90, 32, 32, 3)) + 150 * (np.arange(3) == y[:, None])[:, None, None, :]
    file = tmp_path / "stripes.npz"
    images = x.astype(np.uint8)
    np.savez(file, x_train=images[:60], y_train=y[:60], x_test=images[60:], y_test=y[60:])
    return file


def test_other_peoples_networks_train_and_are_attacked(stripes: Path, builder: Path, tmp_path: Path) -> None:
    for model in ("timm:test_vit", f"{builder}:build"):
        arguments = [
            "run", "--dataset", f"npz:{stripes}", "--eps", "4/255", "--methods", "natural", "--model", model,
            "--epochs", "1", "--select", "last", "--attacks", "fgsm", "--workers", "1",
            "--batch-size", "8", "--out", tmp_path / "results",
        ]  # fmt: skip
        result = bench(*arguments)
        assert result.exit_code == 0, result.output
        assert "done: train" not in bench(*arguments).stderr
    frame = load_results(tmp_path / "results").query("attack == 'fgsm'")
    assert sorted(frame["model"]) == sorted(["timm:test_vit", f"{builder}:build"])
    assert [path.name for path in (tmp_path / "results").glob("*/timm*")] == ["timm_test_vit"]
    builder.write_text(
        BUILDER.replace("nn.Flatten(), ", "nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.Flatten(), ")
    )
    assert bench(*arguments).exit_code == 0
    assert len(list((tmp_path / "results").glob("*/*mine*/natural/*"))) == 2, "another network, though of the same name"


def test_the_command_itself_lists_the_forms() -> None:
    done = subprocess.run([*COMMAND, "list", "models"], capture_output=True, text=True, check=True)
    assert set(MODELS.forms) <= {line.split("  ")[0] for line in done.stdout.splitlines()}
