"""Loading of plug-ins: Python files or installed modules that register methods, attacks, data sets or models."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from bench.errors import UsageError


def load_plugins(plugins: Iterable[str]) -> None:
    """Import each plug-in once.

    Args:
        plugins: paths of Python files, or names of modules.

    Raises:
        UsageError: if one cannot be found or does not import.
    """
    for plugin in plugins:
        path = Path(plugin)
        try:
            if path.suffix == ".py":
                _load_file(path)
            else:
                importlib.import_module(plugin)
        except UsageError:
            raise
        except Exception as error:  # a user's file may raise anything; the sentence names it
            reason = f"{type(error).__name__}: {error}"
            raise UsageError(f"--plugin {plugin}: does not import: {reason}") from error


def _load_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"--plugin {path}: expected a Python file, found none; give its path or a module name")
    name = f"bench_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"--plugin {path}: cannot be read as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
