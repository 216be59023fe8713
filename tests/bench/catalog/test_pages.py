"""Pages and the table of methods say what the classes do, in Markdown and on a terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.catalog import docstrings, markdown, pages
from bench.catalog.listing import show
from bench.cli.app import main
from methods.registry import COMPOSITIONS, METHODS
from tests.helpers.jobs import isolated_registries

NAMES = METHODS.names()
HOME = Path(__file__).resolve().parents[3]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")]


def rows(text: str, head: str) -> list[list[str]]:
    """The rows of the first table whose head begins with a word."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith(f"| {head}"))
    found = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        found.append(cells(line))
    return [found[0], *found[2:]]


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_formula_state_cost_options_recipes_and_departures(name: str) -> None:
    text, method = pages.page("methods", name), METHODS[name]()
    titles = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    assert titles == [name, "Formula", "State", "Cost", "Options", "Recipes", "Defaults", "Departures"]
    assert "**Inner problem.** " in text and "**Outer problem.** " in text
    options = {row[0].strip("`"): row for row in rows(text, "option")[1:]}
    assert list(options) == [setting for setting in method.settings() if setting not in ("num_classes", "norm")]
    assert all(meaning for *_, meaning in options.values()), "every option is explained in a docstring"
    assert all(takes for _, _, takes, _ in options.values())
    head, now, beyond = rows(text, "passes")
    passes, plain = method.passes().as_dict(), METHODS["pgd_at"]().passes().as_dict()
    kinds = {text: kind for kind, text in pages.PASS_NAMES.items()}
    for title, value, over in zip(head[1:], now[1:], beyond[1:], strict=True):
        assert float(value) == passes[kinds[title]] and float(over) == float(value) - plain[kinds[title]]
    assert rows(text, " | `")[0][1:] == [f"`{recipe}`" for recipe in pages.all_recipes(method.recipes)]
    for table in (lines for lines in text.split("\n\n") if lines.startswith("|")):
        assert len({len(cells(line)) for line in table.splitlines()}) == 1


def test_the_table_has_every_method_with_what_its_class_declares() -> None:
    head, *lines = rows(pages.table(), "method")
    found = {line[0].strip("`"): dict(zip(head, line, strict=True)) for line in lines}
    assert list(found) == NAMES
    for name, line in found.items():
        method = METHODS[name]()
        assert line["teachers"] == ", ".join(method.teachers)
        assert line["starts from"].strip("`") == (method.warm_start or "")
        assert line["state"].replace("`", "") == ", ".join(method.reported)
        assert line[""] and line["recipes"].startswith("paper")
    costs = {name: line["cost"] for name, line in found.items()}
    assert costs["natural"] == "-10F -10Bx" and costs["pgd_at"] == "0" and costs["trades"] == "+2F +1Bw"
    assert costs["rslad"] == "+1F +1Bw +1T" and costs["ham"] == "at most 0" and costs["npair_at"] == "+1F +1Bw"
    around = rows(pages.table(), "name")[1:]
    assert [line[0].strip("`") for line in around] == [f"{name}:METHOD" for name in COMPOSITIONS]


def test_the_page_of_a_composition_tells_both_halves() -> None:
    text = show("AWP:Trades", "markdown")
    assert text.startswith("# awp:trades") and "## Around trades" in text
    assert "## Departures, trades" in text
    assert {"`gamma`", "`beta`"} <= {row[0] for row in rows(text, "option")}
    alone = pages.page("compositions", "awp")
    assert [row[0] for row in rows(alone, "option")[1:]] == [f"`{name}`" for name in COMPOSITIONS.added_settings("awp")]


def test_head_comments_are_cut_at_their_sections_alone() -> None:
    doc = """Title: with a colon.

    A paragraph.
    Inner problem:  maximise  a * b
                    over x.
    State:          none.
    """
    before, named = docstrings.sections("\n".join(line.removeprefix("    ") for line in doc.splitlines()))
    assert before == "Title: with a colon.\n\nA paragraph."
    assert named == {"Inner problem": "maximise a * b over x.", "State": "none."}


def test_text_is_no_markup() -> None:
    assert markdown.prose("2 * a * b <- c[y](x)") == r"2 \* a \* b \<- c[y\](x)"
    assert markdown.sentence("none.") == "None." and markdown.sentence("minimise  5 x") == "Minimise 5 x"
    for symbol in ("beta 6; 76 epochs", "p(x) stays", "w_k is one", "tau moves", "labelled_fraction 0.1"):
        assert markdown.sentence(symbol) == symbol
    assert markdown.cell("a | b") == r"a \| b"


@pytest.mark.parametrize(
    ("name", "kind", "titles"),
    [
        ("fgsm", "attack", ["Cost", "Options", "Maximises", "Defaults"]),
        ("cifar10", "dataset", ["Facts"]),
        ("resnet18", "model", ["Facts"]),
        ("robustbench", "protocol", ["Attacks"]),
    ],
)
def test_everything_else_has_a_page_too(name: str, kind: str, titles: list[str]) -> None:
    text = show(name, "markdown")
    assert [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")] == [f"{name} ({kind})", *titles]


def test_a_name_of_a_method_and_of_a_protocol_has_both_pages() -> None:
    assert show("absld", "markdown") == "\n\n".join([pages.page("methods", "absld"), pages.page("protocols", "absld")])


def test_a_page_is_laid_out_for_a_terminal() -> None:
    text = "a \\* b\n\n| `k` | meaning |\n| --- | --- |\n| `longer` | a \\| b |\n\n- " + "word " * 30
    plain, table, item = markdown.for_terminal(text).split("\n\n")
    assert plain == "a * b"
    assert table == "| `k`      | meaning |\n| -------- | --- |\n| `longer` | a | b |"
    assert [len(line) for line in item.splitlines()] == [106, 46] and item.splitlines()[1].startswith("  word")


def test_only_methods_have_a_table() -> None:
    result = CliRunner().invoke(main, ["list", "attacks", "--format", "markdown"])
    assert result.exit_code == 2 and "there is a table of methods, none of attacks" in result.output


PLUGIN = '''"""Mine, after nobody.

Inner problem:  maximise  CE(S(x'), y).
Outer problem:  minimise  mean CE(S(x'), y).
State:          none.
Defaults:       none.
Departures:     none.
"""

from attacks import objectives
from methods import Adversarial, Method, register


@register("paged")
class Paged(Method):
    """A method of one's own.

    Args:
        push: how hard, from 0
            to 1.
    """

    def __init__(self, *, push=0.5, **inner):
        super().__init__(**inner)
        self.push = push

    def perturb(self, model, batch, ctx):
        where = "zero"
        return Adversarial(self.ascend(model, batch.x, objectives.cross_entropy(batch.y), ctx, start=where))
'''


def test_a_plug_in_has_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "paged_method.py"
    file.write_text(PLUGIN)
    with isolated_registries(monkeypatch):
        result = CliRunner().invoke(main, ["show", "paged", "--format", "markdown", "--plugin", str(file)])
    assert result.exit_code == 0, result.output
    assert "| `push` | `0.5` | a number | how hard, from 0 to 1. |" in result.output
    assert "| `eps` | `0.03137` | a number above 0 | its radius, in the units of x. |" in result.output


def test_pages_and_table_need_no_torch() -> None:
    code = (
        "import sys\nfrom bench.catalog import listing\n"
        "listing.list_kind('methods', 'markdown')\nprint(listing.show('awp:absld', 'markdown')[:11])\n"
        "print(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("# awp:absld\n[]\n", "")
