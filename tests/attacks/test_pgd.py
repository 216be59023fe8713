"""PGD's restarts, and what attacks refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attacks.base import Attack
from attacks.pgd import PGD
from attacks.registry import ATTACKS
from attacks.threat import ThreatModel
from bench.conformance.fixtures import images, network
from bench.core.pass_counter import PassCounter

THREAT = ThreatModel("linf", 0.05)
X = images(48, 7)


@pytest.fixture
def model() -> nn.Module:
    return network(5, 2).eval()


def wrong(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        verdict: Tensor = model(x).argmax(1) != y
    return verdict


def predictions(model: nn.Module) -> Tensor:
    with torch.no_grad():
        prediction: Tensor = model(X).argmax(1)
    return prediction


def test_restarts_keep_the_worst_point_of_each_sample(model: nn.Module) -> None:
    y = predictions(model)
    stream = torch.Generator().manual_seed(0)
    singles = [PGD(THREAT, steps=2)(model, X, y, generator=stream) for _ in range(4)]
    together = PGD(THREAT, steps=2, restarts=4)(model, X, y, generator=torch.Generator().manual_seed(0))
    fooled = torch.stack([wrong(model, x_adv, y) for x_adv in singles])
    assert fooled.any(0).sum() > fooled[0].sum(), "more restarts are expected to fool more here"
    assert torch.equal(wrong(model, together, y), fooled.any(0))
    with torch.no_grad():
        losses = torch.stack([nn.functional.cross_entropy(model(z), y, reduction="none") for z in singles])
        kept = nn.functional.cross_entropy(model(together), y, reduction="none")
    standing = ~fooled.any(0)
    torch.testing.assert_close(kept[standing], losses.amax(0)[standing])


def test_a_fooled_sample_takes_no_further_restart(model: nn.Module) -> None:
    y = predictions(model)
    y[:24] = (y[:24] + 1) % 5  # fooled from the start
    counter = PassCounter()
    counter.watch(model, "model")
    PGD(ThreatModel("linf", 1e-6), steps=3, restarts=5)(model, X, y, generator=torch.Generator().manual_seed(0))
    assert counter.counts["model"] == {"forward": 48 * 4 + 24 * 4 * 4, "input_grad": 48 * 3 + 24 * 4 * 3, "backward": 0}


def test_a_restarted_attack_declares_its_verdicts() -> None:
    assert PGD(steps=7).passes(10).as_dict()["forward"] == 7
    assert PGD(steps=7, restarts=3).passes(10).as_dict()["forward"] == 24
    assert PGD(steps=7, restarts=3).passes(10).as_dict()["input_grad"] == 21


@pytest.mark.parametrize("name", ATTACKS.names())
def test_attacks_are_frozen_settings_with_a_revision(name: str) -> None:
    attack = ATTACKS[name](threat=THREAT)
    assert isinstance(attack, Attack)
    assert attack.threat == THREAT and attack == ATTACKS[name](threat=THREAT)
    assert isinstance(attack.revision, int)  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        attack.threat = ThreatModel()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (X * 2 - 1, r"expected x in \[0, 1\], got min -.*put the normalisation inside the model"),
        (X * 2, r"expected x in \[0, 1\], got max 1\.99"),
        (torch.full_like(X, float("nan")), r"expected x in \[0, 1\]"),
        ((X * 255).byte(), r"expected x \(N, C, H, W\) of floating point, got .*uint8; convert images"),
        (X[:, 0], r"expected x \(N, C, H, W\) of floating point, got \(48, 8, 8\)"),
    ],
)
def test_bad_images_are_refused(model: nn.Module, x: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match="pgd: " + words):
        PGD()(model, x, predictions(model), generator=torch.Generator())


@pytest.mark.parametrize("y", [torch.zeros(3, dtype=torch.int64), torch.zeros(48), torch.zeros(48, 5).long()])
def test_bad_labels_are_refused(model: nn.Module, y: Tensor) -> None:
    with pytest.raises(ValueError, match=r"pgd: expected y \(48,\) int64, got"):
        PGD()(model, X, y, generator=torch.Generator())
