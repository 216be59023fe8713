"""Several processes that train one model: torch.distributed behind `Team`, gloo on a CPU, NCCL on GPUs.

The optimiser's step is cut over the processes as it is into micro-batches: every sample draws, and weighs, what it
would in one process, so that without BatchNorm and dropout the numbers differ by rounding alone. Under
DistributedDataParallel only the loss gets the wrapper. With BatchNorm, the statistics of a step are those of each
process's share or, with `sync_bn`, of all; the running ones are levelled after every step, so that every process can go
on from the same state. Dropout draws from a stream of each process's own.
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

from bench.distributed.control import Follower, Leader, Place
from bench.distributed.team import Team, Thing
from bench.errors import UsageError


class Ranks(Team):
    """The processes of a torchrun.

    Args:
        place: of this process.
        device: where its model is.
        sync_bn: whether they share BatchNorm's statistics.
        leader: in the first process, its connections to the others.
    """

    def __init__(self, place: Place, device: torch.device, *, sync_bn: bool = False, leader: Leader | None = None):
        self.rank, self.size = place.rank, place.size
        self.device, self.sync_bn, self.leader = device, sync_bn, leader

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes, with the same bits in each."""
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def agree(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        word = torch.tensor(int(flag))
        dist.all_reduce(word, op=dist.ReduceOp.MAX)
        return bool(word)

    def gather(self, thing: Thing) -> list[Thing]:
        """What each process holds, for the first one; tensors must lie on the CPU."""
        found: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(thing, found, dst=0)
        return found or []

    def prepared(self, model: nn.Module) -> nn.Module:
        """The model, with BatchNorm over all processes where that was asked for."""
        if not self.sync_bn:
            return model
        common: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return common

    def level(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over the processes in the place of each tensor."""
        held = list(tensors)
        if not held or self.sync_bn:
            return
        flat = self.reduce(torch.cat([tensor.reshape(-1) for tensor in held])) / self.size
        with torch.no_grad():
            for tensor, mean in zip(held, flat.split([tensor.numel() for tensor in held]), strict=True):
                tensor.copy_(mean.view_as(tensor))

    def wrapped(self, model: nn.Module, *, unused: bool) -> nn.Module:
        """The model under DistributedDataParallel; buffers are levelled, not sent around."""
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        quiet = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
        options: dict[str, Any] = {quiet: False, "find_unused_parameters": unused}
        return DistributedDataParallel(model, device_ids=devices, **options)

    def apart(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Within this context a wrapped model's gradients stay in their process."""
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()

    def together(self, job: Any) -> AbstractContextManager[Any]:
        """Within this context every process trains the job."""
        return nullcontext() if self.leader is None else self.leader.together(job)


def claim_gpu(place: Place) -> None:
    """Make the GPU of this process the one that "cuda" means, before anything is put on another.

    Raises:
        UsageError: if there are fewer GPUs than processes on this machine.
    """
    count = torch.cuda.device_count()
    if count == 0:
        return
    if place.local >= count:
        raise UsageError(
            f"torchrun has started more processes on this machine than there are GPUs ({count}); lower "
            "--nproc_per_node, or train on the CPU with --device cpu"
        )
    torch.cuda.set_device(place.local)


def check(device: str, *, sync_bn: bool) -> None:
    """See that several processes can train on a device.

    Raises:
        UsageError: otherwise.
    """
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: torchrun's processes need cpu or cuda, each takes its own GPU")
    if sync_bn and device != "cuda":
        raise UsageError("--sync-bn: torch shares BatchNorm's statistics on GPUs alone; leave it out on a CPU")


def join(place: Place, device: str, *, sync_bn: bool = False) -> tuple[Ranks, Follower | None]:
    """Meet the other processes; returns the team, and in all but the first process the connection to that one."""
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", rank=place.rank, world_size=place.size
    )
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    if place.rank > 0:
        meeting: list[Any] = [None]
        dist.broadcast_object_list(meeting, src=0)
        port, key = meeting[0]
        follower = Follower(place, _introduced(place, host, port, key))
        return Ranks(place, torch.device(device), sync_bn=sync_bn), follower
    key = secrets.token_bytes(32)
    inside = "127.0.0.1" if host in ("127.0.0.1", "localhost") else ""
    with Listener((inside, 0), authkey=key, backlog=place.size) as listener:
        dist.broadcast_object_list([(listener.address[1], key)], src=0)
        guests = [listener.accept() for _ in range(place.size - 1)]
    by_rank = {guest.recv(): guest for guest in guests}
    leader = Leader(place, [by_rank[rank] for rank in range(1, place.size)])
    return Ranks(place, torch.device(device), sync_bn=sync_bn, leader=leader), None


def _introduced(place: Place, host: str, port: int, key: bytes) -> Any:
    connection = Client((host, port), authkey=key)
    connection.send(place.rank)
    return connection


def leave(ranks: Ranks) -> None:
    """Dismiss the others, and close what tensors went through."""
    if ranks.leader is not None:
        ranks.leader.dismiss()
    dist.destroy_process_group()
