"""The folded form of a network in training: the same function as the network in eval mode, whatever it has learned."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attacks import objectives
from attacks.ascent import ascend
from attacks.fast.chain import Chain
from attacks.fast.folded import Folded
from bench.models.builders import build


def images(n: int, channels: int, size: int) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0)).double()


def learn(model: nn.Module, x: Tensor) -> None:
    """A step of training and its statistics."""
    model.train()
    model(x)
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.mul_(1.1).add_(0.01 * (i % 3))


def logits_and_gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    here = x.clone().requires_grad_()
    logits = model(here)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), here)[0]


def assert_same_function(folded: Folded, model: nn.Module, x: Tensor) -> None:
    model.eval()
    for ours, theirs in zip(logits_and_gradient(folded, x), logits_and_gradient(model, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "norms", "left"),
    [("small_cnn", 3, 0), ("resnet18", 20, 0), ("preact_resnet18", 17, 9), ("mobilenet_v2", 57, 0)],
)
def test_it_is_the_model_in_eval_mode_also_after_it_has_learned(name: str, norms: int, left: int) -> None:
    model, x = build(name, 10, 3, 8, seed=0).double(), images(4, 3, 8)
    folded = Folded(model)
    for _ in range(2):
        learn(model, x)
        folded.refresh()
        assert_same_function(folded, model, x)
    counts = [sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) for network in (model, folded)]
    assert counts == [norms, left]


def test_the_model_keeps_its_layers_modes_and_state() -> None:
    model, x = build("resnet18", 10, 3, 8, seed=0).double(), images(2, 3, 8)
    learn(model, x)
    before, layers = copy.deepcopy(model.state_dict()), list(model.modules())
    folded = Folded(model)
    ascend(folded, x, objectives.cross_entropy(torch.tensor([1, 2])), eps=0.1, step_size=0.05, steps=2, start="zero")
    assert list(model.modules()) == layers
    assert all(module.training for module in layers)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_weights_are_those_of_the_last_refresh() -> None:
    model, x = build("small_cnn", 10, 1, 8, seed=0).double(), images(4, 1, 8)
    folded = Folded(model, example=x)
    learn(model, x)
    assert not torch.allclose(folded(x), copy.deepcopy(model).eval()(x))
    folded.refresh()
    assert_same_function(folded, model, x)


def block(norm: nn.Module, **of_convolution: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, **of_convolution), norm, nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    ).double()  # fmt: skip


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, eps=0.1)])
@pytest.mark.parametrize("bias", [True, False])
def test_biases_and_plain_norms_are_folded_too(norm: nn.Module, bias: bool) -> None:
    model, x = block(copy.deepcopy(norm), bias=bias), images(6, 1, 8)
    learn(model, x)
    assert_same_function(Folded(model), model, x)


class Shared(nn.Module):
    """A convolution with one BatchNorm behind it at one place and another at a second; a third pair is plain."""

    def __init__(self, act: Callable[[Shared, Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.conv, self.plain = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
        self.one, self.two, self.three = nn.BatchNorm2d(1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)
        self.linear = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.act(self, self.three(self.plain(x))).flatten(1))
        return logits


@pytest.mark.parametrize(
    "act",
    [
        lambda net, x: net.one(net.conv(x)) + net.two(net.conv(x)),
        lambda net, x: net.one(net.conv(x)) + net.one(net.plain(x)),
        lambda net, x: torch.relu(y) + net.one(y) if (y := net.conv(x)) is not None else x,
    ],
)
def test_what_is_used_twice_is_refused_or_left_as_it_is(act: Callable[[Shared, Tensor], Tensor]) -> None:
    model, x = Shared(act).double(), images(6, 1, 8)
    learn(model, x)
    try:
        folded = Folded(model)
    except ValueError as error:
        assert "more than once" in str(error)  # the first two models
    else:
        assert_same_function(folded, model, x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :5] if bool(x.mean() > 0) else x.flatten(1)[:, 5:10]


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (Branching(), "cannot be traced"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), "no BatchNorm"),
        (block(nn.BatchNorm2d(4, track_running_stats=False)), "no BatchNorm"),
    ],
)
def test_what_cannot_be_folded_says_why(model: nn.Module, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Folded(model)


def test_the_gradient_of_a_plain_line_is_written_out_where_an_example_is_given() -> None:
    line, x = build("small_cnn", 10, 1, 8, seed=0), images(2, 1, 8).float()
    assert any(isinstance(module, Chain) for module in Folded(line, example=x)._chain)
    assert Folded(line)._chain == ()
    assert Folded(build("resnet18", 10, 3, 8, seed=0), example=images(2, 3, 8).float())._chain == ()


def test_a_lower_precision_spares_the_layers_that_keep_theirs() -> None:
    model = build("small_cnn", 10, 1, 8, seed=0)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    folded = Folded(model, dtype=torch.bfloat16, keep={first})
    dtypes = [module.weight.dtype for module in folded.modules() if isinstance(module, nn.Conv2d)]
    assert dtypes == [torch.float32, torch.bfloat16, torch.bfloat16]
