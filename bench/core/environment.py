"""Environments that rounding depends on: processor, torch and its libraries, threads, driver; and where they differ."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

Environment = dict[str, Any]

CPUINFO, DRIVER = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/version")
# Entries of `hardware` in run.json and eval.json, with what is printed before their values.
HARDWARE = {
    "gpu": "", "cpu": "", "instructions": "instructions", "threads": "threads", "blas": "BLAS", "onednn": "oneDNN",
    "cuda": "CUDA", "cudnn": "cuDNN", "driver": "driver",
}  # fmt: skip


@lru_cache(maxsize=1)
def cpu_name() -> str:
    """The model of the processor, or its architecture where the system does not tell."""
    try:
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            name = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
        else:
            found = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", CPUINFO.read_text(errors="replace"), re.M)
            name = found[1] if found else ""
    except (OSError, subprocess.SubprocessError):
        name = ""
    return " ".join(name.split()) or platform.processor() or platform.machine()


def libraries(device: str) -> dict[str, str]:
    """BLAS, oneDNN and instruction set as torch reports them; on an NVIDIA GPU CUDA, cuDNN and the driver as well."""
    import torch

    text = torch.__config__.show()
    patterns = {
        "instructions": r"CPU capability usage: (\S+)", "onednn": r"MKL-DNN v(\S+)",
    }  # fmt: skip
    facts = {name: found[1] for name, pattern in patterns.items() if (found := re.search(pattern, text))}
    mkl, other = re.search(r"Math Kernel Library Version ([\d.]+)", text), re.search(r"BLAS_INFO=(\w+)", text)
    if mkl or other:
        facts["blas"] = f"MKL {mkl[1]}" if mkl else str(other and other[1])
    if device.startswith("cuda"):
        facts |= {"cuda": str(torch.version.cuda or torch.version.hip), "cudnn": str(torch.backends.cudnn.version())}
        facts |= _driver()
    return facts


def _driver() -> dict[str, str]:
    try:
        found = re.search(r"\d+\.\d+(?:\.\d+)?", DRIVER.read_text(errors="replace"))
    except OSError:
        return {}
    return {"driver": found[0]} if found else {}


def environment_of(record: Mapping[str, Any]) -> Environment:
    """The environment that a run.json or eval.json states; older ones state a part of it."""
    hardware, versions = dict(record.get("hardware") or {}), record.get("versions") or {}
    if str(hardware.get("device", "cpu")) != "cpu":
        hardware["gpu"] = hardware.get("name")
    facts = {"torch": versions.get("torch"), **{name: hardware.get(name) for name in HARDWARE}}
    return {name: value for name, value in facts.items() if value is not None}


def differing(environments: Iterable[Environment]) -> list[str]:
    """Names of the entries in which environments differ; what one does not state differs from nothing."""
    values: dict[str, set[str]] = {}
    for environment in environments:
        for name, value in environment.items():
            values.setdefault(name, set()).add(str(value))
    return [name for name in ("torch", *HARDWARE) if len(values.get(name, ())) > 1]


def environment_text(environments: Iterable[Environment], names: Iterable[str]) -> str:
    """Some entries of environments, each with every value: "torch 2.14.0 and 2.15.0, AMD EPYC 7763"."""
    stated, parts = list(environments), []
    for name in names:
        values = dict.fromkeys(str(environment[name]) for environment in stated if name in environment)
        parts.append(" ".join(filter(None, (HARDWARE.get(name, name), " and ".join(values) or "not stated"))))
    return ", ".join(parts)
