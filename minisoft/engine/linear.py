"""Products with weights, y = x W^T + b: by oneDNN on CPUs that have it, else by torch's own.

`accelerate` gives a model these products from outside; its weights, their names and what it
computes stay the same.  oneDNN takes two thirds of the time of torch's float32 products on the CPU
tried, and a row of the result has the same bits however many rows there are.  GPUs multiply by
16-bit W_d and E as they are stored, and give float32 (torch 2.8 or later).
"""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from minisoft.engine.compiled import OneKernel
from minisoft.model import MLP, Attention, Transformer

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
WIDE = hasattr(torch.ops.aten.mm, "dtype")  # products of 16-bit numbers into float32, on GPUs
BFLOAT16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # fast on this CPU?


def product(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., i), W (o, i) or what `pack` made of it, b (o,) -> x W^T + b (..., o) in x's dtype.

    Differentiable unless W is packed.  With float32 x and bfloat16 W only the gradient of W is
    multiplied in bfloat16.
    """
    return _multiply(x, W, b) if W.is_mkldnn else _Product.apply(x, W, b)


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


def _multiply(x, W, b=None):
    if _by_float32(x):
        W, b = (y if y is None or y.is_mkldnn else y.float() for y in (W, b))
        return _multiply(x.float(), W, b).to(x.dtype)
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
            dW = _times(flat_dy.t(), flat_x)  # (o, i)
        elif ctx.needs_input_grad[1]:  # W is E^T: in the memory order of E
            dW = _times(flat_x.t(), flat_dy).t()
        if ctx.needs_input_grad[2]:
            db = flat_dy.sum(0)
        return dx, dW, db


def _times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.float() @ b.float()).to(a.dtype) if _by_float32(a) else a @ b


class _Wide(torch.autograd.Function):
    """x (k, i) float32 or in W's dtype, W (o, i) in 16 bits on a GPU -> x W^T (k, o) float32."""

    @staticmethod
    def forward(ctx, x, W):
        ctx.save_for_backward(x, W)
        return _wide(x, W.t(), halves)

    @staticmethod
    def backward(ctx, dy):
        x, W = ctx.saved_tensors
        dx = dW = None
        if ctx.needs_input_grad[0]:
            dx = _wide(dy, W, halves).to(x.dtype)
        if ctx.needs_input_grad[1] and W.is_contiguous():
            dW = dy.to(W.dtype).t() @ x.to(W.dtype)
        elif ctx.needs_input_grad[1]:  # W is E^T: in the memory order of E
            dW = (x.to(W.dtype).t() @ dy.to(W.dtype)).t()
        return dx, dW


def _wide(x, W, halves):
    """x (k, i), W (i, o) in 16 bits -> x W (k, o) float32.  W is read once: a float32 x is the sum
    of two 16-bit numbers (see `halves`), and what little is left is lost."""
    if x.dtype == W.dtype:
        return torch.mm(x, W, out_dtype=torch.float32)
    y = torch.mm(halves(x, W.dtype), W, out_dtype=torch.float32)
    return y[: len(x)] + y[len(x) :]


def halves(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x (k, i) float32 -> (2 k, i) in 16 bits: x rounded, and what is left of it, rounded."""
    high = x.to(dtype)
    return torch.cat((high, (x - high).to(dtype)))


halves_at_once = OneKernel(halves)


class FastLinear(nn.Linear):
    """nn.Linear by `product`; `copy`, if not None, stands in for a weight that does not change."""

    copy = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return product(x, self.weight if self.copy is None else self.copy, self.bias)


class Together:
    """A module whose `project` is several products of one input, which `packed` makes one."""

    matrix = None  # the weights of all of them, one below the other, and their biases
    bias = None
    kept = None  # where the biases lie

    def project(self, x: torch.Tensor) -> tuple:
        if self.matrix is None:
            return super().project(x)
        return product(x, self.matrix, self.bias).split([p.out_features for p in self.parts], -1)

    def pack(self) -> None:
        """One product from now on, until `unpack`."""
        self.matrix = pack(stacked([part.weight for part in self.parts]))
        if self.parts[0].bias is not None:
            bias = torch.cat([part.bias.detach() for part in self.parts])
            if self.kept is None or self.kept.device != bias.device:
                self.kept = torch.empty_like(bias)
            self.bias = self.kept.copy_(bias)  # at one address: CUDA graphs have read it there

    def unpack(self) -> None:
        self.matrix = self.bias = None


class FastAttention(Together, Attention):
    @property
    def parts(self) -> list:
        return [self.q_proj, self.k_proj, self.v_proj]


class FastMLP(Together, MLP):
    @property
    def parts(self) -> list:
        return [self.gate_proj, self.up_proj]


def stacked(weights: list[nn.Parameter]) -> torch.Tensor:
    """Weights (o_1, i), (o_2, i), ... -> (o_1 + o_2 + ..., i).  On a GPU, where memory is dear,
    they become its rows: nothing is copied the next time, and a change of one is the other's."""
    first, rows = weights[0].detach(), sum(map(len, weights))
    ends = [w.data_ptr() + w.nbytes for w in weights]
    if [w.data_ptr() for w in weights[1:]] == ends[:-1] and first.is_cuda:
        room = first.untyped_storage().nbytes() // first.element_size() - first.storage_offset()
        if room >= rows * first.shape[1]:
            return first.as_strided((rows, first.shape[1]), first.stride())
    matrix = torch.cat([w.detach() for w in weights])
    if matrix.is_cuda:
        for w, part in zip(weights, matrix.split(list(map(len, weights)))):
            w.data = part
    return matrix


class FastTransformer(Transformer):
    """Transformer with fast products for W_d and E; `packed` gives it copies of both on CPUs."""

    copies = None  # {"W_d", "E^T": a float32 copy, made when first needed}
    board = None  # what `minisoft.engine.decode` keeps on a GPU

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if _by_wide(self.W_d):
            return self._wide(hidden, self.W_d)
        return product(hidden.float(), self._copy("W_d", self.W_d))

    def mix(self, p: torch.Tensor) -> torch.Tensor:
        if _by_wide(self.E):
            return self._wide(p, self.E.t())
        return product(p, self._copy("E^T", self.E.t()))

    def _wide(self, x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        """x (..., i), W (o, i) in 16 bits -> x W^T (..., o) float32."""
        flat = x.flatten(0, -2)
        # few rows, always as many, are worth a compiled function; a replay has many, and a gradient
        y = _wide(flat, W.t(), halves_at_once) if is_packed(self) else _Wide.apply(flat, W)
        return y.view(*x.shape[:-1], -1)

    def _copy(self, name: str, W: torch.Tensor) -> torch.Tensor:
        """W, or on a CPU inside `packed` its copy."""
        if self.copies is None or W.is_cuda:
            return W
        if name not in self.copies:
            self.copies[name] = pack(W.float())
        return self.copies[name]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "board": None}  # CUDA graphs cannot be copied


def _by_wide(W: torch.Tensor) -> bool:
    return WIDE and W.is_cuda and W.dtype != torch.float32


FAST = {nn.Linear: FastLinear, Attention: FastAttention, MLP: FastMLP, Transformer: FastTransformer}


def accelerate(model: Transformer) -> Transformer:
    """The same model, its products by `product` from now on."""
    for module in model.modules():
        module.__class__ = FAST.get(type(module), type(module))
        if isinstance(module, Together) and module.parts[0].weight.is_cuda:
            stacked([part.weight for part in module.parts])
    return model


def is_packed(model) -> bool:
    return getattr(model, "copies", None) is not None


@contextmanager
def packed(model: Transformer):
    """Inside, the weights must not change and nothing is differentiated: an accelerated model
    multiplies, on CPUs, by copies of its weights, laid out for it once, and everywhere does several
    products of one input as one."""
    if not isinstance(model, FastTransformer):
        yield
        return
    together = [m for m in model.modules() if isinstance(m, Together)]
    linears = [linear for layer in model.model.layers for linear in _alone(layer)]
    try:
        model.copies = {}
        for module in together:
            module.pack()
        for linear in linears:
            linear.copy = pack(linear.weight)
        yield
    finally:
        model.copies = None
        for module in together:
            module.unpack()
        for linear in linears:
            linear.copy = None


def _alone(layer) -> list[FastLinear]:
    """The products of a layer that are not taken together with others."""
    return [layer.self_attn.o_proj, layer.mlp.down_proj]
