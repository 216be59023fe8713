import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from attacks.plugins.registry import UnknownName
from bench.errors import BenchError, UsageError
from bench.models import Normalized
from bench.models.builders import build, builder
from bench.models.registry import MODELS, resolve


def multiply_adds(model: nn.Module, image: tuple[int, int, int]) -> int:
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        counts.append(module.weight[0].numel() * output[0].numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model.eval()(torch.zeros(1, *image, device=next(model.parameters()).device))
    return sum(counts)


@pytest.mark.parametrize("name", MODELS.names())
def test_declared_facts_are_counted(name: str) -> None:
    facts = MODELS.sketch(name).facts
    with torch.device("meta"):  # shapes alone: the widest has 184 million parameters
        model = build(name, 10, facts["image"][0], facts["image"][1], seed=0)
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"]
    assert round(multiply_adds(model, facts["image"]) / 1e6, 3) == facts["mmacs"]


# A wide network takes the same path at its native size, in the test above.
@pytest.mark.parametrize("name", [name for name in MODELS.names() if not name.startswith("wrn")])
@pytest.mark.parametrize(("classes", "channels", "size"), [(3, 1, 8), (11, 3, 20), (2, 4, 33)])
def test_any_classes_channels_and_size(name: str, classes: int, channels: int, size: int) -> None:
    model = build(name, classes, channels, size, seed=0)
    x = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    logits = model(x)
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_wide_networks_take_small_images() -> None:
    from bench.models.architectures.wide_resnet import WideResNet

    assert WideResNet(10, 1, 3, 1)(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_names_of_layers_are_those_of_the_field() -> None:
    expected = {
        "resnet18": ("conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer2.0.shortcut.1.weight", "linear.bias"),
        "preact_resnet18": ("layer1.0.bn1.weight", "layer4.0.shortcut.0.weight", "bn.weight", "linear.weight"),
        "mobilenet_v2": ("layers.0.shortcut.0.weight", "layers.16.conv3.weight", "conv2.weight", "linear.bias"),
        "wrn28_10": ("block1.layer.0.convShortcut.weight", "block3.layer.3.bn2.weight", "bn1.weight", "fc.bias"),
    }
    for name, keys in expected.items():
        assert set(keys) <= set(build(name, 10, 3, 32, seed=0).state_dict()), name
    assert "bn.weight" not in build("preact_resnet18_plain", 10, 3, 32, seed=0).state_dict()


def test_initialisation_depends_on_the_seed_alone_and_leaves_the_stream() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build("small_cnn", 10, 1, 8, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again, other = build("small_cnn", 10, 1, 8, seed=1), build("small_cnn", 10, 1, 8, seed=2)
    assert torch.equal(first.linear.weight, again.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)


def test_normalized_is_affine_before_the_model() -> None:
    model = Normalized(nn.Identity(), (0.5, 0.25), (0.5, 2.0))
    x = torch.tensor([0.75, 0.75]).view(1, 2, 1, 1)
    assert model(x).flatten().tolist() == [0.5, 0.25]
    assert Normalized(nn.Identity(), [0.5], [0.5])(x).flatten().tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="expected images with 2 channels, got 3"):
        model(torch.zeros(1, 3, 1, 1))
    with pytest.raises(UsageError, match="above 0"):
        Normalized(nn.Identity(), (0.5,), (0.0,))


def test_builders_named_by_module_and_by_file(tmp_path, monkeypatch) -> None:
    text = (
        "from torch import nn\n"
        "def flat(num_classes, in_channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))\n"
        "def wrong(num_classes, in_channels, image_size):\n"
        "    return 3\n"
    )
    (tmp_path / "handmade_builders.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    for place in ("handmade_builders", str(tmp_path / "handmade_builders.py")):
        assert resolve(f"{place}:flat") == f"{place}:flat"
        assert build(f"{place}:flat", 4, 1, 8, seed=0)(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
        with pytest.raises(UsageError, match="has no function 'other'"):
            builder(f"{place}:other")
        with pytest.raises(BenchError, match="to return a torch.nn.Module, got int"):
            build(f"{place}:wrong", 4, 1, 8, seed=0)
    with pytest.raises(UsageError, match="cannot be imported.*PYTHONPATH"):
        builder("no_such_module:build")
    with pytest.raises(UsageError, match="there is no file"):
        builder(f"{tmp_path / 'absent.py'}:build")


@pytest.fixture
def nets(tmp_path) -> Path:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def one(num_classes):\n"
        "    return nn.Flatten()\n"
        "def named(*, num_classes, in_channels, image_size):\n"
        "    return nn.Flatten()\n"
        "def broken(num_classes, in_channels, image_size):\n"
        "    return nn.Linear(3, num_classes).wieght\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, in_channels, image_size):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        return self.linear(x)\n"
    )
    return tmp_path / "nets.py"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("one", r"expected BUILDER\(num_classes, in_channels, image_size\), got one\(num_classes\)$"),
        ("named", r"expected BUILDER\(num_classes, in_channels, image_size\), got named\(\*, num_classes, in_channels"),
        ("broken", r"its builder fails for 4 classes, .* \(AttributeError: .*wieght.*; nets\.py, line 7\)$"),
        ("Net", r"cannot be applied to images of 1x8x8 \(AttributeError: .*'linear'; nets\.py, line 12\)$"),
    ],
)
def test_builders_that_fail_are_told_in_a_sentence(nets: Path, name: str, sentence: str) -> None:
    with pytest.raises(BenchError, match=sentence) as caught:
        build(f"{nets}:{name}", 4, 1, 8, seed=0)
    assert isinstance(caught.value, UsageError) == sentence.startswith("expected BUILDER")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(:", r"SyntaxError: .*line 1\)"),
        ("import torch\n1 / 0\n", r"ZeroDivisionError: division by zero; nets\.py, line 2"),
        ("raise SystemExit(2)", r"SystemExit: 2; nets\.py, line 1"),
    ],
)
def test_files_that_do_not_import_are_told_in_a_sentence(tmp_path, text: str, reason: str) -> None:
    (tmp_path / "nets.py").write_text(text)
    with pytest.raises(UsageError, match=rf"nets\.py cannot be imported \({reason}\)$"):
        builder(f"{tmp_path / 'nets.py'}:f")


def test_a_builders_file_may_define_dataclasses(tmp_path) -> None:
    """They look for their module where modules are registered."""
    (tmp_path / "shaped.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "@dataclass\n"
        "class Shape:\n"
        "    width: int = 2\n"
        "def flat(num_classes, in_channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**Shape().width, num_classes))\n"
    )
    assert build(f"{tmp_path / 'shaped.py'}:flat", 4, 1, 8, seed=0)(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


def test_refusals() -> None:
    with pytest.raises(UnknownName, match="did you mean 'resnet18'"):
        resolve("resnet-81")
    with pytest.raises(UsageError, match="images of 8x8, got 10, 1 and 4x4"):
        build("small_cnn", 10, 1, 4, seed=0)
    assert resolve("WRN34-10") == "wrn34_10"


def test_listing_models_and_datasets_imports_nothing_heavy() -> None:
    code = (
        "import sys; from bench.models.registry import MODELS; from bench.data.registry import DATASETS; "
        "[r.sketch(n).facts for r in (MODELS, DATASETS) for n in r]; "
        "print({'torch', 'numpy', 'sklearn', 'torchvision', 'pandas'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.parametrize(
    "wrapper", ["nn.DataParallel(net)", "torch.compile(net)", "nn.DataParallel(torch.compile(net))"]
)
def test_a_wrapper_around_a_network_of_ones_own_comes_off(tmp_path: Path, wrapper: str) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build(k, c, z):\n"
        f"    net = nn.Sequential(nn.Flatten(), nn.Linear(c * z * z, k))\n    return {wrapper}\n"
    )
    assert list(build(f"{tmp_path}/net.py:build", 10, 1, 8, seed=0).state_dict()) == ["1.weight", "1.bias"]
