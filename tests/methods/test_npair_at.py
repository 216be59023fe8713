"""The N-pair term against NumPy, the features it reads, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.conformance.fixtures import difference, images, modes_of, state_of
from bench.conformance.loop import Loop
from bench.models.builders import build
from bench.models.normalized import Normalized
from bench.models.registry import MODELS
from methods.base import Adversarial
from methods.features import with_features
from methods.npair_at import NPairAT, n_pair
from tests.helpers import formulas
from tests.helpers.stubs import CLASSES, make_batch, make_context

BATCH = make_batch()
Y = BATCH.y.numpy()


def features(seed: int, width: int = 6) -> Tensor:
    return torch.randn(len(Y), width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES)).double()


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_the_term_and_its_gradients_are_those_of_the_formula() -> None:
    anchors, positives = features(0).requires_grad_(), features(1).requires_grad_()
    found = n_pair(anchors, positives, BATCH.y, 0.02)
    a, p = anchors.detach().numpy(), positives.detach().numpy()
    np.testing.assert_allclose(found.detach().numpy(), formulas.n_pair(a, p, Y, 0.02), rtol=1e-10)
    found.mean().backward()
    for leaf, moved in (
        (anchors, formulas.gradient(lambda at: formulas.n_pair(at, p, Y, 0.02).mean(), a)),
        (positives, formulas.gradient(lambda at: formulas.n_pair(a, at, Y, 0.02).mean(), p)),
    ):
        assert leaf.grad is not None
        np.testing.assert_allclose(leaf.grad.numpy(), moved, rtol=1e-5, atol=1e-8)


def test_the_loss_is_cross_entropy_and_the_weighted_term_of_penultimate_features() -> None:
    model, x_adv = network(), (BATCH.x + 0.1 * torch.rand_like(BATCH.x)).clamp(0, 1)
    method = NPairAT(weight=0.3, norm_weight=0.5)
    terms = method.loss(model, BATCH, Adversarial(x_adv), make_context())
    with torch.no_grad():
        a, p = (model[:3](x).numpy() for x in (x_adv, BATCH.x))
        z = model(x_adv).numpy()
    expected = formulas.ce(z, Y) + 0.3 * formulas.n_pair(a, p, Y, 0.5)
    np.testing.assert_allclose(terms.loss.detach().numpy(), expected, rtol=1e-10)
    assert torch.equal(terms.logits["clean"], model(BATCH.x))


def test_the_term_without_norms_is_at_least_the_log_of_the_number_of_positives() -> None:
    pure = n_pair(features(0), features(1), BATCH.y, 0.0)
    floor = torch.tensor([np.log((k == Y).sum()) for k in Y])
    assert (pure >= floor).all()
    told_apart = 50.0 * F.one_hot(BATCH.y, CLASSES).double()
    torch.testing.assert_close(n_pair(told_apart, told_apart, BATCH.y, 0.0), floor)


def test_the_order_of_the_batch_and_the_names_of_the_classes_do_not_matter() -> None:
    a, p, order = features(0), features(1), torch.randperm(len(Y), generator=torch.Generator().manual_seed(0))
    plain = n_pair(a, p, BATCH.y, 0.02)
    torch.testing.assert_close(n_pair(a[order], p[order], BATCH.y[order], 0.02), plain[order])
    torch.testing.assert_close(n_pair(a, p, 9 - BATCH.y, 0.02), plain)


def test_at_weight_zero_it_is_pgd_at_bit_for_bit() -> None:
    from methods.registry import METHODS

    def trained(name: str, **settings: Any) -> dict[str, Tensor]:
        return Loop(METHODS[name](num_classes=5, steps=3, **settings), 5).run().tensors()

    assert difference(trained("pgd_at"), trained("npair_at", weight=0.0)) is None
    assert difference(trained("pgd_at"), trained("npair_at", weight=0.1)) is not None
    assert NPairAT(weight=0.0).passes() == METHODS["pgd_at"]().passes()


@pytest.mark.parametrize("name", MODELS.builtin)
def test_features_are_what_the_head_of_every_architecture_is_given(name: str) -> None:
    model = build(name, 5, 3, 8, seed=0).eval()
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = {**state_of(model), **modes_of(model)}
    with torch.no_grad():
        logits, found = with_features(model, x)
        assert torch.equal(logits, model(x))
        (head,) = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 5]
        torch.testing.assert_close(head(found), logits)
    assert hooks(model) == 0 and difference(before, {**state_of(model), **modes_of(model)}) is None


def test_features_of_a_normalised_model_are_those_of_the_model_inside() -> None:
    inner = network().float()
    model, x = Normalized(inner, (0.5,), (0.25,)), images(3, 0)
    _, found = with_features(model, x)
    torch.testing.assert_close(found, inner[:3]((x - 0.5) / 0.25))


def test_reading_features_moves_batch_norm_as_a_plain_pass_does() -> None:
    plain, watched = (Loop(NPairAT(num_classes=3), 3).model for _ in range(2))
    x = images(8, 0)
    plain(x)
    with_features(watched, x)
    assert difference(state_of(plain), state_of(watched)) is None


class Functional(nn.Module):
    """A head without a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.unused.weight)


class Gated(nn.Module):
    """A linear layer that does not give the logits, as in squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(8, 8), nn.Conv2d(1, 3, 8)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x * self.gate(x)).flatten(1)
        return logits


class Failing(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise RuntimeError("no memory")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            Functional(),
            "features of Functional: expected its logits from a torch.nn.Linear, got a forward pass without",
        ),
        (
            Gated(),
            r"from a torch.nn.Linear on \(N, D\), got 3 classes and, as the last one to run, a layer to 8 features",
        ),
    ],
)
def test_a_model_whose_logits_come_from_elsewhere_is_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        with_features(model, images(2, 0))
    assert hooks(model) == 0


def test_a_model_without_a_linear_layer_is_refused_before_training() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())
    with pytest.raises(ValueError, match="npair_at: expected a model that ends in torch.nn.Linear"):
        NPairAT().setup(model, make_context())
    NPairAT(weight=0.0).setup(model, make_context())


def test_no_hook_is_left_behind_by_a_pass_that_fails() -> None:
    model = Failing(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(RuntimeError, match="no memory"):
        with_features(model, images(2, 0))
    assert hooks(model) == 0


def test_the_term_is_made_in_float32_where_the_model_runs_in_less() -> None:
    a, p = (f.to(torch.bfloat16) for f in (features(0), features(1)))
    with torch.autocast("cpu", torch.bfloat16):
        found = n_pair(a, p, BATCH.y, 0.02)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, n_pair(a.float(), p.float(), BATCH.y, 0.02))
