"""Progress of an evaluation, and the rules that stop it: bounds that can only fall."""

from __future__ import annotations

import csv
import io
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import Result
from torch import Tensor, nn

from attacks.passes import Passes
from attacks.threat import ThreatModel
from bench.config.settings import combined
from bench.config.stop_rules import Bounds, Rule
from bench.core import files
from bench.core.progress import Progress
from bench.errors import UsageError
from bench.evaluation.live import TimeEstimate, bounds, duration
from bench.evaluation.stages import Verdicts, run_attack
from bench.report import load_results
from tests.helpers.jobs import bench, plan, run_with_interruptions

# Rules


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("worst<20%", Rule("worst", True, Fraction(1, 5))),
        (" Worst <= 0.2 ", Rule("worst", False, Fraction(1, 5))),
        ("avg<33.3%", Rule("average", True, Fraction(333, 1000))),
        ("average<=.5", Rule("average", False, Fraction(1, 2))),
        ("worst<=0", Rule("worst", False, Fraction(0))),
        ("average<100%", Rule("average", True, Fraction(1))),
    ],
)
def test_a_rule_is_a_figure_a_sign_and_a_share(text: str, rule: Rule) -> None:
    assert Rule.parse(text) == rule
    assert Rule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("worst>20%", "expected average or worst, < or <=, and a share, such as worst<20% or avg<=0.35"),
        ("nsd<0.2", "expected average or worst"),
        ("worst<", "expected average or worst"),
        ("worst<20%%", "expected average or worst"),
        ("worst<-1", "expected average or worst"),
        ("worst<1/5", "expected average or worst"),
        ("worst<20", "expected a share of at most 1 or 100 %, got 20; write 20% for percent"),
        ("worst<101%", "expected a share of at most 1 or 100 %, got 101%"),
        ("worst<0", "no share is below 0; write <="),
    ],
)
def test_what_is_no_rule_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        combined({"stop_when": text})
    assert str(refused.value).startswith(f"--stop-when {text!r}: {sentence}")


def test_a_shard_cannot_stop() -> None:
    with pytest.raises(UsageError, match="a shard sees a part of the samples and cannot decide it; leave one"):
        combined({"stop_when": "worst<20%", "shard": "1/2"})


def test_rules_of_one_meaning_are_one_evaluation() -> None:
    keys = {
        rule: plan(methods=("natural",), attacks=("fgsm",), stop_when=rule).evaluate[0].key
        for rule in (None, "worst<20%", "Worst < 0.2", "worst<=20%", "average<20%")
    }
    assert keys["worst<20%"] == keys["Worst < 0.2"]
    assert len(set(keys.values())) == 4


def test_limits_are_met_exactly() -> None:
    """0.3 is no binary fraction: 3 of 10 are not below it, and 30 % and 0.3 are the same."""
    for text in ("worst<0.3", "worst<30%"):
        assert not Rule.parse(text).holds(Bounds.of([3, 9], [10, 10]))
        assert Rule.parse(text.replace("<", "<=")).holds(Bounds.of([3, 9], [10, 10]))
        assert Rule.parse(text).holds(Bounds.of([299, 900], [1000, 1000]))
    assert Rule.parse("average<=60%").holds(Bounds.of([3, 9], [10, 10]))
    assert not Rule.parse("average<60%").holds(Bounds.of([3, 9], [10, 10]))


# Bounds and times


def test_bounds_count_samples_and_pass_over_empty_classes() -> None:
    label = torch.tensor([0, 0, 0, 2, 2, 3])
    robust = torch.tensor([True, True, False, True, False, True])
    found = bounds(robust, label)
    assert (found.average, found.worst, found.worst_class) == (Fraction(2, 3), Fraction(1, 2), 2)
    assert str(found) == "average <= 66.7 %  worst <= 50.0 % (class 2)"


def test_the_time_that_is_left_follows_what_was_measured() -> None:
    time = TimeEstimate([10, 40])
    assert time.seconds_left(0, 8, 8) is None, "nothing is known yet"
    time.add(0, samples=4, passes=40, seconds=2.0)
    assert time.seconds_left(0, 8, 8) == pytest.approx(8 * 0.5 + 8 * 40 * 0.05)
    time.add(1, samples=2, passes=10, seconds=3.0)
    assert time.seconds_left(1, 4, 4) == pytest.approx(4 * 1.5), "the second stage is slower than its passes say"
    assert [duration(s) for s in (12.4, 130, 9000)] == ["~12 s", "~2 min", "~2.5 h"]


# An evaluation that says what it will do to each sample


class ByBrightness(nn.Module):
    """Class 0 for dark, 1 for middling, 2 for bright images."""

    def forward(self, x: Tensor) -> Tensor:
        level = x.mean((1, 2, 3))
        return torch.stack([1 - 3 * level, 1 - (3 * level - 1.5).abs(), 3 * level - 2], 1)


class Step:
    """Moves samples by 0.4 where the pattern of its samples says so; each sample carries its number."""

    threat = ThreatModel("linf", 0.5)
    stages: tuple[Any, ...] = ()

    def __init__(self, name: str, falling: set[int]) -> None:
        self.name, self.falling, self.seen = name, falling, list[int]()

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        numbers = (x[:, 0, 0, 0] * 1000).round().int() % 10
        moved = x.clone()
        for i, number in enumerate(numbers.tolist()):
            own = int(y[i]) * 4 + number
            self.seen.append(own)
            if own in self.falling:
                moved[i] += 0.4 if y[i] < 2 else -0.4
        return moved.clamp(0, 1)

    def passes(self, num_classes: int) -> Passes:
        return Passes(forward=1)


class Steps(Step):
    """Several of them."""

    def __init__(self, *stages: Step) -> None:
        super().__init__("steps", set())
        self.stages = stages


def samples() -> tuple[Tensor, Tensor]:
    """Twelve samples: four of each of three classes in turn; sample number n of class k is 4 k + n."""
    order = [(k, n) for n in range(4) for k in range(3)]
    x = torch.stack([torch.full((1, 2, 2), (0.1, 0.5, 0.9)[k] + n / 1000) for k, n in order])
    return x, torch.tensor([k for k, _ in order])


class Kept(Progress):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.updates: list[tuple[int, int, str]] = []
        self.lines: list[str] = []

    def update(self, done: int, total: int, text: str) -> None:
        self.updates.append((done, total, text))

    def line(self, text: str) -> None:
        self.lines.append(text)


def attacked(attack: Step, rule: str | None = None, **more: Any) -> tuple[Verdicts, Kept]:
    kept = Kept()
    more.setdefault("progress", kept)
    stop = None if rule is None else Rule.parse(rule)
    return run_attack(ByBrightness(), *samples(), attack, attack.name, block=3, stop=stop, **more), kept


def steps() -> tuple[Steps, Step, Step]:
    first, second = Step("first", {0, 5}), Step("second", {1, 2, 4, 6, 8})
    return Steps(first, second), first, second


def test_the_live_line_says_what_stands_what_is_left_and_bounds_that_only_fall() -> None:
    _, kept = attacked(steps()[0])
    assert [(done, total) for done, total, _ in kept.updates] == [(i, 8) for i in range(1, 9)]
    pattern = (
        r"(\w+)  block (\d)/4  robust so far (\d+\.\d) %  average <= (\d+\.\d) %  worst <= (\d+\.\d) % \(class (\d)\)"
        r"  (\d+) left(  ~\d+ s)?"
    )
    found = [re.fullmatch(pattern, text) for _, _, text in kept.updates]
    assert all(found), kept.updates
    rows = [match.groups()[:7] for match in found if match]
    assert rows[0] == ("first", "1", "66.7", "91.7", "75.0", "0", "9")
    assert rows[3] == ("first", "4", "83.3", "83.3", "75.0", "0", "0")
    assert rows[4] == ("second", "1", "0.0", "66.7", "50.0", "1", "8")
    assert rows[7] == ("second", "4", "41.7", "41.7", "25.0", "0", "0")
    for column in (3, 4):
        figures = [float(row[column]) for row in rows]
        assert figures == sorted(figures, reverse=True)
    assert kept.lines[1] == "upper bounds after FIRST: average <= 83.3 %  worst <= 75.0 % (class 0)"
    assert re.fullmatch(r"robust accuracy after FIRST: 83\.33 % \(total time \d+\.\d s\)", kept.lines[0])


def test_it_stops_at_the_first_block_that_decides_and_says_where() -> None:
    attack, first, second = steps()
    verdicts, kept = attacked(attack, "worst<=50%")
    assert verdicts.stopped == {
        "rule": "worst<=50%", "stage": "second", "block": 1, "blocks": 4,
        "average": pytest.approx(2 / 3), "worst": 0.5, "worst_class": 1, "not_run": [],
    }  # fmt: skip
    assert len(first.seen) == 12
    assert second.seen == [4, 8], "sample 0 had fallen, and the blocks behind were not attacked"
    full, _ = attacked(steps()[0])
    assert bool((full.stages["second"][1] <= verdicts.stages["second"][1]).all()), "what stood then is all that can"
    assert kept.lines[-1].startswith("stopped by worst<=50% in second after block 1 of 4: average <= 66.7 %")
    assert not any("robust accuracy after SECOND" in line for line in kept.lines)
    early, _ = attacked(steps()[0], "avg<95%")
    assert early.stopped is not None
    assert (early.stopped["stage"], early.stopped["block"], early.stopped["not_run"]) == ("first", 1, ["second"])
    assert list(early.stages) == ["first"]


def test_an_attack_without_stages_stops_as_well_and_what_it_did_not_attack_stands() -> None:
    attack = Step("alone", {0, 1, 2, 3})
    verdicts, _ = attacked(attack, "worst<=50%")
    assert verdicts.stopped is not None
    assert (verdicts.stopped["block"], verdicts.stopped["worst_class"]) == (2, 0)
    assert len(attack.seen) == 6
    assert verdicts.stages["alone"][1].tolist() == [False, True, True] * 2 + [True] * 6


def test_a_rule_that_decides_nothing_early_changes_nothing() -> None:
    def late() -> Steps:
        return Steps(Step("first", {0}), Step("second", {1, 11}))

    plain, _ = attacked(late())
    for rule in ("worst<10%", "average<=75%"):  # the other holds at the very end, when nothing is left to attack
        ruled, _ = attacked(late(), rule)
        assert ruled.stopped is None
        assert all(torch.equal(ruled.stages[name][1], plain.stages[name][1]) for name in plain.stages)
    gone, _ = attacked(Steps(Step("first", set(range(12))), Step("second", set())), "average<=0")
    assert gone.stopped is None, "a stage is left, but nothing stands: the figures are final"


def test_an_interruption_does_not_move_the_place_where_it_stops(tmp_path: Path) -> None:
    whole, _ = attacked(steps()[0], "worst<=50%")
    ends: list[Verdicts] = []
    stops = run_with_interruptions(
        lambda progress: ends.append(attacked(steps()[0], "worst<=50%", folder=tmp_path, progress=progress)[0])
    )
    assert stops == 4
    assert ends[0].stopped == whole.stopped
    assert torch.equal(ends[0].stages["second"][1], whole.stages["second"][1])


# The commands

FLAGS = (
    "run", "--methods", "natural,pgd_at", "--epochs", "2", "--train-limit", "300", "--limit", "40", "--block", "10",
    "--attacks", "pgd,autoattack", "--set", "autoattack.steps=3", "--set", "autoattack.queries=5",
    "--set", "autoattack.targets=2", "--stop-when", "average<45%",
)  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Two weak models whose evaluations stop early."""
    out = tmp_path_factory.mktemp("stopped") / "results"
    return out, bench(*FLAGS, "--workers", "1", "--out", out)


def facts_of(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = [files.read_json(path) | {"method": path.parts[-5]} for path in out.rglob("eval.json")]
    return {(facts["method"], facts["attack"]): facts for facts in found}


def test_a_stopped_evaluation_says_so_and_is_sound(stopped: tuple[Path, Result]) -> None:
    out, result = stopped
    assert result.exit_code == 0, result.stderr
    found = facts_of(out)
    assert all(facts["stop_when"] == "average<45%" for facts in found.values())
    ensemble = found["natural", "autoattack"]
    assert ensemble["stopped"]["stage"] == ensemble["stages"][-1]
    assert ensemble["stopped"]["average"] < 0.45
    assert [*ensemble["stages"], *ensemble["stopped"]["not_run"]] == [
        "apgd-ce", "apgd-t", "fab-t", "square",
    ]  # fmt: skip
    assert bench("verify", out).exit_code == 0


def test_a_table_never_shows_a_bound_as_a_result(stopped: tuple[Path, Result]) -> None:
    out, result = stopped
    lines = result.stdout.splitlines()
    (natural,) = [line for line in lines if line.startswith("| natural")]
    cells = [cell.strip() for cell in natural.split("|")[1:-1]]
    average, worst, nsd = cells[-3:]
    assert re.fullmatch(r"≤ \d+\.\d\d", average) and re.fullmatch(r"≤ \d+\.\d\d", worst)
    assert nsd == "–"
    (note,) = [line for line in lines if line.startswith("- ≤: an upper bound and no result.")]
    assert "AutoAttack of natural (last) by average<45%, in apgd-ce after block " in note
    assert r"$\leq$ " in bench("report", out, "--format", "latex").stdout
    rows = list(csv.DictReader(io.StringIO(bench("report", out, "--format", "csv").stdout)))
    bounded = [row for row in rows if row["row"] == "natural" and row["attack"] == "autoattack"]
    assert all(row["mean"] == "" and row["stopped"].startswith("average<45%, in ") for row in bounded)
    assert [row["at_most"] != "" for row in bounded] == [True, True, False]
    assert json.loads(bench("report", out, "--format", "json").stdout)
    assert bench("report", out, "--by-class").exit_code == 0
    assert bench("report", out, "--intervals").exit_code == 0
    assert bench("report", out, "--compare", "natural", "pgd_at").exit_code == 0


def test_the_frame_leaves_bounds_empty(stopped: tuple[Path, Result]) -> None:
    frame = load_results(stopped[0], stages=True)
    cut = frame[(frame.method == "natural") & frame.attack.str.startswith("autoattack")]
    assert pd.isna(cut[["average", "worst", "nsd"]]).all().all()
    assert set(cut.stopped.str[:11]) == {"average<45%"}
    clean = frame[frame.attack == "clean"]
    assert clean.average.notna().all() and clean.stopped.isna().all()


def test_a_finished_evaluation_outranks_a_stopped_one_of_the_same_kind(
    stopped: tuple[Path, Result], tmp_path: Path
) -> None:
    import shutil

    out = Path(shutil.copytree(stopped[0], tmp_path / "results"))
    result = bench(*FLAGS[:-2], "--workers", "1", "--out", out)
    assert result.exit_code == 0
    assert "≤" not in result.stdout
