"""A model whose products with weights are fast ones: `cpu_products`, `gpu_products`.

`accelerate` gives a model these products from outside; the model, its weights, their names and what
it computes stay the same.  `packed` has them laid out for decoding, as long as they do not change.
"""

from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from minisoft.engine.cpu_products import pack, product
from minisoft.engine.gpu_products import float32_product, stacked
from minisoft.model import Transformer


class FastLinear(nn.Linear):
    """nn.Linear by `product`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight, self.bias)


class FastTransformer(Transformer):
    """Transformer with fast products for W_d and E."""

    packed = None  # the `Packed` inside `packed`
    slots = None  # what `minisoft.engine.decode` keeps on a GPU

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._product(hidden, "W_d", self.W_d)

    def mix(self, p: torch.Tensor) -> torch.Tensor:
        return self._product(p, "E^T", self.E.t())

    def _product(self, x: torch.Tensor, name: str, W: torch.Tensor) -> torch.Tensor:
        """x W^T in float32, on a CPU inside `packed` by a copy of W, made when first needed."""
        if W.is_cuda and W.dtype != torch.float32:
            return float32_product(x, W, self.packed is not None)
        if self.packed is not None and not W.is_cuda:
            if name not in self.packed.copies:
                self.packed.copies[name] = pack(W.float())
            W = self.packed.copies[name]
        return product(x.float(), W)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "slots": None}  # CUDA graphs cannot be copied


class Packed:
    """The weights of a model, laid out for decoding: products of one input are one product.

    layers: of each layer the functions (q, k, v), o, (gate, up), down.  copies: see
    `FastTransformer`.
    """

    def __init__(self, model: Transformer):
        self.copies: dict[str, torch.Tensor] = {}
        self.layers = []
        for layer in model.model.layers:
            a, mlp = layer.self_attn, layer.mlp
            heads, gate_and_up = (a.q_proj, a.k_proj, a.v_proj), (mlp.gate_proj, mlp.up_proj)
            parts = heads, (a.o_proj,), gate_and_up, (mlp.down_proj,)
            self.layers.append([joint(*linear) for linear in parts])


def joint(*parts: nn.Linear):
    """The products of several layers with one input, side by side, as a function of it."""
    bias = None if parts[0].bias is None else stacked([part.bias for part in parts])
    return partial(product, W=pack(stacked([part.weight for part in parts])), b=bias)


def accelerate(model: Transformer) -> Transformer:
    """The same model, its products fast ones from now on."""
    fast = {nn.Linear: FastLinear, Transformer: FastTransformer}
    for module in model.modules():
        module.__class__ = fast.get(type(module), type(module))  # not built anew: it stays itself
    if model.E.is_cuda:
        Packed(model)  # from now on what is multiplied together lies together
    return model


@contextmanager
def packed(model: Transformer):
    """Inside, the weights must not change and nothing is differentiated: `model.packed` is a copy
    of them on CPUs, themselves on GPUs."""
    model.packed = Packed(model)
    try:
        yield
    finally:
        model.packed = None
