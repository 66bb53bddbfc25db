"""Matrix products with weights: y = x W^T + b, by oneDNN on CPUs that have it, else by torch's own.

oneDNN takes two thirds of the time of torch's float32 products on the CPU tried, and a row of the result has the same bits
however many rows there are.
"""

import torch
import torch.nn.functional as F
from torch import nn

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
BFLOAT16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # by this CPU


def product(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., i), W (o, i) or what `pack` made of it, b (o,) -> x W^T + b (..., o) in x's dtype.

    Differentiable unless W is packed.  With float32 x and bfloat16 W only the gradient of W is multiplied in bfloat16.
    """
    return _multiply(x, W, b) if W.is_mkldnn else _Product.apply(x, W, b)


def _by_onednn(x: torch.Tensor) -> bool:
    return ONEDNN and x.device.type == "cpu" and (x.dtype == torch.float32 or x.dtype == torch.bfloat16 and BFLOAT16)


def pack(W: torch.Tensor) -> torch.Tensor:
    """A copy of W (o, i) in the order in which oneDNN reads it fastest; W itself where oneDNN is not used."""
    return torch.ops.mkldnn._reorder_linear_weight(W.detach()) if _by_onednn(W) else W.detach()


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
        flat_x, flat_dy = x.to(W.dtype).flatten(0, -2), dy.to(W.dtype).flatten(0, -2)  # (n, i), (n, o)
        if ctx.needs_input_grad[1]:  # (o, i), in the memory order of W, which may be the transpose of E
            dW = flat_dy.t() @ flat_x if W.is_contiguous() else (flat_x.t() @ flat_dy).t()
        if ctx.needs_input_grad[2]:
            db = flat_dy.sum(0)
        return dx, dW, db


class Linear(nn.Linear):
    """nn.Linear by `product`; `packed`, if not None, stands in for the weight while that does not change."""

    packed = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight if self.packed is None else self.packed, self.bias)
