"""The contract checks of training methods; `METHOD_CHECKS` lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attacks.passes import Passes
from attacks.threat import TOLERANCE, distance
from bench.conformance.fixtures import (
    LogitsRecorder,
    OperationCounter,
    freeze_first_batch_norm,
    gradients_of,
    modes_of,
    permute_head,
    require,
    require_equal,
    require_ranges,
    rng_states,
    state_of,
    weights_of,
    zero_head,
)
from bench.conformance.loop import Loop, LoopOptions
from bench.core.pass_counter import KINDS, PassCounter
from bench.training.microbatch import micro_batch
from methods.base import Batch, Method

REPEATS = 12
EXACT = torch.float64  # precise enough that rounding changes no result of a check


@dataclass(frozen=True)
class MethodCase:
    """A method with a number of classes.

    Attributes:
        name: its name in messages.
        method: the class.
        num_classes: K.
        arguments: settings other than the defaults.
    """

    name: str
    method: type[Method]
    num_classes: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.num_classes} classes"

    def build(self) -> Method:
        """The method."""
        return self.method(**{"num_classes": self.num_classes, **self.arguments})

    def loop(self, options: LoopOptions | None = None) -> Loop:
        """The method in a small training loop."""
        return Loop(self.build(), self.num_classes, options or LoopOptions())


def settings_declare_their_ranges(case: MethodCase) -> None:
    """No setting takes any number: its annotation says which, see `attacks.plugins.ranges`."""
    require_ranges(case.method)


def default_constructible(case: MethodCase) -> None:
    """`Method()` works, and says what it needs and costs."""
    method = case.method()
    require(isinstance(method.passes(), Passes), "passes() is expected to return attacks.Passes")
    require(bool(method.recipes), "recipes is expected to name at least one recipe")


def attributes_equal_arguments(case: MethodCase) -> None:
    """Settings are attributes: what was passed can be read off, and rebuilds the same object."""
    method = case.build()
    settings = method.settings()
    for name, value in {"num_classes": case.num_classes, **case.arguments}.items():
        require(settings.get(name) == value, f"{name}={value!r} was passed, the attribute is {settings.get(name)!r}")
    again = case.method(**settings).settings()
    for name, value in settings.items():
        require(again[name] == value, f"{name}={value!r} was passed, the attribute is {again[name]!r}")


def loss_per_sample_finite(case: MethodCase) -> None:
    """The loss has one finite value per trained row, and logits come with it."""
    loop = case.loop().begin(0)
    batch = loop.batch()
    adv = loop.perturb(batch)
    terms = loop.method.loss(loop.model, batch, adv, loop.ctx)
    rows = len(adv.of(batch.y))
    require(len(adv.x) == rows, f"perturb returned {len(adv.x)} inputs for {rows} rows")
    require(terms.loss.shape == (rows,), f"expected a loss of shape ({rows},), got {tuple(terms.loss.shape)}")
    require(bool(terms.loss.isfinite().all()), "the loss is not finite")
    for view, logits in terms.logits.items():
        require(view in ("adv", "clean"), f"expected logits named 'adv' or 'clean', got {view!r}")
        expected = (rows, case.num_classes)
        require(logits.shape == expected, f"expected logits {expected} for {view!r}, got {tuple(logits.shape)}")


def gradient_reaches_every_parameter(case: MethodCase) -> None:
    """Every weight of the student is trained."""
    loop = case.loop().begin(0)
    loop.step(loop.batch())
    for name, parameter in loop.model.named_parameters():
        require(parameter.grad is not None, f"{name} got none")
        require(bool((parameter.grad != 0).any()), f"{name} got zeros")  # type: ignore[union-attr]


def perturb_and_loss_write_no_state(case: MethodCase) -> None:
    """Both halves read the method's state and never write it, nor the student's weights and gradients."""
    loop = case.loop().begin(0)
    state, trained, grads = state_of(loop.method), weights_of(loop.model), gradients_of(loop.model)
    batch = loop.batch()
    loop.method.loss(loop.model, batch, loop.perturb(batch), loop.ctx)
    require_equal(state, state_of(loop.method), "perturb or loss changed the method's state")
    require_equal(trained, weights_of(loop.model), "perturb or loss changed a weight")
    require_equal(grads, gradients_of(loop.model), "perturb or loss left a gradient behind")


def tensors_it_gets_unchanged(case: MethodCase) -> None:
    """Batch and logits are not written in place, since others hold the same tensors."""
    loop = case.loop().begin(0)
    batch, seen = loop.batch(), LogitsRecorder()
    given = {name: getattr(batch, name) for name in ("x", "y", "index", "step_labels")}
    before = {name: tensor.clone() for name, tensor in given.items()}
    for role, network in {"the student": loop.model, **loop.teachers}.items():
        network.register_forward_hook(seen.note(role))
    loop.step(batch)
    require_equal(before, given, "a tensor of the batch was written in place")
    for owner, logits, version in seen.logits:
        require(logits._version == version, f"logits of {owner} were written in place")


def teacher_untouched(case: MethodCase) -> None:
    """Weights, buffers, gradients and modes of every teacher stay."""
    loop = case.loop()
    before = {role: {**state_of(t), **gradients_of(t), **modes_of(t)} for role, t in loop.teachers.items()}
    loop.run()
    for role, teacher in loop.teachers.items():
        after = {**state_of(teacher), **gradients_of(teacher), **modes_of(teacher)}
        require_equal(before[role], after, f"the teacher in the role {role!r} was changed")


def deterministic_given_generator(case: MethodCase) -> None:
    """Two runs from the same seeds agree bit for bit, whatever the global stream."""
    first = case.loop().run().tensors()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(20)
        second = case.loop().run().tensors()
    require_equal(first, second, "two runs with the same seeds differ")


def global_rng_untouched(case: MethodCase) -> None:
    """Random numbers come from the context's generator alone."""
    before = rng_states()
    case.loop().run()
    require_equal(before, rng_states(), "a global random stream was moved")


def modes_restored(case: MethodCase) -> None:
    """The inner maximisation leaves every submodule in its mode, a frozen BatchNorm too."""
    loop = case.loop().begin(0)
    freeze_first_batch_norm(loop.model)
    before = modes_of(loop.model)
    loop.perturb(loop.batch())
    require_equal(before, modes_of(loop.model), "perturb changed a mode")


def inner_points_in_box_and_ball(case: MethodCase) -> None:
    """Inner points lie in the box and within the radius, per sample, that the ascent was asked for."""
    loop = case.loop().run().begin(1)
    batch, radius = loop.batch(), torch.tensor(loop.method.eps)
    ascend = loop.method.ascend

    def recording(*args: Any, **options: Any) -> Tensor:
        nonlocal radius
        radius = torch.as_tensor(loop.method.eps if options.get("eps") is None else options["eps"])
        return ascend(*args, **options)

    loop.method.ascend = recording  # type: ignore[method-assign]
    adv = loop.perturb(batch)
    radii = adv.of(radius.expand(len(batch.x)))
    outside = (adv.x < -TOLERANCE).flatten(1).any(1) | (adv.x > 1 + TOLERANCE).flatten(1).any(1)
    outside |= ~(distance(adv.x, adv.of(batch.x), loop.method.norm) <= radii + TOLERANCE)
    require(not bool(outside.any()), f"{int(outside.sum())} of {len(outside)} inner points lie outside box or ball")


def resume_is_bitwise(case: MethodCase) -> None:
    """A run that was stored within an epoch, rebuilt and continued equals the undisturbed one."""
    undisturbed = case.loop().run().tensors()
    stored = case.loop().run(stop=(1, 1)).save()
    resumed = case.loop().load(stored).run(start=(1, 1)).tensors()
    require_equal(undisturbed, resumed, "a resumed run differs; state belongs into buffers")


def state_is_per_class(case: MethodCase) -> None:
    """Reported state is finite and has one value per class, or one for all, before and after training."""
    loop = case.loop()
    for when in ("before", "after"):
        for name in loop.method.reported:
            value = getattr(loop.method, name)
            shape = (case.num_classes,)
            fits = value.shape in (shape, ())
            require(fits, f"expected {name} {shape} or a scalar, got {tuple(value.shape)} {when} training")
            require(bool(value.isfinite().all()), f"{name} is not finite {when} training")
        if when == "before":
            loop.run()


def class_missing_stays_finite(case: MethodCase) -> None:
    """Loss and state stay finite if no sample of a class is ever seen."""
    relabel = torch.arange(case.num_classes)
    relabel[0] = 1
    _require_finite(case.loop(LoopOptions(relabel=relabel)))


def equal_classes_stay_finite(case: MethodCase) -> None:
    """Loss and state stay finite if all classes are exactly equally hard."""
    _require_finite(case.loop(LoopOptions(alter=zero_head, lr=0.0)))


def label_permutation_equivariance(case: MethodCase) -> None:
    """Renaming the classes renames the per-class state, and changes no loss.

    In float64: a sum over the classes in another order differs by rounding, and in float32 that turns the sign of a
    gradient now and then, and with it a whole step of the attack.
    """
    order = torch.arange(case.num_classes).roll(1)
    plain = case.loop(LoopOptions(dtype=EXACT))
    renamed = case.loop(LoopOptions(relabel=order, alter=lambda model: permute_head(model, order), dtype=EXACT))
    for step, (a, b) in enumerate(zip(plain.train(), renamed.train(), strict=True)):
        same = a.loss.shape == b.loss.shape and torch.allclose(a.loss, b.loss, rtol=1e-4, atol=1e-5)
        require(same, f"the loss of step {step} changes when the classes are renamed")
    for name in plain.method.reported:
        was, now = getattr(plain.method, name), getattr(renamed.method, name)
        now = now[order] if now.ndim else now
        gap = (was - now).abs().max().item()
        require(gap < 1e-5, f"{name} does not follow its classes when they are renamed: off by {gap:.2g}")


def loss_falls_on_a_fixed_batch(case: MethodCase) -> None:
    """A dozen steps on one batch lower its loss, or leave no row to train on."""
    loop = case.loop().begin(0)
    steps = [loop.step(loop.batch()) for _ in range(REPEATS)]
    losses = [terms.loss.mean().item() for terms in steps if len(terms.loss)]
    end = sum(losses[-3:]) / 3
    fell = len(losses) < REPEATS or end < losses[0]
    require(fell, f"the loss went from {losses[0]:.4f} to {end:.4f} in {REPEATS} steps on one batch")


def declared_passes_equal_counted(case: MethodCase) -> None:
    """A step makes the declared passes per sample; a method that drops rows may make fewer."""
    loop, counter = case.loop().begin(0), PassCounter()
    counter.watch(loop.model, "student")
    for teacher in loop.teachers.values():
        counter.watch(teacher, "teacher")
    batch = loop.batch()
    loop.step(batch)
    none = dict.fromkeys(KINDS, 0)
    student, teacher_counts = (counter.counts.get(owner, none) for owner in ("student", "teacher"))
    counted = {**student, "teacher": teacher_counts["forward"], "teacher_grad": teacher_counts["input_grad"]}
    for kind, declared in loop.method.passes().as_dict().items():
        found = counted[kind] / len(batch.x)
        fits = found <= declared if loop.method.drops_rows else found == declared
        require(fits, f"{declared:g} {kind} passes per sample are declared, {found:g} were counted")


def op_count_independent_of_batch(case: MethodCase) -> None:
    """A step takes as many tensor operations on 32 samples as on 8: no loop over samples."""
    counts = {}
    for copies in (1, 4):
        loop = case.loop().begin(0)
        rows = torch.arange(8).repeat(copies)
        batch = Batch(loop.x[rows], loop.y[rows], rows, loop.y[rows])
        with OperationCounter() as operations:
            loop.step(batch)
        counts[len(rows)] = operations.count
    require(counts[8] == counts[32], f"{counts[8]} operations on 8 samples, {counts[32]} on 32; vectorise over samples")


def micro_batches_agree(case: MethodCase) -> None:
    """The loss of two micro-batches equals that of the whole, given the labels of the whole step (without BatchNorm).

    A method that declares `couples_batch` is expected not to agree.
    """
    loop = case.loop(LoopOptions(batch_norm=False)).run().begin(1)
    batch = loop.batch()
    adv = loop.perturb(batch)
    middle = len(adv.x) // 2
    whole = loop.method.loss(loop.model, batch, adv, loop.ctx).loss
    halves = [micro_batch(batch, adv, *span) for span in ((0, middle), (middle, len(adv.x)))]
    parts = torch.cat([loop.method.loss(loop.model, *half, loop.ctx).loss for half in halves])
    same = parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-4, atol=1e-6)
    if loop.method.couples_batch:
        require(not same, "couples_batch is declared, and the losses of two micro-batches are those of the whole")
    else:
        require(same, "the losses of two micro-batches are not those of the whole; normalise by batch.step_labels")


def _require_finite(loop: Loop) -> None:
    for step, terms in enumerate(loop.train()):
        require(bool(terms.loss.isfinite().all()), f"the loss of step {step} is not finite")
    for name, tensor in loop.tensors().items():
        require(bool(tensor.isfinite().all()), f"{name} is not finite after training")


METHOD_CHECKS: Mapping[str, Callable[[MethodCase], None]] = {
    check.__name__: check
    for check in (
        default_constructible,
        settings_declare_their_ranges,
        attributes_equal_arguments,
        loss_per_sample_finite,
        gradient_reaches_every_parameter,
        perturb_and_loss_write_no_state,
        tensors_it_gets_unchanged,
        teacher_untouched,
        deterministic_given_generator,
        global_rng_untouched,
        modes_restored,
        inner_points_in_box_and_ball,
        resume_is_bitwise,
        state_is_per_class,
        class_missing_stays_finite,
        equal_classes_stay_finite,
        label_permutation_equivariance,
        loss_falls_on_a_fixed_batch,
        declared_passes_equal_counted,
        op_count_independent_of_batch,
        micro_batches_agree,
    )
}
