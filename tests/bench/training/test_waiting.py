"""A training step never waits for the device, but where a method chooses samples: HAM once, BAT each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.errors import BenchError, Interrupted
from bench.models.builders import build
from bench.training.trainer import FINITE_EVERY, Trainer
from methods.registry import METHODS
from tests.helpers.jobs import StopAt, parts_of, plan

WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "_unique2", "unique_consecutive", "masked_select"}
WAITS |= {"lift_fresh"}  # a tensor made of Python's numbers, whose copy to a GPU is waited for
ALLOWED = {"ham": 1, "bat": 20}  # bat's samples leave its two attacks of ten steps one by one


class Watch(TorchDispatchMode):
    """Notes each operation whose result a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.assigns_a_number = False
        self.assigning = patch.object(Tensor, "__setitem__", self._assign(Tensor.__setitem__))

    def _assign(self, assign: Callable[..., None]) -> Callable[..., None]:
        """An assignment to a part of a tensor that says whether it is one of a number, as in x[0] = 1.0."""

        def noted(x: Tensor, where: Any, value: Any) -> None:
            self.assigns_a_number = isinstance(value, (bool, int, float))
            try:
                assign(x, where, value)
            finally:
                self.assigns_a_number = False

        return noted

    def __enter__(self) -> Watch:
        self.assigning.start()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.assigning.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for group in args
            if isinstance(group, (list, tuple))
            for index in group
        )
        # Some versions of torch make a tensor of an assigned number, on a CPU alone: a GPU fills it in without a wait.
        of_torch = name == "lift_fresh" and args[0].ndim == 0 and self.assigns_a_number
        if (name in WAITS and not of_torch) or by_mask:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


def step(trainer: Trainer, number: int, rows: Tensor) -> None:
    """A step of the last epoch on some rows."""
    trainer._step(2, number, rows, rows)


def trainer_of(method: str, **changes: Any) -> Trainer:
    """A trainer in its last epoch, between two steps."""
    found = plan(methods=(method,), epochs=3, train_limit=300, **changes)
    (job,) = [job for job in found.train if job.method == method and job.role == "student"]
    teachers: dict[str, nn.Module] = {
        role: build("small_cnn_wide", 10, 1, 8, seed=i).eval().requires_grad_(False)
        for i, role in enumerate(job.teachers)
    }
    trainer = Trainer(job, parts_of(job), Path("unused"), teachers=teachers)
    trainer.method.setup(trainer.model, trainer.ctx)
    trainer.ctx.epoch = 2
    trainer.model.train()
    trainer.method.begin_epoch(trainer.model, trainer.ctx)
    step(trainer, 0, torch.arange(128))
    return trainer


@pytest.mark.parametrize("method", METHODS.names())
def test_a_step_waits_for_nothing(method: str) -> None:
    trainer = trainer_of(method)
    with Watch() as watch:
        step(trainer, 1, torch.arange(128))
    assert watch.waits == ["nonzero"] * ALLOWED.get(method, 0)


def test_the_watch_sees_what_it_is_there_for() -> None:
    x = torch.arange(4.0)
    with Watch() as watch:
        bool(x.sum() > 1)
        x[x > 1]
        x[torch.tensor([1, 2])]
        float(x[0])
        x[0] = torch.tensor(2.0)
        x[1] = float(x[0])
    seen = ["_local_scalar_dense", "index", "lift_fresh", "_local_scalar_dense", "lift_fresh", "_local_scalar_dense"]
    assert watch.waits == seen


def test_a_number_that_is_assigned_is_not_waited_for() -> None:
    x = torch.arange(4.0)
    with Watch() as watch:
        x[0] = 1.0
        x[1:] = 2
    assert watch.waits == []
    assert "__setitem__" not in vars(Tensor)


def test_the_loss_is_looked_at_every_so_many_steps() -> None:
    trainer = trainer_of("natural")
    trainer.sums.loss += torch.nan
    for number in range(1, FINITE_EVERY - 1):
        step(trainer, number, torch.arange(8))
    with pytest.raises(BenchError, match=f"the loss is not finite in epoch 2, by step {FINITE_EVERY - 1}"):
        step(trainer, FINITE_EVERY - 1, torch.arange(8))


def test_nothing_is_stored_before_the_loss_was_looked_at(tmp_path: Path) -> None:
    """An interruption stores a state; one whose loss is not finite ends the run instead."""
    (job,) = plan(methods=("natural",), epochs=3, train_limit=300, overrides={"natural.recipe.lr": 1e30}).train
    trainer = Trainer(job, parts_of(job), tmp_path, teachers={}, progress=StopAt(3))
    with pytest.raises(BenchError, match="the loss is not finite"):
        trainer.run()
    assert not (tmp_path / "state.pt").exists()


def test_a_finite_run_is_stored_when_it_is_interrupted(tmp_path: Path) -> None:
    (job,) = plan(methods=("natural",), epochs=3, train_limit=300).train
    with pytest.raises(Interrupted):
        Trainer(job, parts_of(job), tmp_path, teachers={}, progress=StopAt(2)).run()
    assert (tmp_path / "state.pt").exists()
