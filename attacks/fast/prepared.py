"""A faster copy of a model for attacks to search; verdicts come from the model as it was given.

A search needs logits and gradients with respect to the input of a network whose weights do not move. So the copy is
frozen, BatchNorm is folded into the convolution before it, ReLU works in place, a plain line of layers gets a gradient
that is written out (`attacks.fast.chain`), and on request it is laid out channels-last, computes in bfloat16 between
its first and its last layer, or is compiled. What a copy finds counts only on `verdict`.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from attacks.contexts import mode
from attacks.fast.chain import Chain, to_chain
from attacks.fast.foldable import reason_against, trace

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
SIZES = 64  # more than there are padded sizes, twice
GRADIENTS = 32  # samples on which gradients are compared
# Relative differences that rounding explains, in float32 and in bfloat16: of logits, and of gradients, which jump where
# it puts a ReLU on its other side.
EXACT, ROUGH = (1e-3, 0.1), (0.1, 0.5)


class Prepared(nn.Module):
    """A model, frozen and rewritten for speed.

    Its logits, its predictions and its gradients on an example are compared with the model's once. A difference that
    rounding does not explain means a warning, and from then on the model itself.

    Args:
        model: x (N, C, H, W) -> logits (N, K); left as it was.
        example: (n, C, H, W) samples to compare on, of the shape and precision to come.
        fold: fold BatchNorm into the convolution before it and let ReLU work in place, where the model can be traced.
        channels_last: lay images and weights out channel by channel within each pixel.
        bf16: compute in bfloat16, but for the first and the last layer, normalisations and what lies outside the box.
        compile: compile with torch.compile; batches are padded to a few sizes.
        chain: write the gradient out where the folded network is a line of layers; on a CPU, neither channels-last
            nor compiled.

    Attributes:
        fast: what is searched.
        note: why that is the model itself; None if it is not.
        unfolded: why BatchNorm was not folded; None if it was.
    """

    def __init__(
        self, model: nn.Module, example: Tensor, *, fold: bool = True, channels_last: bool = False,
        bf16: bool = False, compile: bool = False, chain: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self._given = (model,)  # in a tuple, because it is no part of this module
        self._channels_last, self._padded = channels_last, compile
        self.note: str | None = None
        self.unfolded: str | None = None
        try:
            chain = chain and fold and example.device.type == "cpu" and not (channels_last or compile)
            self.fast = self._rewritten(model, example, fold, bf16, compile, chain)
            self.note = self._difference(example, ROUGH if bf16 else EXACT)
        except Exception as error:  # whatever a foreign model does not bear, searching it as it is remains right
            self.note = f"it cannot be prepared ({type(error).__name__}: {error})"
        if self.note is not None:
            self.fast, self._channels_last, self._padded = model, False, False
            warnings.warn(f"the model is searched as it is, which is slower: {self.note}", stacklevel=2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the fast form, in the precision of x."""
        n = len(x)
        if self._channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self._padded:
            x = torch.cat([x, x[-1:].detach().expand(padded_size(n) - n, *x.shape[1:])])
        with _room_for_sizes() if self._padded else nullcontext():
            logits: Tensor = self.fast(x)[:n]
        return logits

    def train(self, mode: bool = True) -> Prepared:
        """Nothing: it stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def verdict(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the model as it was given, in eval mode."""
        with mode(self.given, train=False):
            logits: Tensor = self.given(x)
        return logits

    @property
    def given(self) -> nn.Module:
        """The model as it was given."""
        return self._given[0]

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The modules whose forwards are all the passes there are."""
        return (self.given,) if self.note is not None else (self, self.given)

    def _rewritten(
        self, model: nn.Module, example: Tensor, fold: bool, bf16: bool, compile: bool, chain: bool
    ) -> nn.Module:
        if reason := reason_against(model):
            raise ValueError(reason)
        fast = copy.deepcopy(model).eval().requires_grad_(False)
        if fold:
            try:
                fast = fuse(trace(fast), inplace=True, no_trace=True).requires_grad_(False)
                reuse_memory(fast)
            except Exception as error:  # tracing has its limits; the copy is good without it
                self.unfolded = f"{type(error).__name__}: {error}"
        if chain and isinstance(fast, GraphModule):
            fast = to_chain(fast, example, bf16=bf16) or fast
        if bf16 and not isinstance(fast, Chain):
            to_bf16(fast, example)
        if self._channels_last:
            fast = fast.to(memory_format=torch.channels_last)
        if compile:
            fast.compile(dynamic=False)
        return fast

    def _difference(self, example: Tensor, tolerances: tuple[float, float]) -> str | None:
        """What tells the fast form from the model on an example, beyond rounding; None if nothing does."""
        of_logits, of_gradients = tolerances
        with torch.no_grad():
            ours, theirs = self(example), self.verdict(example)
        if not close(ours, theirs, of_logits):
            return "its prepared form gives other logits"
        lead = theirs.amax(1) - theirs.gather(1, ours.argmax(1, keepdim=True))[:, 0]
        moved = int((lead > of_logits * theirs.norm(dim=1)).sum())  # a tie may fall either way
        if moved:
            return f"its prepared form predicts {moved} of {len(example)} samples differently"
        x = example[:GRADIENTS]
        with mode(self.given, train=False):
            if not close(input_gradient(self, x), input_gradient(self.given, x), of_gradients):
                return "its prepared form has other gradients"
        return None


def _room_for_sizes() -> AbstractContextManager[None]:
    """Let a function be compiled for every padded size, with and without gradients."""
    return torch._dynamo.config.patch(recompile_limit=SIZES)  # type: ignore[no-any-return]


def verdict_of(model: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The verdicts of a prepared model; None for any other, whose logits are its verdicts."""
    return model.verdict if isinstance(model, Prepared) else None


def reuse_memory(traced: nn.Module) -> None:
    """Let each ReLU of a traced network write over its input, where nobody else reads that and no gradient needs it.

    On a CPU the memory of large activations is mapped anew at each pass; half of it is saved.
    """
    assert isinstance(traced, GraphModule)
    modules = dict(traced.named_modules())
    layers = (*LAYERS, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for node in traced.graph.nodes:
        is_module = node.op == "call_module" and type(modules[node.target]) is nn.ReLU
        if not is_module and not (node.op == "call_function" and node.target in (torch.relu, F.relu)):
            continue
        source = node.args[0]
        after_layer = source.op == "call_module" and isinstance(modules[source.target], layers)
        after_sum = source.op == "call_function" and source.target in (operator.add, torch.add)
        if len(source.users) == 1 and (after_layer or after_sum):
            with traced.graph.inserting_after(node):
                node.replace_all_uses_with(traced.graph.call_function(torch.relu_, (source,)))
            traced.graph.erase_node(node)
    traced.recompile()


def padded_size(n: int) -> int:
    """The batch size a compiled model runs n samples at: the next of 8, 12, 16, 24, 32, 48, 64, ..."""
    size = 8
    while size < n:
        if 3 * size // 2 >= n:
            return 3 * size // 2
        size *= 2
    return size


def to_bf16(model: nn.Module, example: Tensor) -> None:
    """Convert the layers of a network to bfloat16 in place, all but the first and the last one that an input meets.

    The first layer sees the perturbation, which bfloat16 would round away (its spacing next to 1 is 1/256), and the
    last one makes the logits whose small differences steer a search.
    """
    order = list(dict.fromkeys(layers_in_order(model, example)))
    for layer in order[1:-1]:
        layer.to(torch.bfloat16).register_forward_pre_hook(lambda _, inputs: tuple(x.bfloat16() for x in inputs))
    if len(order) > 2:
        order[-1].register_forward_pre_hook(lambda module, inputs: tuple(x.to(module.weight.dtype) for x in inputs))


def layers_in_order(model: nn.Module, example: Tensor) -> list[nn.Module]:
    """Convolutions and linear layers in the order in which an input meets them; one that it meets twice is there twice.

    Args:
        model: as it is, in train or eval mode.
        example: (N, C, H, W), of which the first is taken.
    """
    met: list[nn.Module] = []
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    handles = [layer.register_forward_pre_hook(lambda module, _: met.append(module)) for layer in layers]
    try:
        with torch.no_grad():
            model(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return met


def input_gradient(model: nn.Module, x: Tensor) -> Tensor:
    """The gradient of the sum of squared logits with respect to x, zero where there is none."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x)
        if not logits.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(logits.float().square().sum(), x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by little in the mean square."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    return bool((ours - theirs).double().norm() <= tolerance * theirs.double().norm() + 1e-12)
