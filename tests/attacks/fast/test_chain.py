"""The written-out gradient of a line of layers: the same function as autograd's, whatever the shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn import functional as F

from attacks.fast.chain import Chain, to_chain
from attacks.fast.layers import Banded, Before, Blocked, Cast, Convolution, Linear, Phased
from attacks.fast.prepared import Prepared
from bench.models.builders import build
from bench.models.normalized import Normalized
from tests.helpers.watched import stream


def line(shape: tuple[int, int, int], first: dict[str, Any], second: dict[str, Any]) -> nn.Module:
    """Two convolutions and two linear layers, for images of a shape (C, H, W)."""
    seen = nn.Sequential(nn.Conv2d(shape[0], 6, **first), nn.ReLU(), nn.Conv2d(6, 8, **second), nn.ReLU(), nn.Flatten())
    features = seen(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*seen, nn.Dropout(), nn.Linear(features, 12), nn.ReLU(), nn.Linear(12, 5))


STRIDED = {"kernel_size": 3, "stride": 2, "padding": 1}
SHAPES: list[tuple[tuple[int, int, int], dict[str, Any], dict[str, Any], type[Convolution], type[Convolution]]] = [
    ((1, 8, 8), {"kernel_size": 3, "padding": 1}, STRIDED, Banded, Phased),
    ((3, 6, 10), {"kernel_size": 3, "padding": 1, "bias": False}, STRIDED | {"bias": False}, Banded, Phased),
    ((2, 9, 7), {"kernel_size": (5, 3), "padding": (1, 2)}, STRIDED, Banded, Convolution),
    ((1, 7, 9), {"kernel_size": 3}, {"kernel_size": 4, "stride": 2}, Banded, Convolution),
    ((4, 12, 10), STRIDED, {"kernel_size": 3, "padding": 1, "groups": 2}, Phased, Convolution),
    ((4, 2, 2), STRIDED, {"kernel_size": 1}, Phased, Banded),
    ((3, 16, 16), {"kernel_size": 3, "padding": 3}, STRIDED, Convolution, Phased),
    ((1, 4, 4), {"kernel_size": 3, "padding": 4}, {"kernel_size": 3, "stride": 2}, Banded, Convolution),
    ((3, 12, 9), {"kernel_size": 4, "stride": 2, "padding": 1}, {"kernel_size": 2}, Blocked, Banded),
    ((2, 13, 10), {"kernel_size": (6, 3), "stride": 3}, {"kernel_size": 2}, Blocked, Banded),
    ((1, 7, 8), {"kernel_size": 2, "stride": 2, "padding": (1, 0)}, STRIDED, Blocked, Phased),
    ((1, 40, 40), {"kernel_size": 5, "stride": 3, "dilation": 2}, STRIDED, Convolution, Convolution),
]


def assert_same_function(chain: Chain, model: nn.Module, x: Tensor) -> None:
    """Logits and input gradients, with images in either layout."""
    towards = torch.randn(3, 5, generator=stream(1), dtype=torch.float64)
    for images in (x, x.to(memory_format=torch.channels_last)):
        here, there = (images.clone().requires_grad_() for _ in range(2))
        ours, theirs = chain(here), model(there)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
        found, expected = (torch.autograd.grad(*pair, towards)[0] for pair in ((ours, here), (theirs, there)))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        with torch.no_grad():
            torch.testing.assert_close(chain(images), theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("shape", "first", "second", "one", "other"), SHAPES)
def test_outputs_and_gradients_are_autograds_also_after_the_weights_have_moved(
    shape: tuple[int, int, int], first: dict[str, Any], second: dict[str, Any],
    one: type[Convolution], other: type[Convolution],
) -> None:  # fmt: skip
    torch.manual_seed(0)
    model = line(shape, first, second).double().eval().requires_grad_(False)
    x = torch.rand(3, *shape, generator=stream(), dtype=torch.float64)
    chain = to_chain(symbolic_trace(model), x)
    assert chain is not None and [type(link) for link in chain.links][:2] == [one, other]
    assert_same_function(chain, model, x)
    for parameter in model.parameters():
        parameter.mul_(1.5).add_(0.01)
    chain.refresh()
    assert_same_function(chain, model, x)


class Acting(nn.Module):
    """Layers that a function puts together."""

    def __init__(self, act: Callable[[Acting, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.linear, self.act = nn.Linear(144, 5), act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def test_relu_and_flattening_are_known_as_functions_too() -> None:
    model = Acting(lambda at, x: at.linear(torch.flatten(F.relu(at.two(at.one(x).relu())), 1))).eval()
    assert to_chain(symbolic_trace(model), torch.rand(2, 1, 6, 6)) is None, "relu as a method is not known"
    model = Acting(lambda at, x: at.linear(F.relu(at.two(torch.relu(at.one(x)))).flatten(1))).eval()
    chain = to_chain(symbolic_trace(model), torch.rand(2, 1, 6, 6))
    assert chain is not None and [bool(link.relu) for link in chain.links] == [True, True, False]


@pytest.mark.parametrize(
    "act",
    [
        lambda at, x: at.linear((at.two(at.one(x)) + at.one(x)).flatten(1)),  # branches
        lambda at, x: at.linear(F.relu(at.one(x)).flatten(1)) * 2,  # something else after it
        lambda at, x: at.linear(torch.sigmoid(at.one(x)).flatten(1)),
        lambda at, x: at.linear(F.relu(at.one(x).flatten(1))),  # a ReLU on what is flat
        lambda at, x: at.linear(at.one(F.relu(x)).flatten(1)),  # a ReLU on the input
        lambda at, x: at.one(x).flatten(1),  # no linear layer
        lambda at, x: at.linear(at.one((x - 0.5).amax(1, keepdim=True)).flatten(1)),  # a method that is not known
        lambda at, x: at.linear((at.one(x) - 0.5).flatten(1)),  # a function between the layers
        lambda at, x: at.linear(at.one(torch.sub(x, x)).flatten(1)),  # a function of more than constants
    ],
)
def test_what_is_no_line_of_known_layers_is_left_alone(act: Callable[[Acting, Tensor], Tensor]) -> None:
    assert to_chain(symbolic_trace(Acting(act).eval()), torch.rand(2, 1, 6, 6)) is None


def test_what_comes_before_the_first_layer_has_its_gradient_too() -> None:
    images, shift = torch.rand(4, 1, 6, 6, dtype=torch.float64), torch.rand(1, 1, 6, 6, dtype=torch.float64)
    model = Acting(lambda at, x: at.linear(at.one((x - at.shift) / 0.3).flatten(1)))
    model.register_buffer("shift", shift)
    for given in (model, Normalized(Acting(lambda at, x: at.linear(at.one(x).flatten(1))), [0.4], [0.2])):
        given = given.double().eval()
        chain = to_chain(symbolic_trace(given), images)
        assert chain is not None and isinstance(chain.links[0], Before)
        here, there = (images.clone().requires_grad_() for _ in range(2))
        torch.testing.assert_close(chain(here), given(there), rtol=1e-10, atol=1e-12)
        found, expected = (torch.autograd.grad(net(x)[:, 1].sum(), x)[0] for net, x in ((chain, here), (given, there)))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_a_prepared_line_is_a_chain_unless_another_form_is_asked_for() -> None:
    model = build("small_cnn", 10, 1, 8, seed=0).eval()
    x = torch.rand(8, 1, 8, 8, generator=stream())
    usual = Prepared(model, x)
    assert usual.note is None and isinstance(usual.fast, Chain)
    assert [type(link) for link in usual.fast.links][:3] == [Banded, Phased, Phased]
    for switch in ({"chain": False}, {"fold": False}, {"channels_last": True}):
        other = Prepared(model, x, **switch)
        assert other.note is None and not isinstance(other.fast, Chain)
    assert not isinstance(Prepared(build("resnet18", 10, 3, 8, seed=0), torch.rand(4, 3, 8, 8)).fast, Chain)


def test_bfloat16_is_what_lies_between_the_first_and_the_last_layer() -> None:
    model = Normalized(build("small_cnn", 10, 1, 8, seed=0), [0.4], [0.2]).eval()
    x = torch.rand(64, 1, 8, 8, generator=stream())
    exact, rough = Prepared(model, x), Prepared(model, x, bf16=True)
    assert rough.note is None and isinstance(rough.fast, Chain)
    assert [type(link) for link in rough.fast.links] == [Before, Banded, Cast, Phased, Phased, Cast, Linear]
    weights = [link.weight.dtype for link in rough.fast.links if hasattr(link, "weight")]
    assert weights == [torch.float32, torch.bfloat16, torch.bfloat16, torch.float32]
    here, there = (x.clone().requires_grad_() for _ in range(2))
    logits, expected = rough(here), exact(there)
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).norm() < 0.02 * expected.norm()
    found, wanted = (torch.autograd.grad(z.square().sum(), at)[0] for z, at in ((logits, here), (expected, there)))
    assert found.dtype == torch.float32 and 0 < (found - wanted).norm() < 0.1 * wanted.norm()
    assert torch.equal(rough.verdict(x), model(x)), "verdicts are those of the model as it was given"


def test_two_layers_have_nothing_between_them() -> None:
    model = Acting(lambda at, x: at.linear(at.one(x).flatten(1))).eval()
    chain = to_chain(symbolic_trace(model), torch.rand(2, 1, 6, 6), bf16=True)
    assert chain is not None and [type(link) for link in chain.links] == [Banded, Linear]


def test_nothing_of_a_pass_outlives_it() -> None:
    import gc
    import weakref

    chain = Prepared(build("small_cnn", 10, 1, 8, seed=0).eval(), torch.rand(4, 1, 8, 8)).fast
    met: list[weakref.ref[Tensor]] = []
    chain.links[0].register_forward_hook(lambda module, inputs, output: met.append(weakref.ref(output)))
    gc.disable()
    try:
        logits = chain(torch.rand(4, 1, 8, 8).requires_grad_())
        assert met[-1]() is not None
        del logits
        assert met[-1]() is None, "what a pass keeps is freed without the collector"
    finally:
        gc.enable()
