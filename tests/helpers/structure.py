"""The structure of the code, read from its imports: rooms, their floors, arrows between modules, circles.

`python -m tests.helpers.structure [ROOT]` prints it for a checkout. A room is a package; its modules may import each
other and rooms on lower floors. The `__init__` of a storey hands names on and is a room of its own, above the others.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
STOREYS = ("attacks", "methods", "bench")

# Room -> floor. Rooms on one floor do not know each other.
FLOORS = {
    "attacks.plugins": 0,
    "attacks": 1,
    "attacks.fast": 2,
    "attacks.autoattack": 3,
    "attacks.sanity": 4,
    "attacks.__init__": 9,
    "methods": 10,
    "methods.compositions": 11,
    "methods.__init__": 19,
    "bench": 20,
    "bench.core": 21,
    "bench.data": 22,
    "bench.results": 22,
    "bench.results.published": 22,
    "bench.distributed": 22,
    "bench.models": 23,
    "bench.models.architectures": 24,
    "bench.config": 25,
    "bench.plan": 26,
    "bench.catalog": 26,
    "bench.report.formats": 26,
    "bench.report.tables": 27,
    "bench.report.views": 28,
    "bench.report.plots": 29,
    "bench.report": 30,
    "bench.training": 31,
    "bench.evaluation": 31,
    "bench.conformance": 32,
    "bench.launch": 32,
    "bench.cli": 33,
    "bench.__init__": 34,
}

Graph = dict[str, set[str]]


def modules(root: Path = HOME) -> dict[str, Path]:
    """Every module of the three storeys by its name."""
    files = [path for storey in STOREYS for path in sorted((root / storey).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def arrows(files: Mapping[str, Path]) -> Graph:
    """Module -> the modules that it imports, wherever in the file and be it for types alone."""
    return {name: set(_imported(path, files)) - {name} for name, path in files.items()}


def _imported(path: Path, known: Mapping[str, Path]) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in whole if {name, node.module} & known.keys())


def room(name: str, files: Mapping[str, Path]) -> str:
    """The package that a module is in; the `__init__` and `__main__` of a storey are one by themselves."""
    package = name if files[name].name == "__init__.py" else name.rpartition(".")[0]
    return f"{package}.__init__" if package in STOREYS and files[name].name.startswith("__") else package


def upward(graph: Mapping[str, Iterable[str]], files: Mapping[str, Path]) -> list[str]:
    """Imports of another room that is not on a lower floor."""
    return [
        f"{a} -> {b}"
        for a in graph
        for b in graph[a]
        if room(a, files) != room(b, files) and FLOORS[room(a, files)] <= FLOORS[room(b, files)]
    ]


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Sets of modules that import each other round about (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == index[name]:
            circle = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            found.extend([sorted(circle)] * (len(circle) > 1))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def floors(graph: Mapping[str, Iterable[str]]) -> int:
    """The longest way down through imports, in modules; a circle is one floor."""
    place = {name: i for i, circle in enumerate(circles(graph)) for name in circle}
    depth: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in depth:
            ring = [other for other in graph if other in place and place.get(name) == place[other]] or [name]
            depth.update(dict.fromkeys(ring, 0))
            below = {other for member in ring for other in graph[member]} - set(ring)
            depth.update(dict.fromkeys(ring, 1 + max((of(other) for other in below), default=0)))
        return depth[name]

    return max(of(name) for name in graph)


def report(root: Path) -> str:
    """Files and lines of every room, then arrows, floors and circles of every storey."""
    files = modules(root)
    graph = arrows(files)
    count, lines = Counter(room(name, files) for name in files), Counter[str]()
    for name, path in files.items():
        lines[room(name, files)] += path.read_text(encoding="utf-8").count("\n")
    text = [f"{name:<30} {count[name]:>3} files {lines[name]:>6} lines" for name in sorted(count)]
    for storey in STOREYS:
        inside = {name: {o for o in graph[name] if o.startswith(storey)} for name in graph if name.startswith(storey)}
        faceless = {n: others - {storey} for n, others in inside.items() if n != storey}
        rings = circles(inside)
        text.append(
            f"{storey}: {len(inside)} modules, {sum(map(len, inside.values()))} arrows, floors {floors(faceless)}, "
            f"circles {len(rings)}" + "".join(f"\n  {' <-> '.join(ring)}" for ring in rings)
        )
    between = {(room(a, files), room(b, files)) for a in graph for b in graph[a]}
    rooms = {name: {b for a, b in between if a == name and b != name} for name in count}
    pairs = sum(map(len, rooms.values()))
    text.append(f"rooms: {len(rooms)}, arrows between them {pairs}, circles {len(circles(rooms))}")
    return "\n".join(text)


if __name__ == "__main__":
    print(report(Path(sys.argv[1]) if len(sys.argv) > 1 else HOME))
