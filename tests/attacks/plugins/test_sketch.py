"""What is read from the source of a plug-in is what its import gives."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from attacks.passes import Passes
from attacks.plugins.registry import Registry
from attacks.plugins.sketch import PLAIN_FUNCTIONS, sketch_object, sketch_source
from attacks.registry import ATTACKS
from bench.data.registry import DATASETS
from bench.models.registry import MODELS
from methods.base import Method
from methods.registry import COMPOSITIONS, METHODS

REGISTRIES: list[Registry[Any]] = [METHODS, COMPOSITIONS, ATTACKS, DATASETS, MODELS]
PLUG_INS = [(registry, name) for registry in REGISTRIES for name in registry.builtin]
UNREAD = ("own_doc",)


@pytest.mark.parametrize(("registry", "name"), PLUG_INS, ids=lambda value: getattr(value, "kind", value))
def test_a_sketch_equals_the_imported_plug_in(registry: Registry[Any], name: str) -> None:
    thing = registry[name]
    read = sketch_source(name, registry.builtin[name])
    imported = sketch_object(name, thing, registry._facts[name])
    # An attack's default threat model needs torch to be built, and whoever plans sets it anyway.
    assert dict(read.settings) == {key: value for key, value in imported.settings.items() if key != "threat"}
    assert read.doc.strip() == imported.doc.strip() and read.summary
    assert read.source == imported.source
    plain = {key for key in read.facts if key not in (*UNREAD, *PLAIN_FUNCTIONS)}
    assert {key: read.facts[key] for key in plain} == {key: imported.facts[key] for key in plain}
    for key, value in registry._facts[name].items():
        assert read.facts[key] == value, f"the keyword {key} of the registration was not read"


@pytest.mark.parametrize("name", METHODS.builtin)
def test_a_sketched_method_has_the_signature_facts_and_passes_of_the_class(name: str) -> None:
    sketch = sketch_source(name, METHODS.builtin[name])
    method = METHODS[name]()
    assert dict(sketch.settings) == method.settings()
    for fact in ("recipes", "teachers", "warm_start", "epoch_settings", "reported", "drops_rows", "revision"):
        assert sketch.facts[fact] == getattr(method, fact), fact
    changed: dict[str, Any] = {"steps": 4} if "ham" in name else {"steps": 3}
    assert sketch.call("passes", changed) == METHODS[name](**changed).passes()
    assert isinstance(sketch.call("passes", {}), Passes)


@pytest.mark.parametrize("name", ATTACKS.builtin)
def test_a_sketched_attack_has_the_signature_and_passes_of_the_class(name: str) -> None:
    sketch = sketch_source(name, ATTACKS.builtin[name])
    parameters = inspect.signature(ATTACKS[name]).parameters.values()
    assert dict(sketch.settings) == {p.name: p.default for p in parameters if p.name != "threat"}
    attack = ATTACKS[name]()
    assert sketch.facts["revision"] == attack.revision  # type: ignore[attr-defined]
    for classes in (2, 10):
        assert sketch.call("passes", {}, classes) == attack.passes(classes)


def test_every_method_documents_its_problems_and_departures() -> None:
    for name in METHODS.builtin:
        doc = METHODS.sketch(name).doc
        for part in ("Inner problem:", "Outer problem:", "State:", "Defaults:", "Departures:"):
            assert part in doc, f"{name} has no {part!r}"


def test_sketches_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from attacks.registry import ATTACKS\nfrom methods.registry import METHODS\n"
        "from bench.data.registry import DATASETS\nfrom bench.models.registry import MODELS\n"
        "for table in (METHODS, ATTACKS, DATASETS, MODELS):\n"
        "    for name in table.names():\n"
        "        table.sketch(name)\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'torchvision', 'sklearn'} & set(sys.modules)))\n"
    )
    home = Path(__file__).resolve().parents[3]
    result = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_sketch_object_reads_a_class_of_a_plug_in() -> None:
    class Mine(METHODS["trades"]):  # type: ignore[misc, valid-type, name-defined]
        """Mine."""

        reported = ("weights",)

        def __init__(self, *, extra: int = 3, beta: float = 2.0, **inner: Any) -> None:
            super().__init__(beta=beta, **inner)
            self.extra = extra

    sketch = sketch_object("mine", Mine, {"colour": "red"})
    assert dict(sketch.settings) == Mine().settings()
    assert (sketch.fact("colour"), sketch.fact("reported"), sketch.fact("warm_start")) == ("red", ("weights",), None)
    assert issubclass(Mine, Method) and sketch.call("passes", {"steps": 2}) == Mine(steps=2).passes()
