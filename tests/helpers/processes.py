"""Running the command in several processes, as torchrun does, forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PATIENCE = 120.0
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    "bench.cli.app", "bench.launch.torchrun", "bench.distributed.ddp", "bench.training.trainer",
    "bench.evaluation.evaluate", "bench.report.views.reports",
    "torch._dynamo", "sklearn.datasets", "pandas", "pyarrow.parquet",
])  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def run_processes(arguments: Sequence[str], folder: Path, count: int = 2, **environment: str) -> list[tuple[int, str]]:
    """Run the command in several processes; exit code and output of each.

    Args:
        arguments: of `bench`.
        folder: for files with the output.
        count: number of processes.
        environment: further variables for all of them.
    """
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), **environment}
    files = [folder / f"output-{rank}.txt" for rank in range(count)]
    processes = []
    for rank, file in enumerate(files):
        environment_of_rank = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(SERVER.Process(target=_command, args=(list(arguments), environment_of_rank, file)))
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(PATIENCE)
        codes = [-99 if process.exitcode is None else process.exitcode for process in processes]
        return [(code, without_gloo(file.read_text())) for code, file in zip(codes, files, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.join()
            process.close()


def without_gloo(text: str) -> str:
    """Output without what gloo says of its connections, with some versions of torch."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("[Gloo]"))


def _command(arguments: list[str], environment: Mapping[str, str], file: Path) -> None:
    """Run the command in this process."""
    output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    import torch

    from bench.cli.app import main

    torch.set_num_threads(1)
    sys.exit(main(arguments, prog_name="bench"))
