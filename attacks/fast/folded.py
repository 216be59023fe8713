"""BatchNorm folded into convolutions, for attacks on a network in training; follows its weights as they change.

In eval mode BatchNorm is a factor and a shift per channel, so it can be part of the convolution before it. An attack of
many passes then saves its passes through BatchNorm. Weights move with every step of the optimiser; so the products are
computed anew before each attack (`refresh`), which costs a fraction of a pass. On a CPU a plain line of layers also
gets a gradient that is written out (`attacks.fast.chain`). For a network whose weights stay see
`attacks.fast.prepared`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from attacks.fast.chain import Chain, to_chain
from attacks.fast.foldable import trace
from attacks.fast.prepared import reuse_memory

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Folded(nn.Module):
    """The eval-mode function of a model, with fewer layers; the model itself is left as it was.

    Only the folded convolutions are copies; all other layers are the model's and follow its training at once.

    Args:
        model: x (N, C, H, W) -> logits (N, K).
        dtype: of the folded weights; None keeps that of the model's. A lower one is for use under autocast.
        keep: layers of the model whose folded form keeps its type all the same.
        example: (n, C, H, W) images of the size to come, where a gradient may be written out; None writes none.

    Raises:
        ValueError: if the model cannot be traced, is refused by `attacks.fast.foldable`, or has no BatchNorm to fold.
    """

    def __init__(
        self, model: nn.Module, *, dtype: torch.dtype | None = None, keep: Collection[nn.Module] = (),
        example: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = trace(model)
        self._folds = [
            (conv, norm, _replace_by_copy(self.network, place).to(None if conv in keep else dtype))
            for conv, norm, place in _convolutions_and_norms(self.network)
        ]
        if not self._folds:
            raise ValueError("it has no BatchNorm that follows a convolution")
        self.network.delete_all_unused_submodules()
        reuse_memory(self.network)
        self._chain: tuple[Chain, ...] = ()  # in a tuple, because its weights are those of the network
        self.refresh()
        if example is not None and example.device.type == "cpu":
            chain = to_chain(self.network, example.detach())
            self._chain = () if chain is None else (chain,)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of the model in eval mode, as it was at the last `refresh`."""
        logits: Tensor = (self._chain[0] if self._chain else self.network)(x)
        return logits

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold the present weights and statistics."""
        for conv, norm, folded in self._folds:
            assert norm.running_mean is not None and norm.running_var is not None and folded.bias is not None
            scale, mean = (norm.running_var + norm.eps).rsqrt_(), norm.running_mean
            if norm.affine:
                scale.mul_(norm.weight)
            if conv.bias is not None:
                mean = mean - conv.bias
            torch.mul(conv.weight, scale.view(-1, *[1] * (conv.weight.ndim - 1)), out=folded.weight)
            shift = scale.mul_(mean).neg_()
            folded.bias.copy_(shift.add_(norm.bias) if norm.affine else shift)
        for chain in self._chain:
            chain.refresh()


def _convolutions_and_norms(traced: GraphModule) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, Node]]:
    """Convolutions whose output goes to a BatchNorm with running statistics and nowhere else, each used once."""
    modules = dict(traced.named_modules())
    uses = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    found = []
    for node in traced.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        norm, conv = modules[node.target], modules[str(source.target)]
        plain = type(norm) in NORMS and type(conv) in CONVOLUTIONS and norm.running_mean is not None
        if plain and uses[node.target] == uses[source.target] == 1:
            found.append((conv, norm, node))
    return found


def _replace_by_copy(traced: GraphModule, norm: Node) -> nn.Conv2d:
    """Put a convolution of the network's own in the place of one of the model's and the BatchNorm after it."""
    before = norm.args[0]
    assert isinstance(before, Node)
    place, _, name = str(before.target).rpartition(".")
    holder = traced.get_submodule(place)
    folded: nn.Conv2d = copy.deepcopy(getattr(holder, name)).requires_grad_(False)
    folded.bias = nn.Parameter(folded.weight.new_zeros(folded.out_channels), requires_grad=False)
    setattr(holder, name, folded)
    norm.replace_all_uses_with(before)
    traced.graph.erase_node(norm)
    return folded
