"""The prepared form of a model: the same function, and a fall-back that is never wrong."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from attacks.autoattack.stage import Standing
from attacks.fast.prepared import Prepared, padded_size
from attacks.registry import ATTACKS
from attacks.threat import ThreatModel
from bench.core.pass_counter import PassCounter
from bench.models.builders import build
from tests.helpers.watched import labelled, robust, stream


def trained_statistics(name: str = "small_cnn", size: int = 8, channels: int = 1) -> tuple[nn.Module, Tensor]:
    """A network whose BatchNorm has seen data, and images."""
    model = build(name, 10, channels, size, seed=3)
    x = torch.rand(40, channels, size, size, generator=stream(5))
    with torch.no_grad():
        model.train()(x)
    return model.eval(), x


class Wrapped(nn.Module):
    """A model with something done to what comes in or goes out."""

    def __init__(self, model: nn.Module, act: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.act = model, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.model, x)


def batchnorms(model: Prepared) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.fast.modules())


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "preact_resnet18", "mobilenet_v2"])
def test_the_prepared_form_is_the_same_function_in_double_precision(name: str) -> None:
    model, x = trained_statistics(name, 8, 3)
    model, x = model.double(), x[:4].double()
    before = copy.deepcopy(model.state_dict())
    prepared = Prepared(model, x, channels_last=name == "resnet18")
    assert prepared.note is None and prepared.unfolded is None
    assert batchnorms(prepared) < sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    here, there = (x.clone().requires_grad_() for _ in range(2))
    ours, theirs = prepared(here), model(there)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(here.grad, there.grad, rtol=1e-7, atol=1e-12)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())


def test_the_copy_stays_frozen_and_in_eval_mode_and_the_original_in_its_own() -> None:
    model, x = trained_statistics()
    model.train()
    prepared = Prepared(model, x)
    prepared.train()
    assert model.training and not prepared.fast.training
    assert not any(parameter.requires_grad for parameter in prepared.fast.parameters())
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x)
        assert torch.equal(prepared.verdict(x), expected)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_without_any_switch_the_logits_are_the_models_bit_for_bit() -> None:
    model, x = trained_statistics()
    with torch.no_grad():
        assert torch.equal(Prepared(model, x, fold=False)(x), model(x))


def counted(model: nn.Module, x: Tensor) -> Tensor:
    if bool(x.mean() > 2):
        return -model(x)
    logits: Tensor = model(x)
    return logits


def test_a_model_that_cannot_be_traced_is_prepared_without_folding() -> None:
    model, x = trained_statistics()
    prepared = Prepared(Wrapped(model, counted), x)
    assert prepared.note is None and prepared.unfolded is not None and batchnorms(prepared) == 3


def with_graph_off(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():  # tracing forgets the context, so the traced copy would have a gradient
        logits: Tensor = model(x)
    return logits + 0 * x.sum()


def noisy(model: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = model(x + 0.5 * torch.rand_like(x))
    return logits


class Once:
    def __deepcopy__(self, memo: object) -> Once:
        raise RuntimeError("there is only one")


def only_once(model: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = model(x)
    return logits


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (with_graph_off, "other gradients"),
        (noisy, "differently|other logits"),
        (only_once, "RuntimeError: there is only"),
    ],
)
def test_what_cannot_be_prepared_is_searched_as_it_is(act: Callable[..., Tensor], says: str) -> None:
    model, x = trained_statistics()
    given = Wrapped(model, act)
    if act is only_once:
        given.once = Once()  # type: ignore[assignment]
    with torch.random.fork_rng(), pytest.warns(UserWarning, match=f"searched as it is.*({says})"):
        torch.manual_seed(0)
        prepared = Prepared(given.eval(), x)
    assert prepared.note is not None and prepared.networks == (given,)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ours = prepared(x)
        torch.manual_seed(1)
        assert torch.equal(ours, given(x))


def test_a_sample_falls_only_on_the_verdict_of_the_original() -> None:
    model, x, y = labelled(4)
    prepared = Prepared(model, x)
    prepared.fast = Wrapped(model, lambda model, x: -model(x))  # everything looks fooled
    with torch.no_grad():
        standing = Standing(prepared, x, y)
        assert standing.left.all()
        rows = torch.arange(len(x))
        assert standing.record(rows, x.clone(), torch.ones_like(rows, dtype=torch.bool)) is None
        assert standing.left.all() and torch.equal(standing.x_adv, x)
        wrong = x.clone()
        wrong[0] = x[int((y != y[0]).nonzero()[0, 0])]
        gone = standing.record(rows, wrong, torch.ones_like(rows, dtype=torch.bool))
        assert gone is not None and gone.tolist() == [True] + [False] * (len(x) - 1)
        assert not standing.left[0] and standing.left[1:].all() and torch.equal(standing.x_adv[0], wrong[0])


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_a_search_on_the_prepared_form_finds_what_one_on_the_model_finds(name: str) -> None:
    model, x, y = labelled(5, n=24)
    attack = ATTACKS[name](threat=ThreatModel("linf", 0.02))
    for field in ("steps", "queries"):
        if hasattr(attack, field):
            attack = ATTACKS[name](threat=attack.threat, **{field: 20})
    plain = attack(model, x, y, generator=stream())
    found = attack(Prepared(model, x), x, y, generator=stream())
    assert torch.equal(robust(model, plain, y), robust(model, found, y))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-6)


def test_passes_are_counted_once_each_whether_prepared_or_not() -> None:
    model, x = trained_statistics()
    for prepared in (Prepared(model, x), fallen_back(model, x)):
        counter = PassCounter()
        handles = [counter.watch(network, "attack") for network in prepared.networks]
        with torch.no_grad():
            prepared(x)
            prepared.verdict(x[:3])
        prepared(x[:5].requires_grad_()).sum().backward()
        for handle in handles:
            handle.remove()
        assert counter.counts["attack"]["forward"] == len(x) + 3 + 5
        assert counter.counts["attack"]["input_grad"] == 5
        x = x.detach()


def fallen_back(model: nn.Module, x: Tensor) -> Prepared:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = Prepared(Wrapped(model, noisy).eval(), x)
    assert prepared.note is not None
    prepared.fast, prepared._given = model, (model,)
    return prepared


def test_bfloat16_spares_the_first_and_the_last_layer() -> None:
    model, x = trained_statistics("resnet18", 16, 3)
    prepared = Prepared(model, x[:8], bf16=True)
    assert prepared.note is None, prepared.note
    layers = [m for m in prepared.fast.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    precisions = [layer.weight.dtype for layer in layers]
    assert precisions.count(torch.float32) == 2 and precisions[0] == precisions[-1] == torch.float32
    here = x[:8].requires_grad_()
    logits = prepared(here)
    assert logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logits.sum(), here)
    assert gradient.dtype == torch.float32 and bool(gradient.any())
    with torch.no_grad():  # 1e-4 is below bfloat16's spacing at most values of an image
        assert not torch.equal(prepared(x[:8] + 1e-4), prepared(x[:8]))


def test_padded_sizes_cover_and_are_few() -> None:
    sizes = [padded_size(n) for n in range(1, 1025)]
    assert all(n <= size <= max(8, 1.5 * n) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 15 and sizes[-1] == 1024


def test_a_tie_may_fall_either_way() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    with torch.no_grad():
        first, second = model[-1].weight
        second.copy_(first + 1e-3 * torch.randn(16))
        model[-1].bias.zero_()
    x = torch.rand(64, 3, 2, 2, generator=stream())
    prepared = Prepared(model, x, bf16=True)
    with torch.no_grad():
        assert bool((prepared(x).argmax(1) != model(x).argmax(1)).any())
    assert prepared.note is None


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_function_is_compiled_at_every_padded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: usual(self, backend="eager", **how))
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        prepared = Prepared(model, torch.rand(8, 3, 2, 2, generator=stream()), compile=True)
        for n in (8, 12, 16, 24, 32, 48):
            x = torch.rand(n, 3, 2, 2, generator=stream())
            assert prepared(x.clone().requires_grad_()).requires_grad
            with torch.no_grad():
                torch.testing.assert_close(prepared(x), model(x))
    assert prepared.note is None


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_form_is_the_same_function_at_every_batch_size() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    x = torch.rand(20, 1, 8, 8, generator=stream())
    prepared = Prepared(model, x, compile=True)
    assert prepared.note is None
    for n in (5, 8):
        here = x[:n].clone().requires_grad_()
        logits = prepared(here)
        torch.testing.assert_close(logits, model(x[:n]), rtol=1e-5, atol=1e-6)
        assert torch.autograd.grad(logits.sum(), here)[0].shape == here.shape
