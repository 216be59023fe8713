"""The environment: what is stored of it, what a run says that is resumed in another, and what a table says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.core import device, environment
from bench.core.environment import differing, environment_of, environment_text
from bench.errors import Interrupted
from bench.report import compare, render, verify
from bench.training.trainer import train
from tests.helpers.jobs import StopAt, description, parts_of, tiny, train_all
from tests.helpers.trees import Spec, write_run


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor : 0\nmodel name\t: AMD EPYC  7763\nmodel name\t: other\n", "AMD EPYC 7763"),
        ("Hardware\t: BCM2835\n", "BCM2835"),
        ("processor : 0\n", "fallback"),
        (None, "fallback"),
    ],
)
def test_the_name_of_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, name: str
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(environment.sys, "platform", "linux")
    monkeypatch.setattr(environment.platform, "processor", lambda: "")
    monkeypatch.setattr(environment.platform, "machine", lambda: "fallback")
    assert environment.cpu_name.__wrapped__() == name


def test_the_driver_is_read_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "DRIVER", tmp_path / "version")
    assert environment._driver() == {}
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Module  550.54.15  Tue\nGCC 13.3.0\n")
    assert environment._driver() == {"driver": "550.54.15"}


def test_only_what_both_state_can_differ() -> None:
    older = environment_of(
        {"hardware": {"device": "cpu", "name": "x86_64", "threads": 1}, "versions": {"torch": "2.15"}}
    )
    here = environment_of({"hardware": device.hardware("cpu", 1), "versions": {"torch": "2.15"}})
    assert {"torch", "cpu", "threads", "instructions"} <= set(here)
    assert differing([older, here]) == []
    others = [here | {"torch": "2.14"}, here | {"threads": 2, "cpu": "other"}]
    assert differing([here, *others]) == ["torch", "cpu", "threads"]
    assert environment_text([here | {"torch": "2.14"}, here], ["torch", "threads"]) == "torch 2.14 and 2.15, threads 1"
    gpu = environment_of({"hardware": {"device": "cuda:1", "name": "H200", "driver": "550.1"}})
    assert gpu == {"gpu": "H200", "driver": "550.1"}


def test_a_run_that_is_resumed_elsewhere_says_so(tmp_path: Path) -> None:
    plan = tiny("pgd_at")
    (job,) = plan.train
    folder = tmp_path / job.folder
    with pytest.raises(Interrupted):
        train(job, parts_of(job), tmp_path, Path("data"), StopAt(4))
    assert (folder / "state.pt").is_file()
    facts = description(folder)
    facts["hardware"] |= {"cpu": "Other CPU", "instructions": "AVX2"}
    (folder / "run.json").write_text(json.dumps(facts))
    progress = StopAt(-1)
    train_all(plan, tmp_path, progress)
    (line,) = [line for line in progress.lines if "environment" in line]
    assert re.fullmatch(
        "resumed in another environment, so numbers can differ by rounding: .+; before: Other CPU, instructions AVX2",
        line,
    )
    first, second = description(folder)["environments"]
    assert first["cpu"] == "Other CPU" and second["cpu"] == device.hardware("cpu", 1)["cpu"]
    assert description(folder)["key"] == job.key


def test_a_run_that_is_resumed_in_the_same_says_nothing(tmp_path: Path) -> None:
    plan = tiny("pgd_at")
    (job,) = plan.train
    with pytest.raises(Interrupted):
        train(job, parts_of(job), tmp_path, Path("data"), StopAt(4))
    progress = StopAt(-1)
    train_all(plan, tmp_path, progress)
    assert any("resumed at" in line for line in progress.lines)
    assert not any("environment" in line for line in progress.lines)
    assert "environments" not in description(tmp_path / job.folder)


def write(root: Path, method: str, cpu: str | None, **facts: Any) -> None:
    hardware = {"device": "cpu", "threads": 1} | ({"cpu": cpu} if cpu else {})
    stated = {"hardware": hardware, "versions": {"torch": "2.15.0"}}
    write_run(root, Spec(method=method, facts=stated | facts, eval_facts=stated))


def test_a_table_says_where_its_rows_differ(tmp_path: Path) -> None:
    for method in ("natural", "pgd_at"):
        write(tmp_path, method, "Intel A")
    write(tmp_path, "mart", None)
    assert "nvironments" not in render(tmp_path)
    write(tmp_path, "trades", "AMD B")
    note = "Environments differ, and numbers with them by rounding: Intel A; AMD B for trades"
    assert f"{note}; not stated for mart." in render(tmp_path)
    assert f"{note}." in compare(tmp_path, "pgd_at", "trades")
    assert not [problem for problem in verify(tmp_path) if "nvironment" in problem]


def test_a_row_that_was_resumed_elsewhere_names_both(tmp_path: Path) -> None:
    write(tmp_path, "pgd_at", "Intel A")
    write(tmp_path, "trades", "Intel A", environments=[{"cpu": "AMD B"}, {"cpu": "Intel A"}])
    text = render(tmp_path)
    assert "numbers with them by rounding: Intel A; AMD B and Intel A for trades." in text
