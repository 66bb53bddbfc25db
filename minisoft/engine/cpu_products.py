"""Products with weights, y = x W^T + b, by oneDNN on CPUs that have it, else by torch's own.

oneDNN takes two thirds of the time of torch's float32 products on the CPU tried, and a row of the
result has the same bits however many rows there are.
"""

import torch
import torch.nn.functional as F

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
BFLOAT16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # fast on this CPU?


def product(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., i), W (o, i) or what `pack` made of it, b (o,) -> x W^T + b (..., o) in x's dtype.

    Differentiable unless W is packed.  With float32 x and bfloat16 W only the gradient of W is
    multiplied in bfloat16.
    """
    return _multiply(x, W, b) if W.is_mkldnn else Product.apply(x, W, b, _multiply)


def pack(W: torch.Tensor) -> torch.Tensor:
    """A copy of W (o, i) in the order in which oneDNN reads it fastest; W itself without oneDNN."""
    W = W.detach().float() if _by_float32(W) else W.detach()
    return torch.ops.mkldnn._reorder_linear_weight(W) if _by_onednn(W) else W


def _by_onednn(x: torch.Tensor) -> bool:
    if not ONEDNN or x.device.type != "cpu":
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and BFLOAT16)


def _by_float32(x: torch.Tensor) -> bool:
    """CPUs without 16-bit instructions are several times slower in bfloat16."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not BFLOAT16


def _multiply(x, W, b):
    if _by_float32(x):
        W, b = (y if y is None or y.is_mkldnn else y.float() for y in (W, b))
        return _multiply(x.float(), W, b).to(x.dtype)
    W = W if W.is_mkldnn else W.to(x.dtype)
    if _by_onednn(x):
        few = x.numel() < 16 * x.shape[-1]  # rows: torch 2.11 adds these up in another order
        W = pack(W) if few and not W.is_mkldnn else W
        return torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")
    return F.linear(x, W, b)


class Product(torch.autograd.Function):
    """x W^T + b by a function `multiply` of x, W and b, which also gives the gradient of x."""

    @staticmethod
    def forward(ctx, x, W, b, multiply):
        ctx.save_for_backward(x, W)
        ctx.multiply = multiply
        return multiply(x, W, b)

    @staticmethod
    def backward(ctx, dy):
        x, W = ctx.saved_tensors
        dx = dW = db = None
        if ctx.needs_input_grad[0]:
            dx = ctx.multiply(dy, W.t(), None).to(x.dtype)  # (..., i)
        if ctx.needs_input_grad[1]:
            dW = gradient_of_weight(x, W, dy)
        if ctx.needs_input_grad[2]:
            db = dy.to(W.dtype).flatten(0, -2).sum(0)
        return dx, dW, db, None


def gradient_of_weight(x: torch.Tensor, W: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """x (..., i), W (o, i), dy (..., o) -> dy^T x (o, i), multiplied in W's dtype and laid out in
    memory as W is, which may be E^T."""
    dtype = torch.float32 if _by_float32(W) else W.dtype
    x, dy = (y.to(W.dtype).flatten(0, -2).to(dtype) for y in (x, dy))
    dW = dy.t() @ x if W.is_contiguous() else (x.t() @ dy).t()
    return dW.to(W.dtype)
