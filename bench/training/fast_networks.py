"""Faster versions (bf16, channels-last, compiled, BatchNorm-folded) of the networks used in training.

A run switches them on by the names in `bench.config.speedups`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from attacks.contexts import mode
from attacks.fast.foldable import randomised, reason_against
from attacks.fast.folded import Folded
from attacks.fast.prepared import EXACT, ROUGH, Prepared, close, input_gradient, layers_in_order
from bench.core.pass_counter import PassCounter

EXAMPLES = 32  # samples that a version is tried on


class FastNetwork(nn.Module):
    """A model under autocast, compiled, or both: the same weights, and logits in the precision of the images.

    Args:
        model: x (N, C, H, W) -> logits (N, K). Its own call stays what it was: nothing but this one changes precision.
        bf16: run it under autocast to bfloat16.
        compile: compile it.
    """

    def __init__(self, model: nn.Module, *, bf16: bool, compile: bool) -> None:
        super().__init__()
        self.model, self.bf16 = model, bf16
        # By its forward: hooks of the model belong to calls of the model, and a compiler cannot follow them.
        self._run: Callable[[Tensor], Tensor] = torch.compile(model.forward) if compile else model.forward

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self._run(x)
        return logits.to(x.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> FastNetwork:
        """A copy of its own model; it is not compiled, as a compiled function stays with the model it was made of."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            vars(copied)[name] = None if name == "_run" else copy.deepcopy(value, memo)
        copied._run = copied.model.forward
        return copied


class FastNetworks:
    """The faster versions that the trainer hands to a method in place of its networks.

    A version that cannot be made, or computes something else than its network, is left out with a warning.

    Args:
        model: the student, on its device; its layout and the precision of its layers may be changed.
        teachers: role -> frozen teacher, on its device.
        example: (n, C, H, W) images of the shape and precision to come.
        switches: names of `bench.config.speedups`.
        counter: counts the passes of every version.
        warn: receives a sentence about what was left out.

    Attributes:
        student: what `perturb` and `loss` get as the model; the model itself, or a version with the same weights.
        teachers: role -> teacher, prepared.
    """

    def __init__(
        self, model: nn.Module, teachers: Mapping[str, nn.Module], example: Tensor, switches: Collection[str],
        *, counter: PassCounter, warn: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.model, self.switches, self.warn, self.counter = model, set(switches), warn, counter
        self.left_out: list[str] = []
        self.example = example[:EXAMPLES]
        self.bf16 = "bf16" in self.switches
        if "channels_last" in self.switches:
            model.to(memory_format=torch.channels_last)
        self.ends = keep_ends_in_float32(model, self.example) if self.bf16 else set()
        if "compile" in self.switches:
            torch.compiler.reset()  # what other runs of this process have compiled counts against a limit
        self.student = self._network("compile" in self.switches)
        self.folded = self._folded() if "fold" in self.switches else None
        self.teachers = {role: self._teacher(role, teacher) for role, teacher in teachers.items()}
        networks = {self.model, self.student} | ({self.folded} if self.folded else set())
        for network in networks:
            counter.watch(network, "student")
        for teacher in self.teachers.values():
            for network in teacher.networks if isinstance(teacher, Prepared) else (teacher,):
                counter.watch(network, "teacher")

    @property
    def facts(self) -> dict[str, Any]:
        """Switches and precision that results depend on, for run.json."""
        precision = "bfloat16 under autocast" if self.bf16 else "float32"
        return {
            "switches": sorted(self.switches), "left_out": self.left_out, "precision": precision,
            "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
        }  # fmt: skip

    def images(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in the layout of the run."""
        return x.contiguous(memory_format=torch.channels_last) if "channels_last" in self.switches else x

    def for_attack(self, model: nn.Module) -> nn.Module:
        """The network that an attack in eval mode runs on; for the student its folded version, with current weights."""
        if self.folded is None or (model is not self.student and model is not self.model):
            return model
        self.folded.refresh()
        return self.folded

    def _network(self, compile: bool) -> nn.Module:
        if not (self.bf16 or compile):
            return self.model
        made = FastNetwork(self.model, bf16=self.bf16, compile=compile)
        note = self._difference(made)
        if note is None:
            return made
        if compile:
            self._leave_out(f"the model is not compiled: {note}")
        else:
            self._leave_out(f"the model computes in float32: {note}")
            self.bf16 = False
        return self._network(compile=False)

    def recheck(self) -> None:
        """Compare the folded version at the current weights, and leave it out if it differs; no pass is counted."""
        if self.folded is None:
            return
        counts = self.counter.snapshot()
        self.folded.refresh()
        note = self._difference(self.folded)
        self.counter.restore(counts)
        if note is not None:
            self.folded = None
            self._leave_out(f"attacks run on the model as it is from here on: {note}")

    def _folded(self) -> FoldedNetwork | None:
        try:
            note = reason_against(self.model)
            if note is None:
                made = self._fold(self.model, self.ends, compile="compile" in self.switches)
                note = self._difference(made) or self._difference_at_random_weights()
        except Exception as error:  # a foreign model may raise anything; the model as it is remains right
            note = str(error) if isinstance(error, ValueError) else _sentence(error)
        if note is None:
            return made
        self._leave_out(f"attacks run on the model as it is: {note}")
        return None

    def _fold(self, model: nn.Module, ends: Collection[nn.Module], *, compile: bool) -> FoldedNetwork:
        return FoldedNetwork(model, ends, self.example, bf16=self.bf16, compile=compile)

    def _difference_at_random_weights(self) -> str | None:
        """See `_difference`: fresh BatchNorm statistics hide mistakes, as they change next to nothing."""
        copied = randomised(self.model)
        places = {name for name, module in self.model.named_modules() if module in self.ends}
        ends = {module for name, module in copied.named_modules() if name in places}
        return self._difference(self._fold(copied, ends, compile=False), copied)

    def _teacher(self, role: str, teacher: nn.Module) -> nn.Module:
        chosen = {"fold", "channels_last", "bf16", "compile"} & self.switches
        if self.example.device.type == "cpu" and "fold" in chosen:
            chosen.discard("channels_last")  # what is folded is faster without, and may get its gradient written out
        if not chosen:
            return teacher
        switches = {name: name in chosen for name in ("fold", "channels_last", "bf16", "compile")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its note is said below
            prepared = Prepared(teacher, self.example, **switches)
        if prepared.note is not None:
            self._leave_out(f"the teacher ({role}) runs as it is: {prepared.note}")
            return teacher
        return prepared.eval()

    def _leave_out(self, sentence: str) -> None:
        self.left_out.append(sentence)
        self.warn(sentence)

    def _difference(self, made: nn.Module, model: nn.Module | None = None) -> str | None:
        """Why a version cannot stand for a model (the student) in eval mode; None if it can.

        Costs a forward and a backward pass of both on at most `EXAMPLES` samples, and a forward pass of both.
        """
        model, x = self.model if model is None else model, self.example.detach()
        of_logits, of_gradients = ROUGH if self.bf16 else EXACT
        try:
            with mode(model, train=False), mode(made, train=False):
                with torch.no_grad():
                    if not close(made(x), model(x), of_logits):
                        return "it gives other logits"
                if not close(input_gradient(made, x), input_gradient(model, x), of_gradients):
                    return "it has other gradients"
        except Exception as error:  # tracers and compilers raise anything; the model as it is remains right
            return _sentence(error)
        return None


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class FoldedNetwork(nn.Module):
    """A model with its BatchNorm layers folded, under autocast or compiled where the run asks for it.

    Args:
        model: the student.
        ends: its layers that compute in float32 in any case.
        example: (n, C, H, W) images of the size to come.
        bf16, compile: see `FastNetwork`.

    Raises:
        ValueError: see `attacks.fast.folded.Folded`.
    """

    def __init__(
        self, model: nn.Module, ends: Collection[nn.Module], example: Tensor, *, bf16: bool, compile: bool
    ) -> None:
        super().__init__()
        dtype = torch.bfloat16 if bf16 else None
        self.folded = Folded(model, dtype=dtype, keep=ends, example=None if bf16 or compile else example)
        self.network = FastNetwork(self.folded, bf16=bf16, compile=compile)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.network(x)
        return logits

    def refresh(self) -> None:
        """Fold the current weights."""
        self.folded.refresh()


def keep_ends_in_float32(model: nn.Module, example: Tensor) -> set[nn.Module]:
    """Let the first and the last layer that an image meets compute in float32, also under autocast.

    `attacks.fast.prepared.to_bf16` says why. Copies of the model keep this.

    Returns:
        The layers.
    """
    with mode(model, train=False):
        met = layers_in_order(model, example)
    ends = {met[0], met[-1]} if met else set()
    for layer in ends:
        layer.forward = MethodType(_exact, layer)
    return ends


def _exact(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = type(layer).forward(layer, x.to(layer.weight.dtype))  # type: ignore[arg-type]
    return out
