"""Products with weights, y = x W^T + b: by oneDNN on CPUs that have it, else by torch's own.

`accelerate` gives a model these products from outside; its weights, their names and what it
computes stay the same.  oneDNN takes two thirds of the time of torch's float32 products on the CPU
tried, and a row of the result has the same bits however many rows there are.
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from minisoft.model import Transformer

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
BFLOAT16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # by this CPU


def product(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., i), W (o, i) or what `pack` made of it, b (o,) -> x W^T + b (..., o) in x's dtype.

    Differentiable unless W is packed.  With float32 x and bfloat16 W only the gradient of W is
    multiplied in bfloat16.
    """
    return _multiply(x, W, b) if W.is_mkldnn else _Product.apply(x, W, b)


def pack(W: torch.Tensor) -> torch.Tensor:
    """A copy of W (o, i) in the order in which oneDNN reads it fastest; W itself without oneDNN."""
    return torch.ops.mkldnn._reorder_linear_weight(W.detach()) if _by_onednn(W) else W.detach()


def _by_onednn(x: torch.Tensor) -> bool:
    if not ONEDNN or x.device.type != "cpu":
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and BFLOAT16)


def _multiply(x, W, b=None):
    if _by_onednn(x):
        return torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")
    return F.linear(x, W, b)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, W, b):
        ctx.save_for_backward(x, W)
        return _multiply(x, W.to(x.dtype), b)

    @staticmethod
    def backward(ctx, dy):
        x, W = ctx.saved_tensors
        dx = dW = db = None
        if ctx.needs_input_grad[0]:
            dx = _multiply(dy, W.t().to(dy.dtype))  # (..., i)
        flat_x, flat_dy = x.to(W.dtype).flatten(0, -2), dy.to(W.dtype).flatten(0, -2)
        if ctx.needs_input_grad[1] and W.is_contiguous():
            dW = flat_dy.t() @ flat_x  # (o, i)
        elif ctx.needs_input_grad[1]:  # W is E^T: in the memory order of E
            dW = (flat_x.t() @ flat_dy).t()
        if ctx.needs_input_grad[2]:
            db = flat_dy.sum(0)
        return dx, dW, db


class FastLinear(nn.Linear):
    """nn.Linear by `product`; `copy`, if not None, stands in for a weight that does not change."""

    copy = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight if self.copy is None else self.copy, self.bias)


class FastTransformer(Transformer):
    """Transformer with `product` for W_d and E; inside `packed` with copies of both."""

    copies = None  # {"W_d", "E^T": a float32 copy, made when first needed}

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        W = self.W_d if self.copies is None else self._copy("W_d", self.W_d)
        return product(hidden.float(), W)

    def mix(self, p: torch.Tensor) -> torch.Tensor:
        W = self.E.t() if self.copies is None else self._copy("E^T", self.E.t())
        return product(p, W)

    def _copy(self, name: str, W: torch.Tensor) -> torch.Tensor:
        if name not in self.copies:
            tied = self.E is self.W_d and "W_d" in self.copies
            shared = tied and W.device.type != "cpu"  # oneDNN's order is another for each
            self.copies[name] = self.copies["W_d"].t() if shared else pack(W.float())
        return self.copies[name]


def accelerate(model: Transformer) -> Transformer:
    """The same model, its products by `product` from now on."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
    if type(model) is Transformer:
        model.__class__ = FastTransformer
    return model


@contextmanager
def packed(model: Transformer):
    """Inside, the weights must not change and nothing is differentiated: an accelerated model
    multiplies by copies of its weights, laid out for it once."""
    if not isinstance(model, FastTransformer):
        yield
        return
    linears = [m for m in model.modules() if isinstance(m, FastLinear) and m is not model.lm_head]
    try:
        model.copies = {}
        for linear in linears:
            linear.copy = pack(linear.weight)
        yield
    finally:
        model.copies = None
        for linear in linears:
            linear.copy = None
