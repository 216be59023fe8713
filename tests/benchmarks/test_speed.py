"""The speed benchmark: what it counts and tabulates. No test here looks at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import resnet, speed, switches, timing
from benchmarks.attacked import Effort
from benchmarks.tables import guarded


def toy(weights: Path, out: Path) -> list[str]:
    return [
        "--checkpoint", str(weights), "--model", "small_cnn", "--dataset", "digits", "--checkpoint-eps", "0.02",
        "--samples", "30", "--block", "20", "--steps", "2", "--targets", "2", "--queries", "3", "--rounds", "1",
        "--out", str(out), "--switches", "fold", "--parts", "ensemble,stages,switches",
    ]  # fmt: skip


def test_a_whole_page(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONG_ENOUGH", 0.0)
    speed.main(toy(weights, tmp_path))
    page = (tmp_path / "speed.md").read_text()
    rows = {cells[1].strip(): cells for line in page.splitlines() if len(cells := line.split("|")) > 3}
    assert {"autoattack", "apgd-ce", "apgd-t", "fab-t", "square", "model", "prepared"} <= rows.keys()
    assert {switches.GIVEN, switches.OFF, "fold", switches.TOGETHER} <= rows.keys()
    assert rows["apgd-ce"][6].strip() == "4.0 + 2.0"  # two steps, the last point, and the original
    assert rows["square"][6].strip() == "5.0 + 0.0"


def test_the_stages_run_on_what_both_sides_leave_standing() -> None:
    rows = [torch.tensor([1, 3, 5, 7]), torch.tensor([0, 3, 7, 9])]
    assert speed.intersection(rows).tolist() == [3, 7]
    assert speed.intersection([torch.tensor([2]), torch.tensor([1])]).tolist() == []


def test_what_is_measured_is_all_that_is_switched_on(weights: Path, tmp_path: Path) -> None:
    options = speed.parser().parse_args(toy(weights, tmp_path))
    bench = speed.Bench(speed.subjects(options)[0], options, Effort(2, 2, 3))
    on, _ = switches.prepared(bench.model, bench.x, ["fold"])
    off, _ = switches.prepared(bench.model, bench.x, [])
    assert (on.note, on.unfolded, off.note) == (None, None, None)
    layers = [[type(module).__name__ for module in made.fast.modules()] for made in (on, off)]
    assert "BatchNorm2d" not in layers[0]
    assert "BatchNorm2d" in layers[1]


def test_blocks_are_shared_out_completely(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = speed.parser().parse_args(toy(weights, tmp_path))
    seen: list[int] = []
    switched: list[tuple[str, ...]] = []

    def run(model: nn.Module, x: Tensor, y: Tensor, *_: object, prepare: tuple[str, ...], **__: object) -> None:
        seen.append(len(y))
        switched.append(prepare)

    monkeypatch.setattr(switches, "run", run)
    for processes, expected in ((3, [17, 17, 16]), (1, [50])):
        way = switches.Way("native", processes, torch.get_num_threads(), kept=False, prepare=("bf16",) * processes)
        for part in range(processes):
            switches.share(speed.subjects(options)[0], Effort(), 50, part, way)
        assert (seen, set(switched)) == (expected, {way.prepare})
        seen.clear()
        switched.clear()


def test_a_chain_takes_no_other_layout() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert switches.together(switches.SWITCHES, cpu) == ["fold", "chain", "bf16"]
    assert switches.together(switches.SWITCHES, gpu) == ["fold", "channels_last", "compile", "bf16"]
    assert switches.together(["fold", "compile"], cpu) == ["fold", "compile"]


def test_resnet_needs_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        guarded(lambda: resnet.main(["--data-dir", str(tmp_path)]))
    assert refused.value.code == 2
    assert "cifar10" in capsys.readouterr().err
