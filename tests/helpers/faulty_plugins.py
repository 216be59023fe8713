"""Faulty methods and attacks, at least one for every check of the contract; each is named after its fault."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks import objectives
from attacks.ascent import ascend
from attacks.base import check_inputs
from attacks.passes import Passes
from attacks.pgd import PGD
from attacks.threat import ThreatModel
from methods.absld import ABSLD
from methods.base import Adversarial, Batch, Context, Method, Terms
from methods.losses import class_means, cross_entropy
from methods.pgd_at import PGDAT
from methods.rslad import RSLAD


class DemandsAnArgument(PGDAT):
    def __init__(self, *, num_classes: int, **inner: Any) -> None:
        super().__init__(num_classes=num_classes, **inner)


class TakesAnyNumber(PGDAT):
    def __init__(self, *, rate: float = 0.5, **inner: Any) -> None:
        super().__init__(**inner)
        self.rate = rate


class DoublesAnArgument(PGDAT):
    def __init__(self, *, rate: float = 0.5, **inner: Any) -> None:
        super().__init__(**inner)
        self.rate = 2 * rate


class ReducesTheLoss(PGDAT):
    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        terms = super().loss(model, batch, adv, ctx)
        return Terms(terms.loss.mean(), terms.logits)


class TrainsTheHeadAlone(PGDAT):
    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        assert isinstance(model, nn.Sequential)
        logits = model[-1](model[:-1](adv.x).detach())
        return Terms(cross_entropy(logits, batch.y), {"adv": logits})


class WritesStateInLoss(PGDAT):
    def __init__(self, **inner: Any) -> None:
        super().__init__(**inner)
        self.register_buffer("seen", torch.zeros(self.num_classes))

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        self.get_buffer("seen").add_(torch.bincount(batch.y, minlength=self.num_classes))
        return super().loss(model, batch, adv, ctx)


class AliasedTemperatures(ABSLD):
    """The released script's fault: both tempered logits are one tensor, divided in place twice."""

    def soft_labels(self, teacher_logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        adv, clean = teacher_logits.detach(), teacher_logits.detach()
        adv /= self.temperature_adv.float()[y, None]
        clean /= self.temperature_clean.float()[y, None]
        return adv.softmax(1), clean.softmax(1)


class TrainsTheTeacher(RSLAD):
    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        ctx.teacher("robust").train()
        return super().perturb(model, batch, ctx)


class _Noisy(PGDAT):
    @abstractmethod
    def noise(self, x: Tensor) -> Tensor:
        """Uniform draws like x."""

    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        start = (batch.x + self.eps * (2 * self.noise(batch.x) - 1)).clamp(0, 1)
        objective = objectives.cross_entropy(batch.y)
        return Adversarial(self.ascend(model, batch.x, objective, ctx, start=start, bn=self.bn))


class SeedsItself(_Noisy):
    def noise(self, x: Tensor) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        return torch.rand(x.shape, generator=generator)


class DrawsFromTheGlobalStream(_Noisy):
    def noise(self, x: Tensor) -> Tensor:
        return torch.rand_like(x)


class LeaksTrainMode(PGDAT):
    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        model.eval()
        adv = super().perturb(model, batch, ctx)
        model.train()
        return adv


class LeavesTheBall(PGDAT):
    def perturb(self, model: nn.Module, batch: Batch, ctx: Context) -> Adversarial:
        adv = super().perturb(model, batch, ctx)
        return Adversarial(batch.x + 1.5 * (adv.x - batch.x))


class KeepsStateInAnAttribute(PGDAT):
    def __init__(self, **inner: Any) -> None:
        super().__init__(**inner)
        self.factor = 1.0

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        terms = super().loss(model, batch, adv, ctx)
        return Terms(self.factor * terms.loss, terms.logits)

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        self.factor *= 0.9


class ReportsClassPairs(PGDAT):
    reported = ("pairs",)

    def __init__(self, **inner: Any) -> None:
        super().__init__(**inner)
        self.register_buffer("pairs", torch.zeros(self.num_classes, self.num_classes))


class DividesByClassCounts(PGDAT):
    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        terms = super().loss(model, batch, adv, ctx)
        share = 1 / torch.bincount(batch.step_labels, minlength=self.num_classes)
        return Terms(terms.loss * share[batch.y] / share.sum() * share.sum(), terms.logits)


class DividesByZeroGap(ABSLD):
    def end_epoch(self, model: nn.Module, ctx: Context) -> None:
        gap = class_means(self.sums[0], self.sums[2])
        gap = gap - gap.mean()
        self.temperature_adv.sub_(self.temperature_rate * gap / gap.abs().max())
        self.sums.zero_()


class PrefersHighLabels(PGDAT):
    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        terms = super().loss(model, batch, adv, ctx)
        return Terms(terms.loss * (1 + 0.2 * batch.y), terms.logits)


class PrefersHighLabelsALittle(PGDAT):
    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        terms = super().loss(model, batch, adv, ctx)
        return Terms(terms.loss * (1 + 1e-3 * batch.y), terms.logits)


class ReportsInAnOrderOfItsOwn(PGDAT):
    reported = ("sizes",)

    def __init__(self, **inner: Any) -> None:
        super().__init__(**inner)
        self.register_buffer("sizes", torch.zeros(self.num_classes))

    def observe(self, batch: Batch, adv: Adversarial, terms: Terms, ctx: Context) -> None:
        size = class_means(*(torch.bincount(batch.y, w, self.num_classes) for w in (terms.loss.detach(), None)))
        self.get_buffer("sizes").copy_(size.sort().values)


class RoundsItsWeights(PGDAT):
    """No fault: rows whose probabilities do not sum to 1, as happens to float32 in one order or another, weigh double.

    A stand-in for every decision that rounding makes in float32 and does not in float64.
    """

    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        terms = super().loss(model, batch, adv, ctx)
        total, *rest = terms.logits["adv"].detach().softmax(1).unbind(1)
        for probability in rest:
            total = total + probability
        return Terms(terms.loss * (1 + ((total - 1).abs() > 1e-9)), terms.logits)


class ClimbsItsLoss(PGDAT):
    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        terms = super().loss(model, batch, adv, ctx)
        return Terms(2 * terms.loss.detach() - terms.loss, terms.logits)


class HidesAForward(PGDAT):
    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        with torch.no_grad():
            model(batch.x)
        return super().loss(model, batch, adv, ctx)


class LoopsOverSamples(PGDAT):
    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        logits = model(adv.x)
        return Terms(
            torch.stack([F.cross_entropy(z, y) for z, y in zip(logits, batch.y, strict=True)]), {"adv": logits}
        )


class CouplesNothing(PGDAT):
    couples_batch = True


class NormalisesWithinTheMicroBatch(PGDAT):
    def loss(self, model: nn.Module, batch: Batch, adv: Adversarial, ctx: Context) -> Terms:
        terms = super().loss(model, batch, adv, ctx)
        weight = 1.0 + batch.y
        return Terms(terms.loss * weight / weight.mean(), terms.logits)


FAULTY_METHODS: list[tuple[str, type[Method]]] = [
    ("default_constructible", DemandsAnArgument),
    ("settings_declare_their_ranges", TakesAnyNumber),
    ("attributes_equal_arguments", DoublesAnArgument),
    ("loss_per_sample_finite", ReducesTheLoss),
    ("gradient_reaches_every_parameter", TrainsTheHeadAlone),
    ("perturb_and_loss_write_no_state", WritesStateInLoss),
    ("tensors_it_gets_unchanged", AliasedTemperatures),
    ("teacher_untouched", TrainsTheTeacher),
    ("deterministic_given_generator", SeedsItself),
    ("deterministic_given_generator", DrawsFromTheGlobalStream),
    ("global_rng_untouched", DrawsFromTheGlobalStream),
    ("modes_restored", LeaksTrainMode),
    ("inner_points_in_box_and_ball", LeavesTheBall),
    ("resume_is_bitwise", KeepsStateInAnAttribute),
    ("state_is_per_class", ReportsClassPairs),
    ("class_missing_stays_finite", DividesByClassCounts),
    ("equal_classes_stay_finite", DividesByZeroGap),
    ("label_permutation_equivariance", PrefersHighLabels),
    ("label_permutation_equivariance", PrefersHighLabelsALittle),
    ("label_permutation_equivariance", ReportsInAnOrderOfItsOwn),
    ("loss_falls_on_a_fixed_batch", ClimbsItsLoss),
    ("declared_passes_equal_counted", HidesAForward),
    ("op_count_independent_of_batch", LoopsOverSamples),
    ("micro_batches_agree", NormalisesWithinTheMicroBatch),
    ("micro_batches_agree", CouplesNothing),
]


class _Attack(PGD):
    """PGD with a fault added after the attack."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.spoil(model, x, y, super().__call__(model, x, y, generator=generator))

    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        return x_adv


class ReturnsDouble(_Attack):
    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        return x_adv.double()


class AttackLeavesTheBall(_Attack):
    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        return (x + 1.01 * (x_adv - x)).clamp(0, 1)


class AttackLeavesTheBox(_Attack):
    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        return ThreatModel(self.threat.norm, self.threat.eps).project(x + self.threat.eps, x) + 1e-3


class ReturnsItsInput(_Attack):
    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        return x


class DirtiesGradients(_Attack):
    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        with torch.enable_grad():
            F.cross_entropy(model(x_adv), y).backward()
        return x_adv


class MovesStatistics(_Attack):
    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        with torch.no_grad():
            model(x_adv)
        return x_adv


class AttackLeaksTrainMode(_Attack):
    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        model.train()
        return x_adv


class AttacksAsItIs(PGD):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return ascend(
            model, x, self.objective(y), eps=self.threat.eps, step_size=self.threat.eps / 4, steps=self.steps,
            start=self.start, norm=self.threat.norm, generator=generator,
            bn="train" if model.training else "eval",
        )  # fmt: skip


class _Jostled(_Attack):
    @abstractmethod
    def noise(self, x: Tensor) -> Tensor:
        """Uniform draws like x."""

    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        return self.threat.project(x_adv + self.threat.eps * (self.noise(x) - 0.5), x)


class AttackDrawsFromTheGlobalStream(_Jostled):
    def noise(self, x: Tensor) -> Tensor:
        return torch.rand_like(x)


class AttackSeedsItself(_Jostled):
    def noise(self, x: Tensor) -> Tensor:
        generator = torch.Generator()
        generator.seed()
        return torch.rand(x.shape, generator=generator)


class MovesAnyway(_Attack):
    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        return (x_adv + 0.01).clamp(0, 1)


class Squeezes(_Attack):
    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        return x_adv.squeeze(0)


class NeedsGradients(PGD):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        here = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(here), y), here)
        return self.threat.project(x + self.threat.eps * grad.sign(), x)


@dataclass(frozen=True)
class AttackTakesAnyNumber(PGD):
    steps: int = 20  # type: ignore[assignment, unused-ignore]


class StopsShort(_Attack):
    def spoil(self, model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        return x + 0.8 * (x_adv - x)


class TakesAnything(PGD):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return self.threat.project(x + self.threat.eps, x)


class HelpsTheModel(PGD):
    def objective(self, y: Tensor) -> objectives.Objective:
        loss = objectives.cross_entropy(y)
        return lambda logits, rows: -loss(logits, rows)


class AttackHidesAForward(PGD):
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            model(x)
        return super().__call__(model, x, y, generator=generator)


class WantsFourClasses(PGD):
    def objective(self, y: Tensor) -> objectives.Objective:
        return lambda logits, rows: logits.topk(4, dim=1).values[:, 3]


class LastRestartWins(PGD):
    def passes(self, num_classes: int) -> Passes:
        return Passes(forward=self.steps * self.restarts, input_grad=self.steps * self.restarts)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        check_inputs("last", x, y)
        x_adv = x
        for _ in range(self.restarts):
            start = self.threat.start(x, "uniform", generator)
            x_adv = ascend(
                model, x, self.objective(y), eps=self.threat.eps, step_size=self.threat.eps / 4, steps=1,
                start=start, norm=self.threat.norm,
            )  # fmt: skip
        return x_adv


FAULTY_ATTACKS: list[tuple[str, type[PGD]]] = [
    ("settings_declare_their_ranges", AttackTakesAnyNumber),
    ("shape_dtype_device", ReturnsDouble),
    ("in_box_and_ball", AttackLeavesTheBall),
    ("in_box_and_ball", AttackLeavesTheBox),
    ("inputs_unchanged", ReturnsItsInput),
    ("weights_buffers_grads_unchanged", DirtiesGradients),
    ("weights_buffers_grads_unchanged", MovesStatistics),
    ("submodule_modes_restored", AttackLeaksTrainMode),
    ("train_and_eval_mode_agree", AttacksAsItIs),
    ("global_rng_untouched", AttackDrawsFromTheGlobalStream),
    ("same_generator_same_result", AttackSeedsItself),
    ("same_generator_same_result", AttackDrawsFromTheGlobalStream),
    ("eps_zero_returns_x", MovesAnyway),
    ("batch_of_one", Squeezes),
    ("works_under_no_grad", NeedsGradients),
    ("linear_model_closed_form", StopsShort),
    ("rejects_x_outside_box", TakesAnything),
    ("rejects_y_of_wrong_shape", TakesAnything),
    ("fools_as_many_as_random_noise", HelpsTheModel),
    ("passes_within_the_declared", AttackHidesAForward),
    ("few_classes", WantsFourClasses),
    ("more_restarts_never_weaker", LastRestartWins),
]
