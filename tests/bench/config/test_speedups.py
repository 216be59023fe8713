"""--train-with: names, defaults by device, and keys."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.config.config_file import from_file
from bench.config.speedups import DEVICE_DEFAULTS, NONE, SWITCHES, active_switches, parse
from bench.errors import UsageError
from bench.plan.planner import make_plan
from tests.helpers.jobs import plan, settings


def test_names_are_read_in_any_spelling_and_order() -> None:
    def parsed(*words: str) -> tuple[str, ...]:
        return parse("--train-with", words, SWITCHES)

    assert parsed("Channels-Last", " bf16") == parsed("bf16", "channels_last") == ("bf16", "channels_last")
    assert parsed() == ()
    assert parsed("None") == (NONE,)


@pytest.mark.parametrize("words", [["fast"], ["none", "bf16"]])
def test_unknown_names_are_refused(words: list[str]) -> None:
    with pytest.raises(
        UsageError, match=r"--train-with: expected some of bf16, channels_last, compile, fold, fused, or"
    ):
        parse("--train-with", words, SWITCHES)


@pytest.mark.parametrize(
    ("device", "found"),
    [("cpu", DEVICE_DEFAULTS["cpu"]), ("cuda:1", DEVICE_DEFAULTS["cuda"]), ("mps", ())],
)
def test_each_device_has_its_own_unless_something_is_asked_for(device: str, found: tuple[str, ...]) -> None:
    assert active_switches((), device, deterministic=False) == found
    assert active_switches(("bf16",), device, deterministic=False) == ("bf16",)
    assert active_switches((NONE,), device, deterministic=False) == ()
    assert active_switches((), device, deterministic=True) == ()


def test_what_is_usual_exists_and_leaves_a_cpu_its_precision() -> None:
    assert all(set(usual) <= set(SWITCHES) for usual in DEVICE_DEFAULTS.values())
    assert "bf16" not in DEVICE_DEFAULTS["cpu"]
    assert "bf16" in DEVICE_DEFAULTS["cuda"]


def test_a_deterministic_run_trains_without_any() -> None:
    (job,) = plan(methods=("natural",), deterministic=True).train
    assert job.train_with == ()
    with pytest.raises(UsageError, match="--train-with fused: --deterministic trains without any; leave one of them"):
        plan(methods=("natural",), deterministic=True, train_with=("fused",))
    assert plan(methods=("natural",), deterministic=True, train_with=(NONE,)).train == (job,)


def test_the_switches_are_in_a_runs_key_where_they_are_on() -> None:
    def key(**changes: Any) -> str:
        return plan(methods=("natural",), **changes).train[0].key

    usual = ",".join(DEVICE_DEFAULTS["cpu"])
    assert key() == key(train_with=tuple(usual.split(",")))
    assert len({key(), key(train_with=("none",)), key(train_with=("bf16",)), key(train_with=("fold",))}) == 4


def test_a_gpu_has_its_switches_in_the_plan() -> None:
    (job,) = make_plan(settings(methods=("natural",)), "cuda").train
    assert job.train_with == DEVICE_DEFAULTS["cuda"]


@pytest.mark.parametrize(("asked", "on"), [((), False), (("bf16",), True)])
def test_a_gpu_without_bfloat16_computes_in_it_only_if_asked(
    asked: tuple[str, ...], on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=8 - device.index))
    newer = make_plan(settings(methods=("natural",)), "cuda:0")
    assert "bf16" in newer.train[0].train_with and not newer.notes
    found = make_plan(settings(methods=("natural",), train_with=asked), "cuda:1")
    assert ("bf16" in found.train[0].train_with, bool(found.notes)) == (on, not on)
    assert set(found.train[0].train_with) == ({"bf16"} if on else set(DEVICE_DEFAULTS["cuda"]) - {"bf16"})


def test_they_can_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('train-with = ["bf16", "channels-last"]\n')
    assert settings(**from_file(file)).train_with == ("bf16", "channels_last")
