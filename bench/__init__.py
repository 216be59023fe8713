"""Data, models, runs, results and the command line of the robustness-fairness benchmark.

`bench.evaluate` attacks a model, `bench.examine` asks whether its robustness can be believed, `bench.load_results`
reads what runs have stored, `bench.metrics` holds the figures. Importing this package imports neither torch nor pandas.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench import metrics
    from bench.evaluation.evaluate import evaluate
    from bench.evaluation.sanity import examine
    from bench.report import load_results
    from bench.results.outcomes import Outcomes

__all__ = ["Outcomes", "evaluate", "examine", "load_results", "metrics"]


def _check_neighbours() -> None:
    """Check that nothing shadows the packages `attacks` and `methods`, whose names are short."""
    home = Path(__file__).resolve().parent.parent
    for name in ("attacks", "methods"):
        spec = importlib.util.find_spec(name)
        origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
        if origin is None or origin.parent.parent != home:
            found = origin or "nothing"
            raise ImportError(
                f"bench: expected the package {name!r} beside {home / 'bench'}, got {found}; "
                "rename that file or folder, or run from another directory"
            )


_check_neighbours()

from attacks.plugins.lazy import lazy_names  # noqa: E402 - from what may have been shadowed

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "bench.evaluation.evaluate": ("evaluate",),
        "bench.evaluation.sanity": ("examine",),
        "bench.report": ("load_results",),
        "bench.results.outcomes": ("Outcomes",),
    },
    submodules=("metrics",),
)
