"""What the front page and the pages behind it say: figures recomputed, links followed, examples run."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import click
import pytest
import torch
import yaml

import bench
from bench.cli.app import main
from bench.report import render
from benchmarks import front_page
from methods import METHODS
from methods.registry import COMPOSITIONS

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLACES = ((ROOT, "*.md"), (ROOT / "docs", "**/*.md"), (REFERENCE, "*/*.md"), (ROOT / ".github", "**/*.md"))
PAGES = [path for folder, pattern in PLACES for path in sorted(folder.glob(pattern))]
SHOWN = (
    "README.md",
    "GUIDE.md",
    "CONTRIBUTING.md",
    *(f"results/reference/{name}/README.md" for name in ("digits", "cifar10")),
)


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands(text: str) -> list[str]:
    """Every `bench ...` of a page, in blocks and in sentences; continued lines joined, comments left out."""
    code = "\n".join([*blocks("bash", text), *blocks("console", text)]).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").removeprefix("torchrun --nproc_per_node=4 -m ") for line in code.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines += [" ".join(words.split()) for words in re.findall(r"`(bench [^`]+)`", prose)]
    found = [line.partition(" #")[0].strip() for line in lines if re.match(r"bench [a-z]", line)]
    return [line for line in found if "/" not in line.split()[1]]


def test_the_front_page_is_short_and_its_picture_light() -> None:
    assert len(README.splitlines()) <= 150
    assert (ROOT / "docs" / "classes.png").stat().st_size < 150_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


def test_cats_pay_for_the_average_of_trades() -> None:
    heads, accuracy = front_page.accuracies()
    trades = dict(zip(heads, accuracy[front_page.METHODS.index("trades")], strict=True))
    assert f"TRADES: {trades['average']:.0f} % on average, {trades['cat']:g} % for cats" in README
    worst = [heads[1:][row.argmin()] for row in accuracy[:, 1:]]
    assert worst.count("cat") > len(worst) / 2


def test_the_picture_is_drawn_from_the_outcomes(tmp_path: Path) -> None:
    front_page.draw(tmp_path / "classes.png")
    assert (tmp_path / "classes.png").read_bytes().startswith(b"\x89PNG")


def test_the_short_table_is_recomputed() -> None:
    text = render(REFERENCE / "cifar10", methods=front_page.METHODS, attacks=["autoattack"])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert cells[0][-3:] == ["AutoAttack Average", "AutoAttack Worst", "AutoAttack NSD"]
    rows = {cell[0]: [re.sub("</?ins>", "", figure) for figure in cell[-3:]] for cell in cells[2:]}
    shown = "\n".join(f"| `{name}` | {' | '.join(rows[name])} |" for name in front_page.METHODS)
    assert "| method | average | worst class | NSD |\n|---|--:|--:|--:|\n" + shown + "\n\n" in README


def test_every_method_is_named() -> None:
    named = {name for line in README.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert {*METHODS.builtin, *COMPOSITIONS.builtin} <= named


@pytest.mark.parametrize("page", SHOWN)
def test_every_command_has_the_options_that_it_is_shown_with(page: str) -> None:
    found = commands((ROOT / page).read_text(encoding="utf-8"))
    assert found
    for line in found:
        name, *arguments = shlex.split(line)[1:]
        root = click.Context(main, **main.context_settings)  # a command keeps the help option of its first context
        command = main.get_command(root, name)
        assert command is not None, line
        with contextlib.suppress(click.BadOptionUsage):  # a sentence may name an option without its value
            command.make_parser(click.Context(command, parent=root)).parse_args([a for a in arguments if a != "..."])


def test_the_example_in_python_runs_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line and "import" not in line]) == 4
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x = torch.rand(30, 1, 4, 4)
    exec(example, {"model": model, "x": x, "y": model(x).argmax(1).where(torch.arange(30) > 8, torch.arange(30) % 3)})
    assert capsys.readouterr().out.splitlines()[-1] in ("reliable", "suspicious", "unreliable")


def test_the_citation_is_that_of_the_citation_file() -> None:
    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (entry,) = blocks("bibtex")
    for field in (facts["title"], facts["authors"][0]["name"], f"version = {{{facts['version']}}}"):
        assert field in entry
    assert f"year = {{{facts['date-released'][:4]}}}" in entry
    assert f"version = {facts['version']}\n" in (ROOT / "setup.cfg").read_text(encoding="utf-8")


def test_the_reports_that_the_guide_names_are_there() -> None:
    guide = (ROOT / "GUIDE.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"# also (compare, .*)", guide)
    assert all(callable(getattr(bench.report, name)) for name in line.split(", "))  # type: ignore[attr-defined]
