"""However an evaluation is cut, its files are the same: shards, merges, and workers that share one evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.config.settings import combined
from bench.core import checksums, files
from bench.core.progress import Progress
from bench.distributed.process_group import ProcessGroup
from bench.errors import UsageError
from bench.evaluation import block_store
from bench.launch.launcher import launch
from bench.launch.scheduler import Schedule, Workspace
from bench.launch.worker import run_job
from bench.plan.jobs import PARTIAL, EvalJob, Plan, title
from tests.helpers.jobs import StopAt, bench, plan, restate, small, train_all, tree

RUN = {"methods": ("pgd_at",), "epochs": 2, "train_limit": 300}
QUICK = {
    "limit": 50, "block": 15, "attacks": ("autoattack", "pgd"),
    "overrides": {"autoattack.steps": 3, "autoattack.queries": 10, "autoattack.targets": 2},
}  # fmt: skip
FLAGS = [
    "run", "--methods", "pgd_at", "--epochs", "2", "--train-limit", "300", "--limit", "50", "--block", "15",
    "--attacks", "autoattack,pgd", "--set", "autoattack.steps=3",
    "--set", "autoattack.queries=10", "--set", "autoattack.targets=2", "--workers", "1",
]  # fmt: skip


def jobs(**changes: Any) -> Plan:
    """The two evaluations of the run, four blocks each; without the training."""
    return Plan((), plan(**{**RUN, **QUICK, **changes}).evaluate)


def shards(count: int) -> list[EvalJob]:
    """Every part of both evaluations."""
    return [job for i in range(1, count + 1) for job in jobs(shard=f"{i}/{count}").evaluate]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with nothing but the run."""
    out = tmp_path_factory.mktemp("trained")
    train_all(small(**RUN), out)
    return out


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with both evaluations, each in one piece."""
    out = tmp_path_factory.mktemp("whole") / "results"
    shutil.copytree(trained, out)
    evaluate(jobs().evaluate, out)
    return out


@pytest.fixture
def out(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run to work in."""
    return Path(shutil.copytree(trained, tmp_path / "results"))


def evaluate(work: Sequence[EvalJob], out: Path, workers: int = 1) -> list[str]:
    """Run evaluations, or parts of them; the titles of what was done."""
    done = [job.run_key for job in work]
    report = launch(Plan((), tuple(work)), workspace(out), workers=workers, group=ProcessGroup(), done=done)
    assert report.failures == {}
    return report.finished


def workspace(out: Path) -> Workspace:
    return Workspace(out, Path("data"))


# Parts of one evaluation


def test_the_key_of_an_evaluation_is_what_it_was_and_knows_nothing_of_shards() -> None:
    """The literal was computed before there were parts and rules."""
    job = EvalJob(
        run=Path("digits/small_cnn/natural/0123456789abcdef"), run_key="0123456789abcdef", checkpoint="last",
        attack="pgd", settings={"steps": 20, "step_size": None, "start": "uniform", "restarts": 1}, dataset="digits",
        model="small_cnn", norm="linf", eps=0.15, seed=0, limit=None, block=200, device="cpu", threads=1,
        deterministic=False, revision=1,
    )  # fmt: skip
    assert job.key == "d2a594f8c7786877"
    assert replace(job, part=(2, 4)).key == job.key
    assert replace(job, stop_when="worst<20%").key != job.key
    assert len({job.id, replace(job, part=(2, 4)).id, replace(job, part=(2, 3)).id}) == 3


@pytest.mark.parametrize("count", [2, 3, 6])
def test_parts_in_any_order_leave_the_files_of_one_piece(out: Path, whole: Path, count: int) -> None:
    """With six parts two have no block at all."""
    done = evaluate(shards(count)[::-1], out)
    assert sorted(done) == sorted(map(title, shards(count)))
    assert not list(out.rglob("eval.json")), "a part finishes nothing"
    before = {file: file.read_bytes() for file in out.rglob(f"{PARTIAL}/*.json")}
    assert len(before) == 4 * (5 + 2) + 2
    evaluate(jobs().evaluate, out)
    assert tree(out) == tree(whole)


def test_an_interrupted_part_goes_on_where_it_was(out: Path, whole: Path) -> None:
    (job, _) = jobs(shard="1/2").evaluate
    stops = 0
    while run_job(job, workspace(out), StopAt(2))[0] == "interrupted":
        stops += 1
    assert stops >= 3
    evaluate(shards(2), out)
    evaluate(jobs().evaluate, out)
    assert tree(out) == tree(whole)


def test_with_all_pairs_stored_nothing_is_attacked_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.evaluation import stages

    evaluate(shards(2), out)

    def attack(*arguments: object) -> None:
        raise AssertionError("an attack ran")

    monkeypatch.setattr(stages, "_attack_block", attack)
    monkeypatch.setattr(stages, "predict", attack)
    assert len(evaluate(jobs().evaluate, out)) == 2


def test_a_kill_before_the_end_loses_no_pair(out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job, _) = jobs().evaluate
    with monkeypatch.context() as planted:
        planted.setattr(files, "mark_done", killed)
        with pytest.raises(Killed):
            run_job(job, workspace(out), Progress())
    folder = out / job.folder
    assert not files.is_done(folder)
    assert block_store.read_manifest(folder / PARTIAL).missing(folder / PARTIAL) == []
    evaluate(jobs().evaluate, out)
    assert tree(out) == tree(whole)


def test_what_a_kill_after_the_end_leaves_is_cleared_by_the_next_command(
    out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job, other) = jobs().evaluate
    with monkeypatch.context() as planted:
        planted.setattr(block_store, "clear", killed)
        with pytest.raises(Killed):
            run_job(job, workspace(out), Progress())
    assert files.is_done(out / job.folder) and (out / job.folder / PARTIAL).is_dir()
    assert evaluate(jobs().evaluate, out) == [title(other)]
    assert tree(out) == tree(whole)


class Killed(BaseException):
    """What no handler of the suite holds up."""


def killed(folder: Path) -> None:
    raise Killed


def test_pairs_of_other_weights_are_not_taken_up(out: Path) -> None:
    evaluate(shards(2)[:1], out)
    (note,) = out.rglob(block_store.MANIFEST)
    facts = checksums.read_sealed(note)
    files.write_json(note, checksums.sealed(note, facts | {"weights": "0" * 64}))
    report = launch(jobs(), workspace(out), workers=1, done=[jobs().evaluate[0].run_key])
    (sentence,) = report.failures.values()
    assert (
        "the stored blocks are those of other weights than last.safetensors holds now; delete that folder" in sentence
    )


def test_parts_go_side_by_side_and_the_whole_waits_for_them(out: Path) -> None:
    first, second = (jobs(shard=f"{i}/2").evaluate[0] for i in (1, 2))
    with files.locked(out / first.lock_folder, wait=False):
        assert run_job(first, workspace(out), Progress())[0] == "busy"
        assert run_job(first.whole, workspace(out), Progress())[0] == "busy"
        assert run_job(second, workspace(out), Progress())[0] == "done"
    with files.locked(out / first.folder, wait=False):
        assert run_job(first, workspace(out), Progress())[0] == "busy"
    assert run_job(first.whole, workspace(out), Progress())[0] == "done"
    assert run_job(first, workspace(out), Progress())[0] == "done"
    assert not (out / first.folder / PARTIAL).exists()


def test_blocks_of_another_environment_are_told(out: Path) -> None:
    evaluate(shards(2)[:1], out)
    (note,) = out.rglob(block_store.MANIFEST)
    facts = checksums.read_sealed(note)
    (here,) = facts["environments"]
    files.write_json(note, checksums.sealed(note, facts | {"environments": [here | {"cpu": "Other"}]}))
    evaluate(jobs().evaluate[:1], out)
    (stored,) = out.rglob("eval.json")
    assert files.read_json(stored)["environments"] == [here | {"cpu": "Other"}, here]
    assert f"Environments differ, and numbers with them by rounding: Other and {here['cpu']}" in (
        bench("report", out).output.replace(f"{here['cpu']} and Other", f"Other and {here['cpu']}")
    )


# Workers


def test_two_workers_share_what_one_would_do_alone(out: Path, whole: Path) -> None:
    """One evaluation of four blocks for two processes."""
    (only,) = jobs(attacks=("autoattack",)).evaluate
    assert evaluate([only], out, workers=2) == [title(only)]
    log = (out / only.folder / "log.txt").read_text()
    for part in ("part 1/2: robust accuracy after", "part 2/2: robust accuracy after"):
        assert part in log
    assert tree(out / only.folder) == tree(whole / only.folder)


def waiting(out: Path, workers: int, **changes: Any) -> Schedule:
    found = jobs(**changes)
    return Schedule(found, workspace(out), [job.run_key for job in found.evaluate], workers)


def test_an_evaluation_is_cut_only_where_workers_would_be_idle(tmp_path: Path) -> None:
    enough = waiting(tmp_path, 2)
    assert [title(enough.next()), title(enough.next())] == [  # type: ignore[arg-type]
        "autoattack on pgd_at seed 0, last", "pgd on pgd_at seed 0, last (part 1/2)",
    ]  # fmt: skip
    few = waiting(tmp_path, 9, attacks=("pgd",))
    taken = [few.next() for _ in range(5)]
    assert [job.part for job in taken if isinstance(job, EvalJob)] == [(1, 4), (2, 4), (3, 4), (4, 4)], "four blocks"
    assert taken[4] is None, "the evaluation waits for its parts"
    for job in taken[:4]:
        assert job is not None
        few.end(job, "done", None)
    assert few.report.finished == []
    last = few.next()
    assert isinstance(last, EvalJob)
    assert last.part is None
    few.end(last, "done", None)
    assert few.report.finished == ["pgd on pgd_at seed 0, last"]


@pytest.mark.parametrize(
    "changes", [{"block": 50}, {"stop_when": "worst<5%"}, {"shard": "1/2"}, {"device": "cuda"}], ids=str
)
def test_what_cannot_be_cut_stays_whole(tmp_path: Path, changes: dict[str, Any]) -> None:
    device = changes.pop("device", "cpu")
    found = jobs(attacks=("pgd",), **changes)
    work = tuple(replace(job, device=device) for job in found.evaluate)
    schedule = Schedule(Plan((), work), workspace(tmp_path), [work[0].run_key], 4)
    assert schedule.next() == work[0]
    assert schedule.next() is None


def test_a_part_that_fails_fails_its_evaluation_once(tmp_path: Path) -> None:
    schedule = waiting(tmp_path, 2, attacks=("pgd",))
    first, second = schedule.next(), schedule.next()
    assert first is not None and second is not None
    schedule.end(first, "failed", "no memory")
    schedule.end(second, "done", None)
    assert schedule.next() is None
    assert schedule.waiting == []
    assert schedule.report.failures == {"pgd on pgd_at seed 0, last": "no memory"}
    assert schedule.report.finished == []


# The commands


@pytest.fixture(scope="module")
def machines(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two results folders, as two machines would leave them, with one shard each."""
    found = []
    for i in (1, 2):
        folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("machine") / "results"))
        result = bench(*FLAGS, "--shard", f"{i}/2", "--out", folder)
        assert (result.exit_code, result.stdout) == (0, "")
        assert f"shard {i}/2 is stored; when all are, `bench merge {folder}` finishes them" in result.stderr
        found.append(folder)
    return found


@pytest.fixture
def two(machines: list[Path], tmp_path: Path) -> list[Path]:
    """Copies of them."""
    return [Path(shutil.copytree(folder, tmp_path / str(i))) for i, folder in enumerate(machines)]


def results_of(folder: Path) -> dict[str, str]:
    """Every file but the notes about plans, and the lock of a run that was copied instead of trained."""
    hidden = (".plans", files.LOCK)
    return {name: digest for name, digest in tree(folder).items() if not {*Path(name).parts} & {*hidden}}


def test_shards_of_two_machines_merge_into_the_files_of_one(two: list[Path], whole: Path, tmp_path: Path) -> None:
    before = [tree(folder) for folder in two]
    result = bench("merge", *two, "--out", tmp_path / "merged")
    assert result.exit_code == 0, result.stderr
    assert "| pgd_at" in result.stdout
    assert results_of(tmp_path / "merged") == results_of(whole)
    assert [tree(folder) for folder in two] == before
    again = bench("merge", *two, "--out", tmp_path / "merged")
    assert (again.exit_code, again.stdout) == (0, "")
    assert again.stderr == "nothing left to put together; 2 evaluations are finished\n"
    assert bench("verify", tmp_path / "merged").exit_code == 0


def test_shards_in_one_folder_are_finished_there(two: list[Path], whole: Path) -> None:
    assert bench(*FLAGS, "--shard", "2/2", "--out", two[0]).exit_code == 0
    assert "every shard is there: bench merge" in bench("status", two[0]).stdout
    assert bench("merge", two[0]).exit_code == 0
    assert results_of(two[0]) == results_of(whole)


def test_missing_blocks_are_named_with_what_brings_them(two: list[Path]) -> None:
    status = bench("status", two[0]).stdout
    assert "pgd on pgd_at seed 0, last (" in status
    assert "unfinished, 2 of 4 stage blocks stored; missing: --shard 2/2" in status
    result = bench("merge", two[0])
    assert (result.exit_code, result.stdout) == (1, "")
    *lines, last = result.stderr.splitlines()
    assert last == "bench: merge: 2 of the evaluations lack blocks"
    assert sorted(lines) == [
        f"not finished: {attack} on pgd_at seed 0, last: blocks 2, 4 of 4; run the same command with --shard 2/2, "
        "then merge again"
        for attack in ("autoattack", "pgd")
    ]
    for folder in two:
        for file in folder.rglob(f"{PARTIAL}/pgd-*.json"):
            if file.name in ("pgd-0.json", "pgd-1.json"):
                file.unlink()
    result = bench("merge", *two)
    assert result.exit_code == 1
    assert "pgd on pgd_at seed 0, last: blocks 1, 2 of 4; run the same command with --shard 1/2, --shard 2/2" in (
        result.stderr
    )
    assert len(list(two[0].rglob("eval.json"))) == 1, "the other one was complete"


def test_folders_that_contradict_one_another_are_refused_and_nothing_is_written(
    two: list[Path], tmp_path: Path
) -> None:
    (file,) = two[0].rglob("pgd-0.json")
    other = two[1] / file.relative_to(two[0])
    done = checksums.read_sealed(file)
    files.write_json(other, checksums.sealed(other, done | {"prediction": done["prediction"][::-1]}))
    result = bench("merge", *two, "--out", tmp_path / "merged")
    assert result.exit_code == 1
    assert f"merge: expected equal files, got others in {file} and {other}; the machines round differ" in result.stderr
    assert not (tmp_path / "merged").exists()
    other.unlink()
    (weights,) = two[1].rglob("last.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    restate(weights.parent)
    result = bench("merge", *two, "--out", tmp_path / "merged")
    assert result.exit_code == 1
    assert "last.safetensors; train once, and copy that run to the other machines" in result.stderr


def test_a_missing_folder_is_a_sentence() -> None:
    result = bench("merge", "nowhere")
    assert (result.exit_code, result.stderr) == (
        2, "bench: merge: no folder nowhere; name the folders that the shards wrote to\n",
    )  # fmt: skip


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "2/", "a/b", "1/2/3", "-1/2", "1.5/2"])
def test_a_shard_is_a_number_and_a_count(shard: str) -> None:
    with pytest.raises(UsageError, match="expected NUMBER/COUNT such as 2/4"):
        combined({"shard": shard})


def test_a_dry_run_counts_the_blocks_of_its_shard(tmp_path: Path) -> None:
    lines = bench(*FLAGS, "--attacks", "pgd", "--shard", "2/4", "--dry-run", "--out", tmp_path).stdout.splitlines()
    name = "pgd on pgd_at seed 0, last (part 2/4)"
    (line,) = [line for line in lines if line.startswith(name)]
    assert line.removeprefix(name).split()[0] == "300", "15 samples, 20 steps"
