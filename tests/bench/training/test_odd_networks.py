"""Odd networks: whatever form of them is attacked, logits, gradients and attacks are those of the network itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from attacks import ascend, objectives
from attacks.fast.prepared import Prepared, close, input_gradient
from bench.core.pass_counter import PassCounter
from bench.training.fast_networks import FastNetworks

X = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(16) % 4


def conv(channels: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, 4, 3, 1, 1)


def line(first: nn.Module, *others: nn.Module) -> nn.Module:
    others = others or (nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(first, *others, conv(4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))


class Shared(nn.Module):
    """One convolution before two BatchNorms, under one name or two."""

    def __init__(self, two: bool) -> None:
        super().__init__()
        self.start, self.conv, self.a, self.b = conv(), conv(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.other, self.end = self.conv if two else None, nn.Linear(256, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.conv(self.start(x))).relu()
        logits: Tensor = self.end(self.b((self.other or self.conv)(x)).relu().flatten(1))
        return logits


class Read(nn.Module):
    """A convolution whose weight its network reads once more."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.start, self.conv, self.norm, self.end = conv(), conv(4), nn.BatchNorm2d(4), nn.Linear(256, 4)
        self.second = conv(4) if tied else None
        if self.second is not None:
            self.second.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(self.start(x))).relu()
        x = F.conv2d(x, self.conv.weight, padding=1) if self.second is None else self.second(x)
        logits: Tensor = self.end(x.flatten(1))
        return logits


class Standardised(nn.Conv2d):
    """Weight standardisation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias, padding=1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.end = conv(), nn.BatchNorm2d(4), nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        logits: Tensor = self.end(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return logits


class Counting(nn.Module):
    """A buffer that changes in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = line(conv())
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        logits: Tensor = self.net(x)
        return logits


def hooked() -> nn.Module:
    first = conv()
    first.register_forward_hook(lambda *given: 2 * given[-1])
    return line(first)


def quietly(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old kind is deprecated
        return line(wrap(conv()))


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "old weight norm": lambda: quietly(nn.utils.weight_norm),
    "old spectral norm": lambda: quietly(nn.utils.spectral_norm),
    "new weight norm": lambda: quietly(parametrizations.weight_norm),
    "new spectral norm": lambda: quietly(parametrizations.spectral_norm),
    "shared by one name": lambda: Shared(two=False),
    "shared by two names": lambda: Shared(two=True),
    "tied": lambda: Read(tied=True),
    "functional": lambda: Read(tied=False),
    "hook": hooked,
    "subclass": lambda: line(Standardised(1, 4, 3)),
    "buffer": Counting,
}
FOLDED: dict[str, Callable[[], nn.Module]] = {
    "attention": Attention,
    "other norms": lambda: line(conv(), nn.GroupNorm(2, 4), nn.ReLU(), nn.InstanceNorm2d(4)),
    "other order": lambda: line(conv(), nn.ReLU(), nn.BatchNorm2d(4)),
    "dropout": lambda: line(conv(), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU()),
}


def assert_same_attacks(fast: nn.Module, model: nn.Module, of_logits: float, of_gradients: float) -> None:
    with torch.no_grad():
        assert close(fast(X), model(X), of_logits)
    assert close(input_gradient(fast, X), input_gradient(model, X), of_gradients)
    found = [
        ascend(network, X, objectives.cross_entropy(Y), eps=0.1, step_size=0.03, steps=3, start=X)
        for network in (fast, model)
    ]
    with torch.no_grad():
        losses = [F.cross_entropy(model(x), Y).item() for x in found]
    assert losses[0] == pytest.approx(losses[1], rel=of_logits, abs=of_logits)


@pytest.mark.filterwarnings("ignore:the model is searched as it is")
@pytest.mark.parametrize("switches", [(), ("fold",), ("channels_last", "fold"), ("bf16", "fold")], ids="+".join)
@pytest.mark.parametrize("name", [*REFUSED, *FOLDED])
def test_attacks_on_a_fast_form_are_those_on_the_network(name: str, switches: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model, said = {**REFUSED, **FOLDED}[name](), list[str]()
    made = FastNetworks(model, {}, X, switches, counter=PassCounter(), warn=said.append)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(made.student.train()(X), Y).backward()
        optimiser.step()
    model.eval()
    made.recheck()
    tolerances = (0.1, 0.5) if "bf16" in switches else (1e-3, 1e-2)
    assert_same_attacks(made.for_attack(made.student).eval(), model, *tolerances)
    if "fold" in switches:
        assert (made.folded is None) == (name in REFUSED)
        assert len(said) == len(made.facts["left_out"]) == (name in REFUSED)
    prepared = Prepared(model, X, **{"fold": False, **dict.fromkeys(switches, True)}).eval()
    assert_same_attacks(prepared, model, *tolerances)


def test_a_folded_form_that_differs_later_is_left_out_and_counts_no_pass() -> None:
    model, said, counter = line(conv()).eval(), list[str](), PassCounter()
    made = FastNetworks(model, {}, X, ("fold",), counter=counter, warn=said.append)
    made.recheck()
    assert made.folded is not None
    assert counter.counts == {}
    model[0].register_forward_hook(lambda *given: 2 * given[-1])  # type: ignore[index,operator]
    made.recheck()
    assert made.for_attack(model) is model
    assert said == ["attacks run on the model as it is from here on: it gives other logits"]
