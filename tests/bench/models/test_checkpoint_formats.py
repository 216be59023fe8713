"""Checkpoints as released code writes them: small files in the forms of the field, one for each."""

from __future__ import annotations

import argparse
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.errors import BenchError, UsageError
from bench.models import Normalized
from bench.models.architectures.resnet import BasicBlock
from bench.models.architectures.small_resnet import SmallResNet
from bench.models.architectures.wide_resnet import WideResNet
from bench.models.builders import build, network
from bench.models.checkpoints import fit, load_weights, other_entries, weights_hash

Weights = dict[str, Tensor]


def small(seed: int = 0) -> nn.Module:
    return build("small_cnn", 10, 1, 8, seed=seed)


@pytest.fixture
def weights() -> Weights:
    model = small(seed=1).train()
    model(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    return model.state_dict()


def under(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def zeros(weights: Weights) -> Weights:
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


def averaged(weights: Weights) -> Weights:
    return torch.optim.swa_utils.AveragedModel(fit(small(), weights)).state_dict()


def optimiser(weights: Weights) -> dict[str, Any]:
    """The state of an optimiser, which holds tensors as well."""
    model = fit(small(), weights)
    steps = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    steps.step()
    return steps.state_dict()


MEAN, STD = torch.tensor([0.25]), torch.full((1, 1, 1, 1), 0.5)
FORMS: dict[str, Callable[[Weights], Any]] = {
    "an attack around the network": lambda w: under(w, "basic_net."),
    "behind an attack, in parallel": lambda w: {"net": under(w, "module.basic_net.")},
    "torch's average": averaged,
    "torch's average, wrapped": lambda w: {"swa_state_dict": averaged(w), "optimizer": optimiser(w)},
    "timm's average alone": lambda w: {"state_dict_ema": w, "epoch": 3},
    "a name of its own": lambda w: {"robust_net": w, "optimizer": optimiser(w), "acc": [0.1, 0.2]},
    "a list under a name of its own": lambda w: {"nets": [w], "epoch": 3},
    "the student among others": lambda w: {"teacher": zeros(w), "student": w},
    "arrays, paths and arguments beside it": lambda w: {
        "state_dict": w,
        "history": np.arange(6.0).reshape(2, 3),
        "args": argparse.Namespace(out=Path("logs/run"), more=types.SimpleNamespace(eps=0.03)),
    },
    "a number beside flat weights": lambda w: {**w, "epoch": torch.tensor(3), "acc": torch.tensor(0.5)},
    "a number beside weights in parallel": lambda w: {**under(w, "module."), "epoch": torch.tensor(3)},
    "arrays": lambda w: {name: tensor.numpy() for name, tensor in w.items()},
    "arrays, and a number that is a tensor": lambda w: {
        **{name: tensor.numpy() for name, tensor in w.items()},
        "epoch": torch.tensor(3),
    },
    "arrays, wrapped": lambda w: {
        "net": {name: tensor.numpy() for name, tensor in under(w, "module.").items()},
        "acc": np.arange(3.0),
    },
    "a library that keeps network and attack": lambda w: {
        "model": {**under(w, "module.model."), **under(w, "module.attacker.model.")},
        "optimizer": optimiser(w),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_released_code_load(tmp_path: Path, weights: Weights, form: str) -> None:
    torch.save(FORMS[form](weights), tmp_path / "theirs.pt")
    model = fit(small(), load_weights(tmp_path / "theirs.pt"))
    assert weights_hash(model.state_dict()) == weights_hash(weights)


NORMALISED: dict[str, Callable[[Weights], Weights]] = {
    "a library that keeps network, attack and normalisation": lambda w: {
        f"module.{holder}{name}": tensor
        for holder in ("", "attacker.")
        for name, tensor in {**under(w, "model."), "normalizer.new_mean": MEAN, "normalizer.new_std": STD}.items()
    },
    "a sequence of normalisation and parallel network": lambda w: {
        **under(w, "1.module."), "0.mean": MEAN, "0.std": STD,
    },
    "buffers of an outer module": lambda w: {**under(w, "base_model."), "norm_layer.mu": MEAN, "norm_layer.sigma": STD},
}  # fmt: skip


@pytest.mark.parametrize("form", NORMALISED)
def test_a_normalisation_is_found_wherever_it_is_held(tmp_path: Path, weights: Weights, form: str) -> None:
    torch.save(NORMALISED[form](weights), tmp_path / "theirs.pt")
    model = fit(small(), load_weights(tmp_path / "theirs.pt"))
    assert isinstance(model, Normalized)
    assert (model.mean.item(), model.std.item()) == (0.25, 0.5)
    assert weights_hash(model.model.state_dict()) == weights_hash(weights)


def test_a_pair_that_is_no_normalisation_is_not_taken_for_one(weights: Weights) -> None:
    with pytest.raises(UsageError, match=r"2 unexpected: prior\.mean, prior\.std"):
        fit(small(), {**weights, "prior.mean": torch.zeros(64), "prior.std": torch.ones(64)})


def colour(seed: int = 0) -> nn.Module:
    return build("small_cnn", 10, 3, 8, seed=seed)


def pair_of(holder: str, shape: tuple[int, ...], words: tuple[str, str] = ("mean", "std")) -> Weights:
    return {holder + words[0]: torch.full(shape, 0.25), holder + words[1]: torch.full(shape, 0.5)}


@pytest.mark.parametrize("holder", ["head.", "loss.", "linear.stats.", "calibration.", "prior."])
@pytest.mark.parametrize(("shape", "words"), [((), ("mu", "sigma")), ((1,), ("mean", "std")), ((3,), ("mean", "std"))])
def test_a_pair_of_another_place_is_named_and_not_taken(
    holder: str, shape: tuple[int, ...], words: tuple[str, str]
) -> None:
    with pytest.raises(UsageError, match=rf"{holder}{words[0]} and {holder}{words[1]} are not taken for the normalis"):
        fit(colour(), {**colour(1).state_dict(), **pair_of(holder, shape, words)}, channels=3)


@pytest.mark.parametrize(
    ("holder", "shape"),
    [("", ()), ("", (1,)), ("", (4,)), ("", (3, 3)), ("0.", (2,)), ("normalize.", (1, 4, 1, 1)), ("", (64,))],
)
def test_a_pair_of_another_shape_is_not_taken(holder: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="not taken for the normalisation of the input, which has a value for each"):
        fit(colour(), {**pair_of(holder, shape), **colour(1).state_dict()}, channels=3)


@pytest.mark.parametrize(
    ("holder", "shape"),
    [
        ("", (3,)), ("", (1, 3, 1, 1)), ("", (1, 1, 1, 1)), ("0.", (3, 1, 1)), ("0.", ()), ("normalize.", (1,)),
        ("input_norm.", (3,)), ("preprocessing.", (3,)), ("stem.", (3,)), ("net.first.", (3,)),
    ],
)  # fmt: skip
def test_a_pair_in_front_of_the_network_is_taken_and_said(holder: str, shape: tuple[int, ...]) -> None:
    said: list[str] = []
    weights = {**pair_of(holder, shape), **colour(1).state_dict()}
    model = fit(colour(), weights, channels=3, where="a.pt", note=said.append)
    assert isinstance(model, Normalized)
    assert (set(model.mean.flatten().tolist()), set(model.std.flatten().tolist())) == ({0.25}, {0.5})
    assert len(said) == 1
    assert said[0].startswith(f"a.pt: {holder}mean (0.25")
    assert "taken for the normalisation of the input" in said[0]


def test_the_order_of_sorted_names_is_no_place() -> None:
    weights = dict(sorted({**colour(1).state_dict(), **pair_of("aux.", (3,))}.items()))
    with pytest.raises(UsageError, match=r"aux\.mean and aux\.std are not taken"):
        fit(colour(), weights, channels=3)


def test_a_pair_of_the_model_itself_is_no_normalisation_unless_it_is_in_front() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = colour(), nn.Module()
            self.head.register_buffer("mean", torch.zeros(3))
            self.head.register_buffer("std", torch.ones(3))

    with pytest.raises(UsageError, match=r"2 missing: head\.mean, head\.std"):
        fit(Head(), under(colour(1).state_dict(), "net."), channels=3)
    model = fit(Head(), Head().state_dict(), mean=(0.5,) * 3, std=(0.25,) * 3, channels=3)
    assert isinstance(model, Normalized)


def test_a_prefix_that_tells_of_a_lost_layer_is_noted(weights: Weights) -> None:
    said: list[str] = []
    fit(small(), under(weights, "1."), where="a.pt", note=said.append)
    assert said == [
        "a.pt: every name begins with '1.', as behind a layer 0 without weights; if that was a normalisation, it is "
        "not in the file and has to be given"
    ]
    fit(small(), under(weights, "1."), mean=(0.5,), std=(0.5,), note=said.append)
    fit(nn.Sequential(nn.Identity(), small()), under(weights, "1."), note=said.append)
    fit(small(), under(weights, "model."), note=said.append)
    assert len(said) == 1


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda net: net,
    "parallel": nn.DataParallel,
    "compiled": torch.compile,
    "both": lambda net: nn.DataParallel(torch.compile(net)),
    "the other way round": lambda net: torch.compile(nn.DataParallel(net)),
}


@pytest.mark.parametrize("theirs", WRAPPED)
@pytest.mark.parametrize("ours", WRAPPED)
def test_prefixes_of_wrappers_do_not_count_on_either_side(
    tmp_path: Path, weights: Weights, ours: str, theirs: str
) -> None:
    torch.save(WRAPPED[theirs](fit(small(), weights)).state_dict(), tmp_path / "a.pt")
    model = fit(WRAPPED[ours](small(seed=3)), load_weights(tmp_path / "a.pt"))
    assert all(torch.equal(tensor, weights[_plain(name)]) for name, tensor in model.state_dict().items())
    outer = nn.Sequential(nn.Identity(), WRAPPED[ours](small(seed=3)))
    deep = fit(outer, under(load_weights(tmp_path / "a.pt"), "1.")).state_dict()
    assert [torch.equal(tensor, weights[_plain(name)[2:]]) for name, tensor in deep.items()] == [True] * len(weights)


def _plain(name: str) -> str:
    return name.replace("module.", "").replace("_orig_mod.", "")


def test_a_module_of_the_name_of_a_prefix_is_one(weights: Weights) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)
            self.module = nn.ModuleDict({"fc": nn.Linear(2, 2)})

    state = Two().state_dict()
    assert weights_hash(fit(Two(), state).state_dict()) == weights_hash(state)


def test_layers_of_residual_networks_have_two_spellings() -> None:
    own = build("resnet18", 10, 3, 32, seed=1).state_dict()
    spelt = {name.replace("shortcut", "downsample").replace("linear", "fc"): tensor for name, tensor in own.items()}
    assert "layer2.0.downsample.1.weight" in spelt
    model = fit(build("resnet18", 10, 3, 32, seed=0), spelt)
    assert weights_hash(model.state_dict()) == weights_hash(own)

    class Theirs(SmallResNet):
        def __init__(self) -> None:
            super().__init__((4, 8, 8), 10, 3)
            self.fc = self.linear
            del self.linear
            for block in (self.layer1, self.layer2, self.layer3):
                assert isinstance(block, BasicBlock)
                block.downsample = block.shortcut
                del block.shortcut

    ours = SmallResNet((4, 8, 8), 10, 3).state_dict()
    theirs = fit(Theirs(), ours).state_dict()
    assert torch.equal(theirs["layer2.downsample.0.weight"], ours["layer2.shortcut.0.weight"])


def test_the_unused_block_comes_off_behind_every_wrapper(tmp_path: Path) -> None:
    state = WideResNet(10, 1, 10, 3).state_dict()
    unused = {name.replace("block1.", "sub_block1."): tensor for name, tensor in state.items() if "block1." in name}
    torch.save({"state_dict": under({**state, **unused}, "module.")}, tmp_path / "trades.pt")
    model = fit(WideResNet(10, 1, 10, 3), load_weights(tmp_path / "trades.pt"))
    assert weights_hash(model.state_dict()) == weights_hash(state)


def test_one_of_several_networks_is_taken_by_name(tmp_path: Path, weights: Weights) -> None:
    other = small(seed=2).state_dict()
    stored = {"state_dict": weights, "ema": under(other, "module."), "optimizer": optimiser(weights)}
    torch.save(stored, tmp_path / "both.pt")
    for name, expected in {"": weights, "#state_dict": weights, "#ema": other}.items():
        model = fit(small(), load_weights(f"{tmp_path / 'both.pt'}{name}"))
        assert weights_hash(model.state_dict()) == weights_hash(expected), name
    assert other_entries(tmp_path / "both.pt") == ("ema",)
    assert other_entries(f"{tmp_path / 'both.pt'}#ema") == ("state_dict",)
    with pytest.raises(UsageError, match=r"both\.pt: expected an entry 'emma', got state_dict, ema, optimizer"):
        load_weights(f"{tmp_path / 'both.pt'}#emma")
    with pytest.raises(UsageError, match=r"there is no such file"):
        load_weights(f"{tmp_path / 'none.pt'}#ema")
    (tmp_path / "both.pt").rename(tmp_path / "run#3.pt")
    assert weights_hash(load_weights(tmp_path / "run#3.pt")) == weights_hash(weights)
    assert weights_hash(load_weights(f"{tmp_path / 'run#3.pt'}#ema")) == weights_hash(other)


def test_a_number_is_passed_over_only_where_the_network_has_none_of_its_name(weights: Weights) -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 2)
            self.register_buffer("step", torch.tensor(0))

    state = {**Counted().state_dict(), "step": torch.tensor(7), "epoch": torch.tensor(3)}
    assert fit(Counted(), state).state_dict()["step"] == 7
    with pytest.raises(UsageError, match=r"2 unexpected: scale, lr"):
        fit(small(), {**weights, "scale": torch.tensor(3.0), "lr": torch.zeros(10)})


@pytest.mark.parametrize("stored", [{}, {"state_dict": {}}, {"net": {"model": {}}}])
def test_an_empty_dictionary_is_told(tmp_path: Path, stored: dict[str, Any]) -> None:
    torch.save(stored, tmp_path / "empty.pt")
    with pytest.raises(UsageError, match=r"empty\.pt: expected names and tensors, got an empty dictionary; save"):
        load_weights(tmp_path / "empty.pt")
    torch.save({"ema": 3, **stored}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match=r"other\.pt: expected an entry 'swa', got ema"):
        load_weights(f"{tmp_path / 'other.pt'}#swa")


def test_several_networks_of_unknown_names_are_not_guessed(tmp_path: Path, weights: Weights) -> None:
    torch.save({"first": weights, "second": zeros(weights)}, tmp_path / "two.pt")
    with pytest.raises(UsageError, match="expected names and tensors, got first, second; .*FILE#ENTRY"):
        load_weights(tmp_path / "two.pt")
    assert weights_hash(load_weights(f"{tmp_path / 'two.pt'}#first")) == weights_hash(weights)


def test_a_program_is_told_from_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(small().eval(), torch.rand(1, 1, 8, 8)).save(tmp_path / "program.pt")
    with pytest.raises(BenchError, match=r"program\.pt: expected tensors only, got a TorchScript program"):
        load_weights(tmp_path / "program.pt")


def test_a_checkpoint_of_ones_own_in_a_network_of_the_zoo(tmp_path: Path) -> None:
    """The zoo's class brings its normalisation along, whether the file has it or not; nothing is fetched."""
    id, numbers = "robustbench:wong2020fast", ("cifar10", "linf", 10, 3, 32)
    theirs = network(id, *numbers).eval()
    own = theirs.state_dict()
    assert {"mu", "sigma"} <= own.keys()
    bare = {name: tensor for name, tensor in own.items() if name not in ("mu", "sigma")}
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for saved in (own, bare):
        torch.save({"state_dict": under(saved, "module.")}, tmp_path / "mine.pt")
        other = fit(network(id, *numbers), load_weights(tmp_path / "mine.pt")).eval()
        with torch.no_grad():
            assert torch.equal(other(x), theirs(x))
    given = fit(network(id, *numbers), bare, mean=(0.5,) * 3, std=(0.25, 0.5, 1.0)).state_dict()
    assert (given["mu"].flatten().tolist(), given["sigma"].flatten().tolist()) == ([0.5] * 3, [0.25, 0.5, 1.0])
    with pytest.raises(UsageError, match="holds a normalisation of its own"):
        fit(network(id, *numbers), own, mean=(0.5,), std=(0.25,))
    with pytest.raises(UsageError, match="fetched by timm or torchvision"):
        network("robustbench:Standard_R50", "imagenet", "linf", 1000, 3, 224)
