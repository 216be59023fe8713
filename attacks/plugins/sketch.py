"""Sketches of plug-ins, read from source without importing it: documentation, settings and plain class attributes.

Importing torch takes seconds, and a list of methods or a plan of jobs needs none of it. Built-in plug-ins keep
their metadata as plain expressions on the class, so it can be read from the parsed source. The reading follows
base classes within the suite; a test holds it against the imported classes.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from attacks.plugins.ranges import problems

# Modules that may be imported for their values, and class functions that work on plain numbers.
TORCH_FREE = frozenset(
    {"math", "dataclasses", "types", "typing", "collections.abc"}
    | {"methods.recipes", "attacks.passes", "attacks.plugins.ranges"}
)
PLAIN_FUNCTIONS = ("passes", "added_passes", "loss_overhead")


@dataclass(frozen=True)
class Sketch:
    """What is known of a plug-in without importing it.

    Attributes:
        name: the registered name.
        doc: docstring of its module (or of the object, for plug-ins that share a module).
        settings: keyword arguments with their defaults.
        facts: the other keywords of the registration, and the plain class attributes (recipes, teachers, ...).
        source: the file that defines it.
        kinds: annotations of the settings, see `attacks.plugins.ranges`; None for one that cannot be read.
    """

    name: str
    doc: str
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    source: Path | None = None
    kinds: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the documentation."""
        return self.doc.strip().splitlines()[0].rstrip(".") if self.doc.strip() else ""

    def fact(self, key: str, default: Any = None) -> Any:
        """One fact, or the default."""
        return self.facts.get(key, default)

    def kind(self, setting: str) -> Any:
        """The annotation of a setting; without one, the type of its default."""
        found = self.kinds.get(setting)
        default = self.settings[setting]
        if found is not None or default is None:
            return found
        items = default if isinstance(default, tuple) else ()
        return types.GenericAlias(tuple, (type(items[0]), ...)) if items else type(default)

    def call(self, function: str, settings: Mapping[str, Any], *args: Any) -> Any:
        """Evaluate a plain function of the class, such as `passes`, on given settings."""
        plug_in = types.SimpleNamespace(**{**self.facts, **self.settings, **settings})
        for name in PLAIN_FUNCTIONS:
            if name in self.facts:
                setattr(plug_in, name, partial(self.facts[name], plug_in))
        return getattr(plug_in, function)(*args)


def sketch_object(name: str, thing: Any, facts: Mapping[str, Any]) -> Sketch:
    """The sketch of a plug-in that is already imported."""
    module = sys.modules.get(getattr(thing, "__module__", ""), None)
    bases = thing.__mro__ if inspect.isclass(thing) else (thing,)
    settings: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for base in reversed(bases):
        init = base.__dict__.get("__init__") if inspect.isclass(base) else base
        if inspect.isfunction(init) and base.__module__.partition(".")[0] not in ("torch", "typing"):
            scope = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
            for parameter in inspect.signature(init).parameters.values():
                if parameter.default is not parameter.empty:
                    settings[parameter.name] = parameter.default
                    kinds[parameter.name] = _kind(parameter.annotation, scope) or kinds.get(parameter.name)
    attributes = {
        key: value
        for base in reversed(bases)
        if inspect.isclass(base) and base.__module__.partition(".")[0] not in ("torch", "builtins")
        for key, value in vars(base).items()
        if not key.startswith("_") and (key in PLAIN_FUNCTIONS or not callable(value))
    }
    doc = getattr(module, "__doc__", None) or getattr(thing, "__doc__", None) or ""
    file = getattr(module, "__file__", None)
    return Sketch(name, doc, settings, {**attributes, **facts}, Path(file) if file else None, kinds)


@cache
def kinds_of(thing: Any) -> Mapping[str, Any]:
    """The kinds of the settings of an imported plug-in, see `Sketch.kind`."""
    sketch = sketch_object("", thing, {})
    return {name: sketch.kind(name) for name in sketch.settings}


def check_settings(name: str, thing: Any, values: Mapping[str, Any]) -> None:
    """Check settings of an imported plug-in against their ranges.

    Raises:
        ValueError: for the first that is out of range.
    """
    for problem in problems(values, kinds_of(thing)):
        raise ValueError(f"{name}: {problem}")


def check_attack(name: str, attack: Any) -> None:
    """Check the settings of an attack, whoever wrote it, against the ranges that its class declares.

    Raises:
        ValueError: for the first that is out of range.
    """
    kind: Any = type(attack)
    check_settings(name, kind, {key: getattr(attack, key) for key in kinds_of(kind) if hasattr(attack, key)})


def _kind(annotation: Any, scope: Mapping[str, Any]) -> Any:
    """An annotation, evaluated where it is a text; None if it cannot be."""
    if annotation is inspect.Parameter.empty:
        return None
    try:
        return eval(annotation, dict(scope)) if isinstance(annotation, str) else annotation
    except Exception:  # a name that is known to type checkers alone
        return None


def sketch_source(name: str, module: str) -> Sketch:
    """The sketch of a plug-in read from the source of its module.

    Raises:
        LookupError: if the module is missing or does not register the name.
    """
    path, tree = _read(name, module)
    scope = _plain_scope(tree)
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found = _registration(node, name, scope)
            if found is not None:
                return _sketch_node(name, node, tree, path, found)
    raise LookupError(f"{path} was expected to register {name!r} and does not")


def sketch_class(module: str, name: str) -> Sketch:
    """The sketch of a class, registered or not, read from the source of its module.

    Raises:
        LookupError: if the module is missing or has no such class.
    """
    path, tree = _read(name, module)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _sketch_node(name, node, tree, path, {})
    raise LookupError(f"{path} was expected to hold the class {name} and does not")


def _read(name: str, module: str) -> tuple[Path, ast.Module]:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise LookupError(f"{name!r} is declared in {module}, which is not installed")
    path = Path(spec.origin)
    return path, ast.parse(path.read_text(encoding="utf-8"))


def _sketch_node(
    name: str, node: ast.ClassDef | ast.FunctionDef, tree: ast.Module, path: Path, found: Mapping[str, Any]
) -> Sketch:
    own = ast.get_docstring(node) or ""
    doc = ast.get_docstring(tree) or own
    settings, facts, annotations = _node_facts(node, tree)
    return Sketch(name, doc, settings, {**facts, "own_doc": own, **found}, path, _Kinds(annotations))


def _registration(node: ast.ClassDef | ast.FunctionDef, name: str, scope: dict[str, Any]) -> dict[str, Any] | None:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and decorator.args and isinstance(decorator.args[0], ast.Constant):
            if decorator.args[0].value == name:
                return {word.arg: _evaluate(word.value, scope) for word in decorator.keywords if word.arg}
    return None


Annotations = dict[str, tuple[ast.expr, ast.Module]]


class _Kinds(Mapping[str, Any]):
    """Annotations of settings, each evaluated when it is asked for, with the names that its module knows."""

    def __init__(self, annotations: Annotations) -> None:
        self._annotations = annotations
        self._found: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._found:
            annotation, tree = self._annotations[name]
            self._found[name] = _kind(ast.unparse(annotation), {**_plain_scope(tree), **_aliases(annotation, tree)})
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._annotations)

    def __len__(self) -> int:
        return len(self._annotations)


def _aliases(annotation: ast.expr, tree: ast.Module) -> dict[str, Any]:
    """Names of an annotation that are imported from modules of the suite which need torch, such as `Norm`."""
    wanted = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    found: dict[str, Any] = {}
    for node in _statements(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module not in TORCH_FREE:
            names = {alias.name for alias in node.names} & wanted
            home = _suite_tree(node.module) if names else None
            if home is not None:
                scope = _plain_scope(home)
                found |= {name: scope[name] for name in names if name in scope}
    return found


def _node_facts(
    node: ast.ClassDef | ast.FunctionDef, tree: ast.Module
) -> tuple[dict[str, Any], dict[str, Any], Annotations]:
    """Settings, plain attributes and annotations of a plug-in, those of its base classes in the suite included."""
    if isinstance(node, ast.FunctionDef):
        settings = _keyword_defaults(node, _plain_scope(tree))
        return settings, {}, {name: (note, tree) for name, note in _keyword_annotations(node) if name in settings}
    settings = {}
    facts: dict[str, Any] = {}
    annotations: Annotations = {}
    for owner, home in reversed(_line_of(node, tree)):
        own_settings, own_facts = _class_facts(owner, _plain_scope(home))
        settings.update(own_settings)
        facts.update(own_facts)
        annotations |= {name: (note, home) for name, note in _class_annotations(owner) if name in own_settings}
    return settings, facts, annotations


def _class_annotations(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            yield from _keyword_annotations(item)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield item.target.id, item.annotation


def _keyword_annotations(node: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    for argument in (*node.args.args, *node.args.kwonlyargs):
        if argument.annotation is not None:
            yield argument.arg, argument.annotation


def _line_of(node: ast.ClassDef, tree: ast.Module) -> list[tuple[ast.ClassDef, ast.Module]]:
    """A class and its bases in the order in which attributes are looked up: a base that two share comes after both."""
    line = [(node, tree)]
    for base in node.bases:
        found = _find_class(base, tree)
        line += _line_of(*found) if found is not None else []
    last = {(owner.name, owner.lineno): i for i, (owner, _) in enumerate(line)}
    return [line[i] for i in sorted(last.values())]


def _class_facts(node: ast.ClassDef, scope: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and plain attributes that a class itself defines."""
    settings: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    is_dataclass = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            settings.update(_keyword_defaults(item, scope))
        elif isinstance(item, ast.FunctionDef) and item.name in PLAIN_FUNCTIONS:
            facts[item.name] = _compile_function(item, scope)
        elif isinstance(item, (ast.Assign, ast.AnnAssign)) and item.value is not None:
            target = item.targets[0] if isinstance(item, ast.Assign) else item.target
            value = _try(item.value, scope)
            if isinstance(target, ast.Name) and value is not _UNKNOWN and not target.id.startswith("_"):
                is_fact = isinstance(item, ast.Assign) or "ClassVar" in ast.unparse(item.annotation)
                (facts if is_fact or not is_dataclass else settings)[target.id] = value
    return settings, facts


def _find_class(base: ast.expr, tree: ast.Module) -> tuple[ast.ClassDef, ast.Module] | None:
    if not isinstance(base, ast.Name):
        return None
    for node in _statements(tree):
        if isinstance(node, ast.ClassDef) and node.name == base.id:
            return node, tree
        if isinstance(node, ast.ImportFrom) and node.module and any(a.name == base.id for a in node.names):
            home = _suite_tree(node.module)
            return None if home is None else _find_class(base, home)
    return None


_UNKNOWN = object()


def _try(node: ast.expr, scope: dict[str, Any]) -> Any:
    try:
        return _evaluate(node, scope)
    except Exception:  # a value that needs torch is not a plain fact
        return _UNKNOWN


def _evaluate(node: ast.expr, scope: dict[str, Any]) -> Any:
    return eval(compile(ast.Expression(node), "<sketch>", "eval"), dict(scope))


def _compile_function(node: ast.FunctionDef, scope: dict[str, Any]) -> Any:
    node.returns, node.decorator_list, node.args = None, [], _without_annotations(node.args)
    module = ast.Module(body=[node], type_ignores=[])
    local: dict[str, Any] = {}
    exec(compile(module, "<sketch>", "exec"), scope, local)
    return local[node.name]


def _without_annotations(arguments: ast.arguments) -> ast.arguments:
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
        argument.annotation = None
    return arguments


def _keyword_defaults(node: ast.FunctionDef, scope: dict[str, Any]) -> dict[str, Any]:
    arguments = node.args
    pairs = [*zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.defaults:
        pairs += [*zip(arguments.args[-len(arguments.defaults) :], arguments.defaults, strict=True)]
    values = {a.arg: _try(default, scope) for a, default in pairs if default is not None}
    return {key: value for key, value in values.items() if value is not _UNKNOWN}


def _plain_scope(tree: ast.Module) -> dict[str, Any]:
    """Names a module defines or imports without torch: its constants, and what it takes from torch-free modules."""
    scope: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in TORCH_FREE:
            module = importlib.import_module(node.module)
            scope.update({a.asname or a.name: getattr(module, a.name) for a in node.names})
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in TORCH_FREE:
                    scope[alias.asname or alias.name] = importlib.import_module(alias.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = _try(node.value, scope)
            if value is not _UNKNOWN:
                scope[node.targets[0].id] = value
    return scope


def lineage(sketch: Sketch) -> list[tuple[ast.ClassDef, ast.Module]]:
    """The class behind a sketch and its bases within the suite, each with its module, as they stand in the source.

    In the order in which attributes are looked up. Empty where the source has no class registered under the name.
    """
    if sketch.source is None:
        return []
    tree = ast.parse(sketch.source.read_text(encoding="utf-8"))
    scope = _plain_scope(tree)
    nodes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return next((_line_of(node, tree) for node in nodes if _registration(node, sketch.name, scope) is not None), [])


def _statements(tree: ast.Module) -> list[ast.stmt]:
    """What stands in a module, what it says to type checkers alone included: the packages import lazily."""
    return [inner for node in tree.body for inner in ([node] if not isinstance(node, ast.If) else node.body)]


def _suite_tree(module: str) -> ast.Module | None:
    if module.partition(".")[0] not in ("attacks", "methods", "bench"):
        return None
    spec = importlib.util.find_spec(module)
    return None if spec is None or spec.origin is None else ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
