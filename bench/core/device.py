"""Devices: resolving names, GPUs for workers, threads, determinism, memory, and hardware facts for run.json."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.core import environment
from bench.errors import UsageError

# Parameters of glibc's mallopt (malloc.h) and their values; 32 MiB is the largest mmap threshold it takes.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MALLOPT = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}

AMPERE = 8  # major compute capability
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pyautoattack",
    "autoattack",
    "robustbench",
    "robust-fairness-bench",
)


def resolve(name: str) -> str:
    """The device that a name stands for: "auto" is cuda, then mps, then cpu.

    A machine with neither an NVIDIA driver nor a Mac's GPU is recognised without importing torch.

    Raises:
        UsageError: for a device that is not there.
    """
    if name == "cpu" or (name == "auto" and not _may_have_gpu()):
        return "cpu"
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name}: not available here ({reason}); use auto, cuda, mps or cpu") from None
    return name


def workers_and_gpus(
    device: str, *, workers: int | None, gpus: str | None, threads: int
) -> tuple[int, tuple[str, ...]]:
    """How many jobs run in parallel, and the GPUs they are bound to in turn, by their names in CUDA_VISIBLE_DEVICES.

    Args:
        device: what the run's device has resolved to.
        workers: the number that was asked for; None is one per core on a CPU, one per GPU otherwise.
        gpus: how many GPUs were asked for, a number or "all"; None binds no job to one.
        threads: CPU threads of each job.

    Raises:
        UsageError: if the run is not for NVIDIA GPUs, or there are fewer of them, or fewer jobs than GPUs.
    """
    if gpus is None:
        return workers or (max(1, (os.cpu_count() or 1) // threads) if device == "cpu" else 1), ()
    if device != "cuda":
        raise UsageError(f"--gpus {gpus}: expected the device cuda, got {device}; leave --gpus or --device out")
    visible = visible_gpus()
    count = len(visible) if gpus == "all" else int(gpus)
    if not 0 < count <= len(visible):
        raise UsageError(
            f"--gpus {gpus}: there are {len(visible)} here ({', '.join(visible) or 'none'}); ask for fewer, or all"
        )
    if workers is not None and workers < count:
        raise UsageError(f"--workers {workers}: leaves some of {count} GPUs idle; ask for fewer with --gpus")
    return workers or count, visible[:count]


def visible_gpus() -> tuple[str, ...]:
    """All GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in named.split(",")] if named else [str(i) for i in range(count)]
    return tuple(names[:count])


def has_bf16(device: str) -> bool:
    """Whether a device computes in bfloat16 itself; NVIDIA's do so since Ampere, and older ones imitate it slowly."""
    if not device.startswith("cuda"):
        return True
    import torch

    if not torch.cuda.is_available() or torch.version.hip is not None:
        return True
    return bool(torch.cuda.get_device_properties(torch.device(device)).major >= AMPERE)


def configure(device: str, threads: int, deterministic: bool, *, fixed_sizes: bool = False) -> None:
    """Set threads, memory allocation and arithmetic of this process; float32 products are never rounded to TF32.

    Args:
        device: what the run's device has resolved to.
        threads: on the CPU.
        deterministic: whether the run must be bit-reproducible.
        fixed_sizes: whether batches keep their size, so that cuDNN may benchmark its algorithms for each size.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # setting it imports the compiler: seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = fixed_sizes and not deterministic and device.startswith("cuda")


def release_memory() -> None:
    """Return unused GPU memory, which torch keeps otherwise, to the device, where other processes need it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def hardware(device: str, threads: int) -> dict[str, Any]:
    """Device, processor, libraries, threads and operating system of this process, for run.json."""
    import torch

    cpu = environment.cpu_name()
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else cpu
    facts = {"device": device, "name": name, "threads": threads, "system": platform.system(), "cpu": cpu}
    return {**facts, **environment.libraries(device)}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _may_have_gpu() -> bool:
    nodes = ("nvidiactl", "nvmap", "dxg", "kfd")  # NVIDIA's, on Jetson, under WSL 2, AMD's
    return sys.platform in ("darwin", "win32") or any(Path("/dev", node).exists() for node in nodes)


def keep_freed_memory() -> bool:
    """Have this process keep freed memory for its next tensors, from now on.

    glibc maps memory anew for every large tensor and unmaps it when it is freed, so that each pass of a network on a
    CPU pays for fresh pages, a fifth of its time and more. No number depends on it.

    Returns:
        Whether the C library can do that; where it is not glibc nothing happens.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - only glibc has it
        return all(library.mallopt(parameter, value) == 1 for parameter, value in MALLOPT.items())
    return False
