import argparse
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from bench.errors import BenchError, UsageError
from bench.models import Normalized
from bench.models.builders import build
from bench.models.checkpoints import fit, load_weights, save_weights, weights_hash

Weights = dict[str, Tensor]


def small(seed: int = 0, classes: int = 10) -> nn.Module:
    return build("small_cnn", classes, 1, 8, seed=seed)


def logits(model: nn.Module) -> Tensor:
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(x)


@pytest.fixture
def weights() -> Weights:
    model = small(seed=1).train()
    model(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    return model.state_dict()


def prefixed(weights: Weights, *prefixes: str) -> Weights:
    return {"".join(prefixes) + name: tensor for name, tensor in weights.items()}


WRAPPED: dict[str, Callable[[Weights], Any]] = {
    "bare": lambda w: w,
    "ordered": lambda w: OrderedDict(w),
    "state_dict beside numbers": lambda w: {"epoch": 3, "acc": torch.tensor(0.5), "state_dict": w},
    "list of one": lambda w: {"acc": torch.tensor(0.5), "state_dict": [OrderedDict(w)]},
    "model before its average": lambda w: {"ema": {k: v * 0 for k, v in w.items()}, "model": w, "optimizer": {}},
    "average alone": lambda w: {"ema": w},
    "wrapped twice": lambda w: {"last": {"net": w}},
    "parallel": lambda w: {"model_state_dict": prefixed(w, "module.")},
    "compiled and parallel": lambda w: prefixed(w, "_orig_mod.", "module."),
    "inside another module": lambda w: prefixed(w, "model."),
    "numpy numbers and arguments": lambda w: {
        "net": w,
        "acc": np.float64(0.5),
        "best": np.float32(0.5),
        "epoch": np.int64(3),
        "args": argparse.Namespace(lr=0.1),
    },
}


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_and_prefixes_come_off(tmp_path: Path, weights: Weights, form: str, zipped: bool) -> None:
    path = tmp_path / "foreign.model"
    torch.save(WRAPPED[form](weights), path, _use_new_zipfile_serialization=zipped)
    model = fit(small(), load_weights(path))
    assert weights_hash(model.state_dict()) == weights_hash(weights)


def test_names_may_also_lack_a_prefix_that_the_model_has(weights: Weights) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

    holder = Holder()
    assert fit(holder, weights) is holder
    assert weights_hash(holder.net.state_dict()) == weights_hash(weights)


@pytest.mark.parametrize("name", ["best.safetensors", "best.pt"])
def test_safetensors_are_known_by_their_content(tmp_path: Path, weights: Weights, name: str) -> None:
    save_weights(tmp_path / name, weights)
    assert weights_hash(load_weights(tmp_path / name)) == weights_hash(weights)


def test_equal_weights_give_equal_bytes(tmp_path: Path, weights: Weights) -> None:
    backwards = dict(reversed(weights.items()))
    shared = {**weights, "tied": weights["linear.weight"], "view": weights["linear.weight"].t()}
    for name, content in {"a": weights, "b": backwards, "c": shared}.items():
        save_weights(tmp_path / "deep" / name, content)
    first, second = ((tmp_path / "deep" / name).read_bytes() for name in "ab")
    assert first == second
    assert torch.equal(load_weights(tmp_path / "deep" / "c")["view"], weights["linear.weight"].t())
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a", "b", "c"]


def test_the_hash_sees_names_dtypes_shapes_and_bytes() -> None:
    base = {"a": torch.arange(6.0), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    others: list[Weights] = [
        {**base, "a": torch.arange(6.0).view(2, 3)},
        {**base, "a": torch.arange(6.0) + 1e-6},
        {**base, "b": torch.tensor(3, dtype=torch.int32)},
        {"d": base["a"], "b": base["b"], "c": base["c"]},
    ]
    hashes = {weights_hash(weights) for weights in (base, *others)}
    assert len(hashes) == 5
    assert weights_hash(dict(reversed(base.items()))) == weights_hash(base)
    strided = {**base, "a": torch.arange(12.0)[::2] / 2}
    assert weights_hash(strided) == weights_hash(base)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was_run"),))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("thing", [RunsCode(), small()], ids=["code", "module"])
def test_pickles_that_run_code_are_refused(tmp_path: Path, monkeypatch, thing: Any, zipped: bool) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"net": thing}, "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(BenchError, match=r"evil\.pt: expected tensors only, got pickled objects .*state_dict"):
        load_weights("evil.pt")
    assert not Path("was_run").exists()


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"net": RunsCode()}, protocol=2))
    with pytest.raises(BenchError, match="pickled objects"):
        load_weights(tmp_path / "plain.pkl")


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><html>Google Drive - Virus scan warning", b"\n <html><body>404", b"<?xml version='1.0'?>"]
)
def test_a_web_page_is_recognised(tmp_path: Path, page: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(page)
    with pytest.raises(BenchError, match="expected weights, got a web page"):
        load_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_recognised(tmp_path: Path, weights: Weights, form: str, kept: float) -> None:
    path = tmp_path / "w.pt"
    if form == "safetensors":
        save_weights(path, weights)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(BenchError, match=r"damaged or cut short \(\d+ bytes"):
        load_weights(path)


def test_what_holds_no_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        load_weights(tmp_path / "absent.pt")
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="expected names and tensors, got epoch, optimizer; save"):
        load_weights(tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(UsageError, match="got a list"):
        load_weights(tmp_path / "w.pt")


def test_a_mismatch_names_the_keys_and_the_remedy(weights: Weights) -> None:
    lacking = {name: tensor for name, tensor in weights.items() if not name.startswith("linear")}
    with pytest.raises(UsageError, match=re.escape("(2 missing: linear.weight, linear.bias)")):
        fit(small(), lacking, where="x.pt")
    extra = {**weights, **{f"extra{i}": torch.zeros(1) for i in range(6)}}
    with pytest.raises(UsageError, match=r"6 unexpected: extra0, extra1, extra2, extra3 and 2 more\); another network"):
        fit(small(), extra)
    with pytest.raises(
        UsageError, match=r"x\.pt: .*2 of another shape: linear\.weight \(10, 256\) for \(4, 256\).*number of classes"
    ):
        fit(small(classes=4), weights, where="x.pt")
    with pytest.raises(UsageError, match=r"shape.*--model"):
        fit(build("small_cnn_wide", 10, 1, 8, seed=0), weights)


def test_a_failed_fit_leaves_the_model_alone(weights: Weights) -> None:
    model = small()
    before = weights_hash(model.state_dict())
    with pytest.raises(BenchError, match=r"expected finite weights, got NaN or infinity in linear\.bias"):
        fit(model, {**weights, "linear.bias": torch.full((10,), torch.nan)})
    with pytest.raises(UsageError):
        fit(model, {**weights, "extra": torch.zeros(1)})
    assert weights_hash(model.state_dict()) == before


def test_counters_and_the_unused_block_of_wide_networks_are_passed_over(weights: Weights) -> None:
    old = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    model = fit(small(), old)
    assert torch.equal(logits(model), logits(fit(small(), weights)))

    from bench.models.architectures.wide_resnet import WideResNet

    wide = WideResNet(10, 1, 10, 3)
    state = wide.state_dict()
    unused = {name.replace("block1.", "sub_block1."): tensor for name, tensor in state.items() if "block1." in name}
    assert unused
    assert fit(WideResNet(10, 1, 10, 3), prefixed({**state, **unused}, "model.")).state_dict().keys() == state.keys()


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        (("mean", "std"), "model."),
        (("mu", "sigma"), ""),
        (("normalize.mean", "normalize.std"), "model."),
        (("0.mean", "0.std"), "1."),
    ],
)
def test_a_stored_normalisation_is_kept(weights: Weights, names: tuple[str, str], prefix: str) -> None:
    stored = {**prefixed(weights, prefix), names[0]: torch.tensor([0.25]), names[1]: torch.full((1, 1, 1, 1), 0.5)}
    model = fit(small(), stored)
    expected = Normalized(fit(small(), weights), (0.25,), (0.5,))
    assert isinstance(model, Normalized)
    assert torch.equal(logits(model), logits(expected))
    with pytest.raises(UsageError, match="holds a normalisation of its own; leave out --mean and --std"):
        fit(small(), stored, mean=(0.5,), std=(0.5,))


def test_a_normalisation_can_be_given(weights: Weights) -> None:
    model = fit(small(), weights, mean=(0.25,), std=(0.5,))
    assert torch.equal(logits(model), logits(Normalized(fit(small(), weights), (0.25,), (0.5,))))
    with pytest.raises(UsageError, match="--mean and --std together"):
        fit(small(), weights, mean=(0.25,))


def test_a_normalised_model_takes_its_own_weights_back(tmp_path: Path, weights: Weights) -> None:
    model = Normalized(fit(small(), weights), (0.25,), (0.5,))
    save_weights(tmp_path / "n.safetensors", model.state_dict())
    again = fit(Normalized(small(), (0.0,), (1.0,)), load_weights(tmp_path / "n.safetensors"))
    assert torch.equal(logits(again), logits(model))
    bare = fit(small(), load_weights(tmp_path / "n.safetensors"))
    assert torch.equal(logits(bare), logits(model))


def test_weights_of_half_precision_are_widened(tmp_path: Path, weights: Weights) -> None:
    halves = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    safetensors.torch.save_file(halves, tmp_path / "half.safetensors")
    model = fit(small(), load_weights(tmp_path / "half.safetensors"))
    assert model.linear.weight.dtype == torch.float32
    assert torch.equal(model.linear.weight, weights["linear.weight"].half().float())
