"""Class weights around any method: what is counted, the weights that follow, and the loss they multiply."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from bench.conformance.fixtures import difference, state_of
from methods.base import Adversarial, Terms
from methods.fair_weight import KAPPA, FairWeight, KappaCounter
from methods.registry import METHODS
from tests.helpers.method_runs import BATCH, K, loop_of
from tests.helpers.stubs import CLASSES, StubStudent, make_context, random_logits


def test_kappa_counts_the_right_iterates_of_each_sample() -> None:
    counter = KappaCounter(BATCH.y)
    wrong, rows = (BATCH.y + 1) % CLASSES, torch.arange(len(BATCH.y))
    for step, said in enumerate((BATCH.y, torch.where(rows < 3, wrong, BATCH.y), wrong)):
        counter(step, BATCH.x, nn.functional.one_hot(said, CLASSES).float(), rows)
    assert counter.correct.tolist() == [1, 1, 1] + [2] * 9
    counter(3, BATCH.x[5:7], nn.functional.one_hot(BATCH.y, CLASSES).float()[5:7], rows[5:7])
    assert counter.correct.tolist() == [1, 1, 1, 2, 2, 3, 3] + [2] * 5, "the others have left the attack"


def test_the_watcher_sees_what_the_host_ascends_and_changes_nothing() -> None:
    for host, settings in (("pgd_at", {}), ("absld", {}), ("ham", {"begin_epoch_index": 0}), ("natural", {})):
        bare, watched = (loop_of(name, **settings).begin(0) for name in (host, f"fair_weight:{host}"))
        plain, adv = bare.perturb(bare.batch()), watched.perturb(watched.batch())
        assert torch.equal(plain.x, adv.x) and set(adv.extras) == {*plain.extras, KAPPA}
        assert adv.extras[KAPPA].shape == adv.of(watched.batch().y).shape
        if host == "pgd_at":
            assert 0 < adv.extras[KAPPA].max() <= watched.method.steps
        if host == "natural":
            assert not adv.extras[KAPPA].any()


def test_class_weights_follow_the_formula() -> None:
    method, ctx = METHODS["fair_weight:natural"](), make_context()
    kappa = torch.linspace(0, 10, len(BATCH.y))
    adv = Adversarial(BATCH.x, extras={KAPPA: kappa})
    terms = Terms(torch.zeros(len(BATCH.y)), {"clean": random_logits(0)})
    for _ in range(2):
        method.observe(BATCH, adv, terms, ctx)
    method.end_epoch(StubStudent({}), ctx)
    y, seen = BATCH.y.numpy(), np.unique(BATCH.y.numpy())
    means = np.array([kappa.numpy()[y == k].mean() if k in seen else np.nan for k in range(CLASSES)])
    means = np.where(np.isnan(means), np.nanmean(means), means)
    raw = (means + 1e-5) ** -2.0
    expected = np.clip(raw * CLASSES / raw.sum(), 5 / 6, 5 / 2)
    np.testing.assert_allclose(method.get_buffer("fair_weight").numpy(), expected, rtol=1e-6)
    assert not method.get_buffer("fair_sums").any()
    assert expected.max() == 2.5 and expected.min() == 5 / 6


def test_class_weights_multiply_the_hosts_loss() -> None:
    bare, loop = loop_of("absld").begin(0), loop_of("fair_weight:absld").begin(0)
    weight = torch.linspace(0.9, 2.0, K, dtype=torch.float64)
    loop.method.get_buffer("fair_weight").copy_(weight)
    plain, found = bare.step(bare.batch()), loop.step(loop.batch())
    torch.testing.assert_close(found.loss, plain.loss * weight.float()[loop.batch().y])
    rows = torch.tensor([7, 2, 9])
    hard = StubStudent({"adv": (BATCH.x[rows], random_logits(1, n=3))})
    ham: Any = METHODS["fair_weight:ham"]()
    ham.fair_weight.copy_(torch.arange(CLASSES) + 1.0)
    adv = Adversarial(hard.inputs["adv"], rows=rows)
    weighted = ham.loss(hard, BATCH, adv, make_context()).loss
    bare_loss = METHODS["ham"]().loss(hard, BATCH, adv, make_context()).loss
    torch.testing.assert_close(weighted, bare_loss * (BATCH.y[rows] + 1.0))


def test_awp_around_weights_climbs_the_weighted_loss_and_weights_around_awp_the_bare_one() -> None:
    """The trial loss of AWP is the loss of what it wraps."""
    points = {}
    for name in ("awp:fair_weight:pgd_at", "fair_weight:awp:pgd_at", "awp:pgd_at"):
        loop = loop_of(name, gamma=0.05).begin(0)
        if isinstance(loop.method, FairWeight):
            loop.method.fair_weight.copy_(torch.linspace(0.9, 2.0, K))
        batch = loop.batch()
        with loop.method.around_step(loop.model, batch, loop.perturb(batch), loop.ctx):
            points[name] = state_of(loop.model)
    bare = points.pop("awp:pgd_at")
    assert difference(bare, points["fair_weight:awp:pgd_at"]) is None
    assert difference(bare, points["awp:fair_weight:pgd_at"]) is not None
