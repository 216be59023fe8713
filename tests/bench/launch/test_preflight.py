"""What cannot work is refused before anything starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.errors import UsageError
from bench.launch.preflight import preflight
from bench.launch.scheduler import Workspace
from methods.base import Context
from methods.pgd_at import PGDAT
from methods.registry import METHODS
from tests.helpers.jobs import bench, isolated_registries, small


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dafa", "--epochs", "1"], "dafa: expected begin_epoch_index from 1 to the run's last epoch 0, got 1"),
        (["wat", "--set", "wat.recipe.holdout=false"], "wat: expected held-out training samples to weigh by, got none"),
        (["frl", "--set", "frl.recipe.holdout=false"], "frl: expected held-out training samples to weigh by, got none"),
        (
            ["fawa:pgd_at", "--set", "fawa:pgd_at.recipe.holdout=false"],
            "fawa: expected held-out training samples to judge by, got none",
        ),
        (["pgd_at", "--micro-batch", "2"], "expected --micro-batch of at least 4 with BatchNorm, got 2"),
        (["fair_weight:flexmatch_at"], "fair_weight: expected a host that reads every label, got one that hides some"),
    ],
    ids=["dafa", "wat", "frl", "fawa", "micro_batch", "hidden_labels"],
)
def test_what_a_method_refuses_is_found_before_anything_starts(
    arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    result = bench("run", "--methods", *arguments, "--select", "last", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert re.search(rf"^bench: {re.escape(arguments[0])}.* seed 0: {re.escape(sentence)}", result.stderr, re.MULTILINE)
    assert not (tmp_path / "out").exists()


class Curious(PGDAT):
    """PGD-AT that wants to see, before it starts, what only the run has."""

    met: list[str] = []

    def setup(self, model: nn.Module, ctx: Context) -> None:
        counts = ctx.class_counts.tolist()
        self.met.append(f"{ctx.epochs} epochs, {ctx.steps} steps, {sum(counts)} samples, {torch.rand(1).shape}")
        ctx.teacher("robust")
        raise AssertionError("there is none yet")


class Validating(PGDAT):
    def setup(self, model: nn.Module, ctx: Context) -> None:
        ctx.validate(lambda *asked: None)  # type: ignore[arg-type,return-value]


class Counting(PGDAT):
    def setup(self, model: nn.Module, ctx: Context) -> None:
        (_,) = ctx.teachers.values()


class Beheading(PGDAT):
    def setup(self, model: nn.Module, ctx: Context) -> None:
        assert isinstance(model.linear, nn.Linear), "another method's model"
        model.linear = nn.Identity()


class Untold(PGDAT):
    def visible_labels(self, y: Tensor) -> Tensor:
        raise ValueError("untold: expected a thousand labels")


def test_what_needs_the_run_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with isolated_registries(monkeypatch):
        METHODS.register("curious")(Curious)
        METHODS.register("validating")(Validating)
        METHODS.register("untold")(Untold)
        workspace = Workspace(tmp_path, Path("data"))
        preflight(small(methods=("curious", "validating"), seeds=(0, 1)), workspace)
        assert Curious.met == ["3 epochs, 3 steps, 300 samples, torch.Size([1])"], "once for all seeds"
        METHODS.register("counting")(Counting)
        METHODS.register("beheading")(Beheading)
        preflight(small(methods=("npair_at", "counting", "beheading")), workspace)
        with pytest.raises(UsageError, match=r"^untold seed 0: untold: expected a thousand labels$"):
            preflight(small(methods=("untold",), seeds=(0, 1)), workspace)
    assert torch.equal(before, torch.get_rng_state())
