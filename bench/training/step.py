"""A training step: perturbation and gradients, in micro-batches and over processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.contexts import mode
from attacks.draws import PartGenerator
from bench.core.out_of_memory import BatchLimit, Result, is_out_of_memory
from bench.core.pass_counter import PassCounter
from bench.core.seeding import forked
from bench.distributed.process_group import ProcessGroup
from bench.errors import BenchError, UsageError
from bench.plan.jobs import TrainJob
from bench.training.microbatch import (
    MIN_SIZE_WITH_BATCHNORM,
    concat_adversarials,
    concat_terms,
    has_batchnorm,
    micro_batch,
    select_rows,
)
from methods.base import Adversarial, Batch, Context, Method, Terms

MicroBatch = tuple[Batch, Adversarial]


class TrainingStep:
    """Perturbation and gradients of this process's share of a step.

    Args:
        method, model, ctx: of the run; its generator is replaced.
        group: the processes that train together.
        limit: micro-batches of the share.
        counter: of the run's passes.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        ctx: Context,
        *,
        group: ProcessGroup,
        limit: BatchLimit,
        counter: PassCounter,
    ) -> None:
        self.method, self.model, self.ctx = method, model, ctx
        ctx.generator = self.stream = PartGenerator(ctx.device)
        ctx.micro_batches, ctx.retry_smaller = self.micro_batches, self.retry_smaller
        self.group, self.limit, self.counter = group, limit, counter
        self.wrapped, self.is_wrapped = model, group.size == 1
        self.has_batchnorm = has_batchnorm(model)
        self.parameters = list(model.parameters())
        self.batchnorm_stats = [
            tensor
            for module in model.modules()
            if isinstance(module, _BatchNorm)
            for tensor in (module.running_mean, module.running_var)
            if tensor is not None
        ]

    def perturb(self, batch: Batch, first: int, seed: int) -> Adversarial:
        """The inner maximisation of this process's share.

        Args:
            batch: the share; `step_labels` are those of the whole step.
            first: where it begins in the step.
            seed: of the step's stream; every sample draws what it would draw in one process.
        """

        def work() -> Adversarial:
            spans = self.limit.spans(len(batch.y))
            return concat_adversarials([self._perturb(batch, first, span, seed) for span in spans], spans)

        if len(batch.y) == 0:
            return Adversarial(batch.x)
        return self.limit.retry_smaller(work, len(batch.y), self._position)

    def _perturb(self, batch: Batch, first: int, span: tuple[int, int], seed: int) -> Adversarial:
        self.stream.manual_seed(seed)
        part = batch if span == (0, len(batch.y)) else select_rows(batch, slice(*span))
        with self.stream.within(first + span[0], first + span[1], len(batch.step_labels)):
            return self.method.perturb(self.model, part, self.ctx)

    def around(self, batch: Batch, adv: Adversarial) -> AbstractContextManager[None]:
        """The method's `around_step`."""
        return self.method.around_step(self.model, batch, adv, self.ctx)

    def micro_batches(self, batch: Batch, adv: Adversarial) -> list[MicroBatch]:
        """The share in micro-batches; none if there is too little to train on."""
        rows = self._local_rows(adv)
        spans = self.limit.spans(rows)
        return [(batch, adv)] if len(spans) == 1 else [micro_batch(batch, adv, *span) for span in spans]

    def retry_smaller(self, work: Callable[[], Result], adv: Adversarial) -> Result:
        """Call a function that goes over `micro_batches`; see `BatchLimit.retry_smaller`."""
        return self.limit.retry_smaller(work, len(adv.x), self._position)

    def backward(self, batch: Batch, adv: Adversarial) -> Terms | None:
        """Gradients of the mean loss over the whole step; None, and no gradients, for fewer than two rows."""
        total = self._global_rows(batch, adv)
        if total < 2:
            return None
        if not self.is_wrapped:
            self._trial_pass(batch, adv)

        def work() -> Terms:
            self._clear_gradients()
            micro_batches = self.micro_batches(batch, adv)
            terms = [self._backward(part, total, last=part is micro_batches[-1]) for part in micro_batches]
            if not micro_batches:
                self._add_zero_gradients(batch)
            return concat_terms(terms, batch.x)

        return self.retry_smaller(work, adv)

    def sync_batchnorm_stats(self) -> None:
        """Average the running statistics of BatchNorm over the processes."""
        self.group.sync_batchnorm_stats(self.batchnorm_stats)

    def _clear_gradients(self) -> None:
        """Drop the gradients, as `zero_grad` does, without looking for the parameters once more."""
        for parameter in self.parameters:
            parameter.grad = None

    @property
    def _position(self) -> list[int]:
        return [self.ctx.epoch, self.ctx.step]

    def _local_rows(self, adv: Adversarial) -> int:
        """Rows that this process trains on; of a single one BatchNorm has no statistics."""
        return 0 if self.group.size > 1 and self.has_batchnorm and len(adv.x) < 2 else len(adv.x)

    def _global_rows(self, batch: Batch, adv: Adversarial) -> int:
        """Rows that all processes train on together."""
        if self.group.size == 1:
            return len(adv.x)
        if self.method.drops_rows:
            return int(self.group.reduce(torch.tensor(self._local_rows(adv))))
        if len(adv.x) != len(batch.y):
            raise BenchError(
                f"{self.limit.what}: expected an adversarial input for each of {len(batch.y)} samples, got "
                f"{len(adv.x)}; a method that leaves some out has to say drops_rows = True"
            )
        return len(batch.step_labels)

    def _backward(self, part: MicroBatch, total: int, *, last: bool) -> Terms:
        """Loss and gradients of a micro-batch; with the last one the processes all-reduce theirs."""
        with nullcontext() if last else self.group.no_sync(self.wrapped):
            terms = self.method.loss(self.wrapped, *part, self.ctx)
            share = terms.loss.sum() / (total / self.group.size)
            try:
                share.backward()
            except RuntimeError as error:
                if last and self.group.size > 1 and is_out_of_memory(error):
                    raise BenchError(self._too_late(len(part[1].x))) from None  # the others have begun to add up
                raise
        return terms

    def _too_late(self, rows: int) -> str:
        return (
            f"{self.limit.what}: out of memory with {rows} samples at once while gradients were added up over "
            f"{self.group.size} processes; run the same command with --micro-batch {max(1, rows // 2)}"
        )

    def _add_zero_gradients(self, batch: Batch) -> None:
        """Take part in the all-reduce with gradients of zero."""
        x = batch.x[:1] if len(batch.x) else batch.x.new_zeros(1, *batch.x.shape[1:])
        before = self.counter.snapshot()
        with mode(self.model, train=False):
            logits: Tensor = self.wrapped(x)
        (0 * logits.sum()).backward()
        self.counter.restore(before)

    def _trial_pass(self, batch: Batch, adv: Adversarial) -> None:
        """Try the loss without the other processes, undo it, and wrap the model for data-parallel training.

        This finds how many samples fit into memory, while a process can still retry by itself, and whether the loss
        leaves out parameters.
        """

        def work() -> bool:
            self._clear_gradients()
            micro_batches = self.micro_batches(batch, adv)
            for part in micro_batches:
                self.method.loss(self.model, *part, self.ctx).loss.sum().backward()
            return bool(micro_batches) and any(p.grad is None for p in self.model.parameters() if p.requires_grad)

        before, buffers = self.counter.snapshot(), [buffer.clone() for buffer in self.model.buffers()]
        with forked(batch.x.device):
            unused = self.retry_smaller(work, adv)
        self._clear_gradients()
        for buffer, value in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        self.counter.restore(before)
        self.wrapped, self.is_wrapped = self.group.data_parallel(self.model, unused=self.group.any_rank(unused)), True


def why_unsplittable(job: TrainJob, method: Method, processes: int) -> str:
    """Why the batches of a run cannot be split; "" if they can.

    Raises:
        UsageError: if micro-batches or several processes were asked for and the method cannot have them.
    """
    if not method.couples_batch:
        return ""
    reason = f"{job.method} couples the samples of a batch, which must stay whole: take a smaller --batch-size"
    flags = {"--micro-batch": job.micro_batch is not None, "torchrun": processes > 1}
    asked = [flag for flag, given in flags.items() if given]
    if asked:
        raise UsageError(f"{job.title}: {reason}, and leave out {' and '.join(asked)}")
    return reason


def min_micro_batch(job: TrainJob, model: nn.Module) -> int:
    """The fewest samples that a model can train on at once.

    Raises:
        UsageError: if smaller micro-batches were asked for.
    """
    least = MIN_SIZE_WITH_BATCHNORM if has_batchnorm(model) else 1
    if job.micro_batch is not None and job.micro_batch < least:
        raise UsageError(
            f"{job.title}: expected --micro-batch of at least {least} with BatchNorm, got {job.micro_batch}"
        )
    return least


def micro_batch_limit(
    job: TrainJob,
    method: Method,
    model: nn.Module,
    group: ProcessGroup,
    *,
    tell: Callable[[str], None],
    counter: PassCounter,
) -> BatchLimit:
    """The micro-batches of a run: their size, and whether there can be any.

    Raises:
        UsageError: see `why_unsplittable` and `min_micro_batch`.
    """
    reason = why_unsplittable(job, method, group.size)
    if not reason and group.size > 1 and group.sync_bn:
        reason = "with --sync-bn the processes must cut alike: give --micro-batch, or a smaller --batch-size"
    least = min_micro_batch(job, model)
    return BatchLimit(job.title, job.micro_batch, least=least, refusal=reason, tell=tell, counter=counter)


def require_same_state(state: dict[str, list[float]], title: str, group: ProcessGroup) -> dict[str, list[float]]:
    """The method's per-class state, if it is the same in every process.

    Raises:
        BenchError: otherwise, in every process.
    """
    every = group.gather(state)
    if group.any_rank(any(other != every[0] for other in every[1:])):
        raise BenchError(
            f"{title}: expected the same per-class state in every process after an epoch, got different ones; "
            "the method has to add up its class sums with ctx.reduce in end_epoch"
        )
    return state
