"""The two halves of a training step, in as many parts and over as many processes as it takes."""

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
from bench.training.microbatch import LEAST_WITH_NORM, has_norm, joined, joined_terms, micro_batch, rows_of
from methods.base import Adversarial, Batch, Context, Method, Terms

Part = tuple[Batch, Adversarial]


class Stepping:
    """Perturbation and gradients of a step of which this process has a share.

    Args:
        method, model, ctx: of the run; its generator is replaced.
        group: the processes that train together.
        cut: how the share is cut.
        counter: of the run's passes.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        ctx: Context,
        *,
        group: ProcessGroup,
        cut: BatchLimit,
        counter: PassCounter,
    ) -> None:
        self.method, self.model, self.ctx = method, model, ctx
        ctx.generator = self.stream = PartGenerator(ctx.device)
        ctx.micro_batches, ctx.retry_smaller = self.parts, self.retry_smaller
        self.group, self.cut, self.counter = group, cut, counter
        self.wrapped, self.rehearsed = model, group.size == 1
        self.normed = has_norm(model)
        self.parameters = list(model.parameters())
        self.statistics = [
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
            spans = self.cut.spans(len(batch.y))
            return joined([self._perturb(batch, first, span, seed) for span in spans], spans)

        if len(batch.y) == 0:
            return Adversarial(batch.x)
        return self.cut.retry_smaller(work, len(batch.y), self._place)

    def _perturb(self, batch: Batch, first: int, span: tuple[int, int], seed: int) -> Adversarial:
        self.stream.manual_seed(seed)
        part = batch if span == (0, len(batch.y)) else rows_of(batch, slice(*span))
        with self.stream.within(first + span[0], first + span[1], len(batch.step_labels)):
            return self.method.perturb(self.model, part, self.ctx)

    def around(self, batch: Batch, adv: Adversarial) -> AbstractContextManager[None]:
        """The method's `around_step`."""
        return self.method.around_step(self.model, batch, adv, self.ctx)

    def parts(self, batch: Batch, adv: Adversarial) -> list[Part]:
        """The share in parts; none if there is too little to train on."""
        rows = self._own_rows(adv)
        spans = self.cut.spans(rows)
        return [(batch, adv)] if len(spans) == 1 else [micro_batch(batch, adv, *span) for span in spans]

    def retry_smaller(self, work: Callable[[], Result], adv: Adversarial) -> Result:
        """Do what can be done again, in smaller parts whenever memory runs out; see `BatchLimit.retry_smaller`."""
        return self.cut.retry_smaller(work, len(adv.x), self._place)

    def backward(self, batch: Batch, adv: Adversarial) -> Terms | None:
        """Gradients of the mean loss over the whole step; None, and no gradients, for fewer than two rows."""
        total = self._rows_of_step(batch, adv)
        if total < 2:
            return None
        if not self.rehearsed:
            self._rehearse(batch, adv)

        def work() -> Terms:
            self._forget()
            parts = self.parts(batch, adv)
            found = [self._part(part, total, last=i == len(parts) - 1) for i, part in enumerate(parts)]
            if not parts:
                self._take_part(batch)
            return joined_terms(found, batch.x)

        return self.retry_smaller(work, adv)

    def sync_batchnorm_stats(self) -> None:
        """Give all processes the same running statistics: the mean of what BatchNorm has moved in each."""
        self.group.sync_batchnorm_stats(self.statistics)

    def _forget(self) -> None:
        """Drop the gradients, as `zero_grad` does, without looking for the parameters once more."""
        for parameter in self.parameters:
            parameter.grad = None

    @property
    def _place(self) -> list[int]:
        return [self.ctx.epoch, self.ctx.step]

    def _own_rows(self, adv: Adversarial) -> int:
        """Rows of this process's share that are trained on; of a single one BatchNorm has no statistics."""
        return 0 if self.group.size > 1 and self.normed and len(adv.x) < 2 else len(adv.x)

    def _rows_of_step(self, batch: Batch, adv: Adversarial) -> int:
        """Rows that are trained on, over all processes."""
        if self.group.size == 1:
            return len(adv.x)
        if self.method.drops_rows:
            return int(self.group.reduce(torch.tensor(self._own_rows(adv))))
        if len(adv.x) != len(batch.y):
            raise BenchError(
                f"{self.cut.what}: expected an adversarial input for each of {len(batch.y)} samples, got "
                f"{len(adv.x)}; a method that leaves some out has to say drops_rows = True"
            )
        return len(batch.step_labels)

    def _part(self, part: Part, total: int, *, last: bool) -> Terms:
        """The loss of a part, and its gradients; those of the last one make the processes add up theirs."""
        with nullcontext() if last else self.group.no_sync(self.wrapped):
            terms = self.method.loss(self.wrapped, *part, self.ctx)
            share = terms.loss.sum() / (total / self.group.size)
            try:
                share.backward()
            except RuntimeError as error:
                if last and self.group.size > 1 and is_out_of_memory(error):
                    raise BenchError(self._late(len(part[1].x))) from None  # the others have begun to add up
                raise
        return terms

    def _late(self, rows: int) -> str:
        return (
            f"{self.cut.what}: out of memory with {rows} samples at once while gradients were added up over "
            f"{self.group.size} processes; run the same command with --micro-batch {max(1, rows // 2)}"
        )

    def _take_part(self, batch: Batch) -> None:
        """Join the sum of gradients with zeros."""
        x = batch.x[:1] if len(batch.x) else batch.x.new_zeros(1, *batch.x.shape[1:])
        before = self.counter.snapshot()
        with mode(self.model, train=False):
            logits: Tensor = self.wrapped(x)
        (0 * logits.sum()).backward()
        self.counter.restore(before)

    def _rehearse(self, batch: Batch, adv: Adversarial) -> None:
        """Go through a loss without the other processes, and leave no trace; then wrap the model.

        It shows how many samples fit into memory, while a process can still try again by itself, and whether there are
        parameters that the loss does not reach.
        """

        def work() -> bool:
            self._forget()
            parts = self.parts(batch, adv)
            for part in parts:
                self.method.loss(self.model, *part, self.ctx).loss.sum().backward()
            return bool(parts) and any(p.grad is None for p in self.model.parameters() if p.requires_grad)

        before, buffers = self.counter.snapshot(), [buffer.clone() for buffer in self.model.buffers()]
        with forked(batch.x.device):
            unused = self.retry_smaller(work, adv)
        self._forget()
        for buffer, value in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        self.counter.restore(before)
        self.wrapped, self.rehearsed = self.group.data_parallel(self.model, unused=self.group.any_rank(unused)), True


def why_whole(job: TrainJob, method: Method, processes: int) -> str:
    """Why the steps of a run must stay whole; "" if they may be cut.

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


def least_part(job: TrainJob, model: nn.Module) -> int:
    """The fewest samples that a model can train on at once.

    Raises:
        UsageError: if smaller micro-batches were asked for.
    """
    least = LEAST_WITH_NORM if has_norm(model) else 1
    if job.micro_batch is not None and job.micro_batch < least:
        raise UsageError(
            f"{job.title}: expected --micro-batch of at least {least} with BatchNorm, got {job.micro_batch}"
        )
    return least


def cut_of(
    job: TrainJob,
    method: Method,
    model: nn.Module,
    group: ProcessGroup,
    *,
    tell: Callable[[str], None],
    counter: PassCounter,
) -> BatchLimit:
    """How the steps of a run are cut, and whether they can be.

    Raises:
        UsageError: see `why_whole` and `least_part`.
    """
    reason = why_whole(job, method, group.size)
    if not reason and group.size > 1 and group.sync_bn:
        reason = "with --sync-bn the processes must cut alike: give --micro-batch, or a smaller --batch-size"
    least = least_part(job, model)
    return BatchLimit(job.title, job.micro_batch, least=least, refusal=reason, tell=tell, counter=counter)


def agreed_state(state: dict[str, list[float]], title: str, group: ProcessGroup) -> dict[str, list[float]]:
    """The method's per-class state, which must have become the same in every process.

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
