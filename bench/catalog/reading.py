"""What the source of a method says about its inner problem, its options and what it steers by. Imports none of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attacks.plugins.registry import Registry
from attacks.plugins.sketch import Sketch, find_function, lineage

Line = list[tuple[ast.ClassDef, ast.Module]]
OBJECTIVES = {"cross_entropy": "CE", "margin": "margin", "dlr": "DLR"}


@dataclass(frozen=True)
class Inner:
    """How a method calls the shared ascent; empty fields where the source does not say.

    Attributes:
        objectives: what is maximised, "CE", "KL from p(x)", ...
        starts: "uniform", "gaussian", ... more than one where it depends on a setting; "own" where it is worked out.
        bn: modes of the model in the attack, "eval" or "train".
        own: which of "eps" and "step_size" the method works out itself, such as a radius for each class.
        host: the method whose inner problem it is by default, where that is another's.
    """

    objectives: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()
    bn: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    host: str | None = None


def inner(registry: Registry[Any], name: str) -> Inner:
    """The inner problem of a registered method, from `perturb` and the functions of the suite that it calls.

    That of a composition is its method's.
    """
    sketch = registry.sketch(name.rpartition(":")[2])
    bodies = list(_reached(lineage(sketch), "perturb"))
    nodes = [node for body in bodies for node in ast.walk(body)]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    ascents = [call for call in calls if _attribute(call) == "ascend"]
    host = sketch.settings.get("host")
    if not ascents and isinstance(host, str) and host in registry and registry.resolve(host) != sketch.name:
        return replace(inner(registry, host), host=registry.resolve(host))
    words = [{word.arg: word.value for word in call.keywords if word.arg} for call in ascents]
    given = [kind for kind in ("eps", "step_size") if any(kind in named for named in words)]
    return Inner(
        objectives=(tuple(dict.fromkeys(_objectives(calls))) or ("own objective",)) if ascents else (),
        starts=_values([named["start"] for named in words if "start" in named], nodes, sketch.settings),
        bn=_values([named.get("bn", ast.Constant("eval")) for named in words], nodes, sketch.settings),
        own=tuple(given),
    )


def steers(parts: Sequence[Sketch]) -> bool:
    """Whether one of the parts of a method looks at held-out training samples as it trains."""
    return any(
        isinstance(node, ast.Call) and _attribute(node) == "validate" and _owner(node) == "ctx"
        for part in parts
        for owner, _ in lineage(part)
        for node in ast.walk(owner)
    )


def arguments(parts: Sequence[Sketch]) -> dict[str, str]:
    """What the docstrings of the classes of a method and of their bases say of each argument."""
    found: dict[str, str] = {}
    for part in parts:
        for owner, _ in reversed(lineage(part)):
            found.update(_arguments(ast.get_docstring(owner) or ""))
    return found


def parts(registry: Registry[Any], name: str) -> list[Sketch]:
    """The sketches of what a name is made of, the outermost first; of a plain name its own."""
    split = getattr(registry, "parts", None)
    return [registry.sketch(name)] if split is None else [table.sketch(part) for table, part in split(name)]


def around(doc: str) -> dict[str, str]:
    """The head comments of a composition by the name of what each is about, the outermost, "", first."""
    pieces = re.split(r"^Around (\S+):$", doc, flags=re.MULTILINE)
    return dict(zip(["", *pieces[1::2]], pieces[::2], strict=True))


def sections(doc: str) -> tuple[str, dict[str, str]]:
    """A head comment: what stands before its first section, and the sections ("Inner problem", ...) by their titles."""
    title, _, rest = doc.strip().partition("\n\n")
    before, *texts = re.split(r"^([A-Z][A-Za-z ]{2,20}):[ \n]", rest, flags=re.MULTILINE)
    named = {name: _flowing(text) for name, text in zip(texts[::2], texts[1::2], strict=True)}
    return f"{title}\n\n{before}".strip(), named


def _flowing(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _arguments(doc: str) -> dict[str, str]:
    _, _, rest = doc.partition("Args:\n")
    block = re.split(r"^\S", rest, maxsplit=1, flags=re.MULTILINE)[0]
    found: dict[str, str] = {}
    for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", block, flags=re.MULTILINE):
        found.update(dict.fromkeys(re.split(r", *", names), _flowing(text)))
    return found


def _reached(line: Line, method: str) -> Iterator[ast.FunctionDef]:
    """A function of a class and whatever it calls of the class, its bases and the suite's functions."""
    seen: set[int] = set()
    due: list[tuple[str, int]] = [(method, 0)]
    while due:
        name, first = due.pop()
        found = _member(line, name, first)
        if found is None or id(found[0]) in seen:
            continue
        body, place = found
        seen.add(id(body))
        yield body
        for call in (node for node in ast.walk(body) if isinstance(node, ast.Call)):
            word, owner = _attribute(call), _owner(call)
            if word is not None and owner in ("self", "super()") and word != "ascend":
                due.append((word, place + 1 if owner == "super()" else 0))
            elif isinstance(call.func, ast.Name):
                function = find_function(call.func.id, line[place][1])
                if function is not None and id(function[0]) not in seen:
                    seen.add(id(function[0]))
                    yield function[0]


def _member(line: Line, name: str, first: int) -> tuple[ast.FunctionDef, int] | None:
    for place, (owner, _) in enumerate(line[first:], first):
        for item in owner.body:
            if isinstance(item, ast.FunctionDef) and item.name == name and owner.name != "Method":
                return item, place
    return None


def _objectives(calls: list[ast.Call]) -> Iterator[str]:
    soft = "the teacher's" if any(_attribute(call) == "teacher" for call in calls) else "its own clean"
    for call in calls:
        word = _attribute(call)
        if _owner(call) == "objectives" and word is not None:
            yield f"KL from {soft} prediction" if word == "kl" else OBJECTIVES.get(word, word)


def _values(given: list[ast.expr], nodes: list[ast.AST], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Constants and defaults of settings among expressions, both sides of a choice; "own" for what is worked out."""
    found: list[str] = []
    for node in given:
        if isinstance(node, ast.IfExp):
            found += _values([node.body, node.orelse], nodes, settings)
        elif isinstance(node, ast.Constant):
            found.append(str(node.value))
        elif isinstance(node, ast.Attribute) and node.attr in settings:
            found.append(str(settings[node.attr]))
        else:
            local = _assigned(node.id, nodes) if isinstance(node, ast.Name) else None
            found += ["own"] if local is None else _values([local], [], settings)
    return tuple(dict.fromkeys(found))


def _assigned(name: str, nodes: list[ast.AST]) -> ast.expr | None:
    """What a local name stands for."""
    for node in nodes:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and any(ast.unparse(t) == name for t in targets if t):
            return node.value
    return None


def _attribute(call: ast.Call) -> str | None:
    return call.func.attr if isinstance(call.func, ast.Attribute) else None


def _owner(call: ast.Call) -> str | None:
    return ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else None
