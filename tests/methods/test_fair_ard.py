"""The Fair-ARD family: class weights from the attack's way, over hosts that they leave as they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.conformance.fixtures import difference, network
from bench.conformance.loop import Loop
from methods.base import Batch, Method
from methods.fair_ard import FairARD, FairMTARD, FairRSLAD
from methods.fair_weight import FairWeight
from methods.registry import METHODS
from tests.helpers import formulas, method_runs
from tests.helpers.jobs import job_of, plan
from tests.helpers.stubs import CLASSES, StubStudent, StubTeacher, make_batch, make_context, random_logits

BATCH = make_batch()
CLEAN, TEACHER, NATURAL = random_logits(0), random_logits(2), random_logits(3)
FAMILY = {"fair_ard": "ard", "fair_rslad": "rslad", "fair_mtard": "mtard"}


def trained(name: str, state: bool = True, **settings: Any) -> dict[str, Tensor]:
    """Weights, statistics and momentum after six epochs, and the method's state unless it is left out."""
    keep = ("model/", "momentum/", "method/") if state else ("model/", "momentum/")
    return method_runs.trained(method_runs.build(name, **settings), keep=keep)


@pytest.mark.parametrize(("name", "host"), FAMILY.items())
def test_with_weights_of_one_it_is_its_host_bit_for_bit(name: str, host: str) -> None:
    expected = trained(host, state=False)
    assert difference(expected, trained(name, state=False, fair_power=0.0)) is None
    assert difference(expected, trained(name, state=False)) is not None


@pytest.mark.parametrize(("name", "host"), FAMILY.items())
def test_it_is_the_composition_around_its_host(name: str, host: str) -> None:
    assert difference(trained(f"fair_weight:{host}"), trained(name)) is None
    family, composition = METHODS[name], METHODS[f"fair_weight:{host}"]
    for fact in ("teachers", "epoch_settings", "warm_start", "drops_rows"):
        assert getattr(family, fact) == getattr(composition, fact), fact
    assert set(family.reported) == set(composition.reported)
    assert family.revision == METHODS[host].revision + FairWeight.revision - 1, "a change of either is a change of both"


@pytest.mark.parametrize("name", FAMILY)
def test_the_weights_follow_how_long_each_class_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    way = torch.stack([random_logits(10 + step, scale=1.5) for step in range(10)])
    way[:4] += 2 * torch.nn.functional.one_hot(BATCH.y, CLASSES)  # most samples stand for a while

    def walk(model: nn.Module, x: Tensor, objective: Any, **options: Any) -> Tensor:
        for step in range(options["steps"]):
            options["observe"](step, x, way[step], torch.arange(len(x)))
        return x.clone()

    monkeypatch.setattr("methods.base.ascend", walk)
    method, ctx = METHODS[name](), make_context(StubTeacher(TEACHER), natural=StubTeacher(NATURAL))
    student = StubStudent({"clean": (BATCH.x, CLEAN)})
    for _ in range(2):
        adv = method.perturb(student, BATCH, ctx)
        terms = method.loss(StubStudent({"clean": (BATCH.x, CLEAN), "adv": (adv.x, CLEAN)}), BATCH, adv, ctx)
        method.observe(BATCH, adv, terms, ctx)
    assert torch.equal(method.get_buffer("fair_weight"), torch.ones(CLASSES, dtype=torch.float64))
    method.end_epoch(student, ctx)

    y = BATCH.y.numpy()
    kappa = np.array([sum(way[step, i].argmax().item() == y[i] for step in range(10)) for i in range(len(y))])
    means = np.array([kappa[y == k].mean() if (y == k).any() else np.nan for k in range(CLASSES)])
    means = np.where(np.isnan(means), np.nanmean(means), means)
    found = method.get_buffer("fair_weight").numpy()
    np.testing.assert_allclose(found, formulas.fair_weights(means), rtol=1e-6)
    assert found.min() == pytest.approx(5 / 6) and ((found > 0.9) & (found < 2.4)).any()


@pytest.mark.parametrize("natural_from", ["natural", "robust"])
def test_as_released_the_robust_teachers_view_of_x_adv_is_the_target_of_both_terms(natural_from: Any) -> None:
    """The loss, and the balance after two steps, by the formulas; as released weighted terms keep the balance."""
    method = FairMTARD(num_classes=5, natural_from=natural_from)
    method.get_buffer("fair_weight").copy_(torch.linspace(5 / 6, 2.5, 5))
    robust, natural = network(5, 1).double().eval(), network(5, 2).double().eval()
    student, y = network(5, 3).double(), BATCH.y % 5
    batch, ctx = Batch(BATCH.x, y, BATCH.index, y), make_context(robust, natural=natural)
    weight, first, share = method.get_buffer("fair_weight")[y].numpy(), np.zeros(2), 0.5
    for step in range(2):
        adv = method.perturb(student, batch, ctx)
        with torch.no_grad():
            terms = method.loss(student, batch, adv, ctx)
            targets = robust(adv.x), natural(BATCH.x) if natural_from == "natural" else robust(adv.x)
        z = [terms.logits[view].numpy() for view in ("adv", "clean")]
        each = np.array([formulas.kl(formulas.softmax(t.numpy()), s) for t, s in zip(targets, z, strict=True)])
        expected = weight * ((1 - share) * each[0] + share * each[1]) / 10
        np.testing.assert_allclose(terms.loss.numpy(), expected, rtol=1e-9)
        now = (each if natural_from == "natural" else weight * each).mean(1)
        first = now if step == 0 else first
        share = formulas.mtard_update(share, first, now, 0.025)
        method.observe(batch, adv, terms, ctx)
        method.after_step(student, ctx)
        assert method.get_buffer("natural_share").item() == pytest.approx(share, rel=1e-9)
        method.get_buffer("fair_weight").copy_(torch.linspace(2.5, 5 / 6, 5))
        weight = method.get_buffer("fair_weight")[y].numpy()
    assert abs(share - 0.5) > 1e-5
    with pytest.raises(ValueError, match="FairMTARD: natural_from: expected natural or robust, got 'both'"):
        FairMTARD(natural_from="both")  # type: ignore[arg-type]


def test_the_balance_of_fair_mtard_is_kept_by_the_unweighted_terms() -> None:
    shares = []
    for weights in (torch.ones(5), torch.linspace(5 / 6, 2.5, 5)):
        loop = Loop(FairMTARD(num_classes=5), 5)
        loop.method.get_buffer("fair_weight").copy_(weights)
        for epoch in range(2):  # the same batch and weights of the student twice, but for its optimiser's step
            loop.optimiser.param_groups[0]["lr"] = 0.0
            loop.begin(epoch).step(loop.batch())
        shares.append(loop.method.get_buffer("natural_share"))
    assert torch.equal(*shares)


def test_the_plan_gives_each_its_teachers_and_recipe() -> None:
    found = plan(methods=tuple(FAMILY), dataset="cifar10", recipe="paper")
    assert [job.method for job in found.train if job.role == "teacher"] == ["trades", "natural"]
    for name in FAMILY:
        recipe = job_of(found, name).recipe
        assert recipe.nesterov and recipe.epochs == (200 if name == "fair_ard" else 300)
    assert job_of(found, "fair_mtard").settings["rate_milestones"] == (215, 260, 285)


def test_the_released_recipe_of_fair_ard_is_that_of_the_release_it_inherits_from() -> None:
    released = job_of(plan(methods=("fair_ard",), dataset="cifar10", recipe="released"), "fair_ard")
    host = job_of(plan(methods=("ard",), dataset="cifar10", recipe="released"), "ard")
    assert released.settings["clean_pass"] and host.settings["clean_pass"]
    assert released.recipe.milestones == host.recipe.milestones == (100,) and released.recipe.nesterov


@pytest.mark.parametrize(("method", "host"), [(FairARD, "ard"), (FairRSLAD, "rslad"), (FairMTARD, "mtard")])
def test_what_it_costs_is_what_the_host_costs(method: type[Method], host: str) -> None:
    assert method().passes() == METHODS[host]().passes()
