"""Evaluations of a plan: what they write, their keys, and that they can stop anywhere."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from bench.core import files
from bench.core.progress import Progress
from bench.data.splits import Parts, load
from bench.distributed.process_group import ProcessGroup
from bench.errors import BenchError, UsageError
from bench.evaluation.evaluate import evaluate_job
from bench.launch.scheduler import Workspace
from bench.launch.worker import execute
from bench.plan.jobs import EvalJob
from bench.results.outcomes import Outcomes
from tests.helpers.jobs import plan, run_with_interruptions, tree


def jobs(**changes: Any) -> dict[str, EvalJob]:
    """The evaluations of that run, by attack."""
    quick = {"autoattack.steps": 4, "autoattack.queries": 20, "autoattack.targets": 3}
    facts = {"methods": ("pgd_at",), "epochs": 4, "train_limit": 600, "limit": 60, "block": 20, "overrides": quick}
    return {job.attack: job for job in plan(**{**facts, **changes}).evaluate}


def test_an_evaluation_writes_what_happened_to_every_sample(short_run: Path, digits: Parts) -> None:
    job = jobs()["autoattack"]
    folder = evaluate_job(job, load("digits"), short_run)
    facts = files.read_json(folder / "eval.json")
    assert facts["key"] == job.key == folder.name
    assert (facts["n"], facts["test_subset"], facts["block"], facts["epoch"]) == (60, 60, 20, 3)
    assert (facts["norm"], facts["eps"], facts["seed"], facts["checkpoint"]) == ("linf", 0.15, 0, "last")
    assert facts["stages"] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert facts["left_out"] == {}
    assert facts["attack_settings"] == {"steps": 4, "targets": 3, "queries": 20}
    assert (facts["implementation"], facts["revision"], facts["source"]) == ("native", job.revision, "")
    assert facts["weights"] == files.file_hash(short_run / job.run / "last.safetensors")
    assert facts["passes"]["forward"] > facts["passes"]["input_grad"] > 0
    table = pq.ParquetFile(folder / "outcomes.parquet").read().to_pydict()
    assert table["index"] == digits.test.index.tolist()
    assert table["label"] == digits.test.y.tolist()
    assert table["autoattack_robust"] == table["autoattack/square_robust"]
    assert files.is_done(folder)
    assert not (folder / "partial").exists()
    outcomes = Outcomes.read(folder)
    robust = [outcomes.average(f"autoattack/{stage}") for stage in facts["stages"]]
    assert outcomes.average() >= robust[0] >= robust[1] >= robust[2] >= robust[3] == outcomes.average("autoattack")


def test_an_interrupted_evaluation_ends_in_the_same_files(short_run: Path, tmp_path: Path) -> None:
    job, parts = jobs()["autoattack"], load("digits")
    whole = evaluate_job(job, parts, short_run)
    (tmp_path / job.run).parent.mkdir(parents=True)
    (tmp_path / job.run).mkdir()
    for name in ("run.json", "last.safetensors"):
        (tmp_path / job.run / name).symlink_to(short_run / job.run / name)
    stops = run_with_interruptions(lambda progress: evaluate_job(job, parts, tmp_path, progress), n=4)
    assert stops >= 2
    assert tree(tmp_path / job.folder) == tree(whole)


def test_the_block_size_is_part_of_the_key(short_run: Path) -> None:
    parts = load("digits")
    twenty, sixty = (jobs(attacks=("pgd",), block=block)["pgd"] for block in (20, 60))
    assert twenty.key != sixty.key
    folders = [evaluate_job(job, parts, short_run) for job in (twenty, sixty)]
    first, second = (Outcomes.read(folder) for folder in folders)
    assert np.array_equal(first.clean, second.clean)
    assert [files.read_json(folder / "eval.json")["block"] for folder in folders] == [20, 60]


def test_weights_of_another_network_are_refused(short_run: Path) -> None:
    job = replace(jobs()["fgsm"], model="small_cnn_wide")
    with pytest.raises(BenchError, match=r"last\.safetensors: the weights do not fit the model"):
        evaluate_job(job, load("digits"), short_run)


def test_an_evaluation_ends_with_sanity_checks_of_the_model(short_run: Path) -> None:
    entries = {}
    for name in ("pgd", "autoattack", "fgsm"):
        folder = evaluate_job(jobs()[name], load("digits"), short_run)
        entries[name] = files.read_json(folder / "eval.json").get("sanity")
    assert entries["fgsm"] is None
    assert (entries["pgd"]["mark"], entries["pgd"]["samples"]) == ("reliable", 20)
    stages = ("black_box", "black_box_class")
    assert [f["check"] for f in entries["autoattack"]["findings"] if f not in entries["pgd"]["findings"]] == [*stages]


def test_a_faster_search_is_another_evaluation_and_says_so(short_run: Path, digits: Parts, tmp_path: Path) -> None:
    usual, faster = jobs(attacks=("pgd",))["pgd"], jobs(attacks=("pgd",), prepare=("bf16", "channels-last"))["pgd"]
    assert faster.prepare == ("bf16", "channels_last") and faster.key != usual.key
    out = shutil.copytree(short_run, tmp_path / "out")
    run = files.read_json(out / usual.run / "run.json")
    run["data"]["test_hash"] = digits.test_hash
    files.write_json(out / usual.run / "run.json", run)
    files.mark_done(out / usual.run)
    facts = [files.read_json(evaluate_job(job, digits, out) / "eval.json") for job in (usual, faster)]
    assert [entry["implementation"] for entry in facts] == ["native", "native, searched on: bf16 channels_last"]
    outcomes = [Outcomes.read(out / job.folder) for job in (usual, faster)]
    assert abs(outcomes[0].average("pgd") - outcomes[1].average("pgd")) < 0.1


def test_an_unknown_preparation_is_refused() -> None:
    for words in (("fp8",), ("none", "bf16")):
        with pytest.raises(
            UsageError, match=r"^--prepare: expected some of bf16, channels_last, compile, or none alone"
        ):
            jobs(prepare=words)


@pytest.mark.parametrize("what", ["evaluation", "training"])
def test_results_on_other_data_are_not_gone_on_with(what: str, short_run: Path, tmp_path: Path) -> None:
    found = plan(methods=("pgd_at",), epochs=4, train_limit=600, limit=60, block=20, attacks=("fgsm",))
    job = found.evaluate[0] if what == "evaluation" else found.train[0]
    folder = tmp_path / found.train[0].folder
    shutil.copytree(short_run / found.train[0].folder, folder, ignore=shutil.ignore_patterns("eval"))
    described = files.read_json(folder / "run.json")
    described["data"] |= {"hash": "0" * 64, "test_hash": "0" * 64}
    files.write_json(folder / "run.json", described)
    if files.is_done(folder):
        files.mark_done(folder)
    with pytest.raises(BenchError, match=r"expected the data that its results belong to \((test_)?hash 000000000000\)"):
        execute(job, Workspace(tmp_path, Path("data")), Progress(), ProcessGroup())
    assert not (folder / "eval" / job.key).exists()
