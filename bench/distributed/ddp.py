"""Distributed data-parallel training: torch.distributed behind `ProcessGroup`, gloo on a CPU, NCCL on GPUs.

The optimiser's step is split over the processes as it is into micro-batches: every sample draws, and weighs, what it
would in one process, so that without BatchNorm and dropout results differ by rounding alone. Only the loss goes through
DistributedDataParallel. With BatchNorm, batch statistics are those of each process's share or, with `sync_bn`, of all
samples; running statistics are averaged after every step, so that every process can go on from the same state. Dropout
draws from a random stream of each process.
"""

from __future__ import annotations

import inspect
import os
import secrets
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Client, Listener
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.distributed.control import Follower, Leader, ProcessInfo
from bench.distributed.process_group import ProcessGroup, T
from bench.errors import UsageError


class TorchProcessGroup(ProcessGroup):
    """The processes of a torchrun.

    Args:
        process: this one.
        device: of its model.
        sync_bn: whether BatchNorm's batch statistics are those of all processes.
        leader: in the first process, its connections to the others.
    """

    def __init__(
        self, process: ProcessInfo, device: torch.device, *, sync_bn: bool = False, leader: Leader | None = None
    ):
        self.rank, self.size = process.rank, process.size
        self.device, self.sync_bn, self.leader = device, sync_bn, leader

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes, bit-equal in all of them."""
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def any_rank(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        any_set = torch.tensor(int(flag))
        dist.all_reduce(any_set, op=dist.ReduceOp.MAX)
        return bool(any_set)

    def gather(self, value: T) -> list[T]:
        """The values of all processes in the first one, [] in the others; tensors must be on the CPU."""
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def convert_batchnorm(self, model: nn.Module) -> nn.Module:
        """The model, with SyncBatchNorm layers under `sync_bn`."""
        if not self.sync_bn:
            return model
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted

    def sync_batchnorm_stats(self, tensors: Iterable[Tensor]) -> None:
        """Replace running statistics by their mean over the processes."""
        stats = list(tensors)
        if not stats or self.sync_bn:
            return
        flat = self.reduce(torch.cat([tensor.reshape(-1) for tensor in stats])) / self.size
        with torch.no_grad():
            for tensor, mean in zip(stats, flat.split([tensor.numel() for tensor in stats]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def data_parallel(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """The model under DistributedDataParallel, which broadcasts no buffers; see `sync_batchnorm_stats`."""
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else None
        accepted = inspect.signature(DistributedDataParallel.__init__).parameters
        sync_buffers = (
            "forward_sync_buffers" if "forward_sync_buffers" in accepted else "broadcast_buffers"
        )  # older name
        options: dict[str, Any] = {sync_buffers: False, "find_unused_parameters": unused}
        return DistributedDataParallel(model, device_ids=devices, **options)

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Within this context gradients are accumulated in each process, not all-reduced."""
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def run_on_all(self, job: Any) -> AbstractContextManager[Any]:
        """Within this context every process trains the job."""
        return nullcontext() if self.leader is None else self.leader.run_on_all(job)


def claim_gpu(process: ProcessInfo) -> None:
    """Make "cuda" mean the GPU of this process, before any tensor is created on another.

    Raises:
        UsageError: if there are fewer GPUs than processes on this machine.
    """
    count = torch.cuda.device_count()
    if count == 0:
        return
    if process.local_rank >= count:
        raise UsageError(
            f"torchrun has started more processes on this machine than there are GPUs ({count}); lower "
            "--nproc_per_node, or train on the CPU with --device cpu"
        )
    torch.cuda.set_device(process.local_rank)


def check(device: str, *, sync_bn: bool) -> None:
    """Check that several processes can train on a device.

    Raises:
        UsageError: if they cannot.
    """
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: torchrun's processes need cpu or cuda, each takes its own GPU")
    if sync_bn and device != "cuda":
        raise UsageError("--sync-bn: torch shares BatchNorm's statistics on GPUs alone; leave it out on a CPU")


def join(process: ProcessInfo, device: str, *, sync_bn: bool = False) -> tuple[TorchProcessGroup, Follower | None]:
    """Join the process group; returns it and, in all but the first process, the connection to the first."""
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", rank=process.rank, world_size=process.size
    )
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    if process.rank > 0:
        address: list[Any] = [None]
        dist.broadcast_object_list(address, src=0)
        port, key = address[0]
        follower = Follower(process, _connect(process, host, port, key))
        return TorchProcessGroup(process, torch.device(device), sync_bn=sync_bn), follower
    key = secrets.token_bytes(32)
    interface = "127.0.0.1" if host in ("127.0.0.1", "localhost") else ""
    with Listener((interface, 0), authkey=key, backlog=process.size) as listener:
        dist.broadcast_object_list([(listener.address[1], key)], src=0)
        connections = [listener.accept() for _ in range(process.size - 1)]
    by_rank = {connection.recv(): connection for connection in connections}
    leader = Leader(process, [by_rank[rank] for rank in range(1, process.size)])
    return TorchProcessGroup(process, torch.device(device), sync_bn=sync_bn, leader=leader), None


def _connect(process: ProcessInfo, host: str, port: int, key: bytes) -> Any:
    connection = Client((host, port), authkey=key)
    connection.send(process.rank)
    return connection


def leave(group: TorchProcessGroup) -> None:
    """Dismiss the other processes and destroy the process group."""
    if group.leader is not None:
        group.leader.dismiss()
    dist.destroy_process_group()
