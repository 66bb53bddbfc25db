"""Products with weights on GPUs: 16-bit W_d and E as they are stored give float32, and weights that
are multiplied together lie together."""

from functools import partial

import torch

from minisoft.engine.cpu_products import Product
from minisoft.engine.cuda import OneKernel


def float32_product(x: torch.Tensor, W: torch.Tensor, compiled: bool) -> torch.Tensor:
    """x (..., i) float32 or in W's dtype, W (o, i) in 16 bits -> x W^T (..., o) float32.

    compiled: worth it for few rows, always as many, without a gradient; a replay has many, and one.
    """
    multiply = partial(_multiply, halves=halves_at_once if compiled else halves)
    y = Product.apply(x.flatten(0, -2), W, None, multiply)
    return y.view(*x.shape[:-1], -1)


def halves(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x (k, i) float32 -> (2 k, i) in 16 bits: x rounded, and what is left of it, rounded."""
    high = x.to(dtype)
    return torch.cat((high, (x - high).to(dtype)))


halves_at_once = OneKernel(halves)


def _multiply(x, W, _, halves):
    """x (k, i), W (o, i) in 16 bits -> x W^T (k, o) float32, without a bias.  W is read once: a
    float32 x is the sum of two 16-bit numbers (see `halves`), and what little is left is lost."""
    if x.dtype == W.dtype:
        return torch.mm(x, W.t(), out_dtype=torch.float32)
    y = torch.mm(halves(x, W.dtype), W.t(), out_dtype=torch.float32)
    return y[: len(x)] + y[len(x) :]


def stacked(parts: list[torch.nn.Parameter]) -> torch.Tensor:
    """Weights (o_1, i), (o_2, i), ... -> (o_1 + o_2 + ..., i), or biases (o_1,), (o_2,), ...  On a
    GPU, where memory is scarce and graphs read addresses, they become its rows: nothing is copied
    the next time, and a change of one is the other's."""
    first, rows = parts[0].detach(), sum(map(len, parts))
    ends = [p.data_ptr() + p.nbytes for p in parts]
    if [p.data_ptr() for p in parts[1:]] == ends[:-1] and first.is_cuda:
        room = first.untyped_storage().nbytes() // first.element_size() - first.storage_offset()
        if room >= rows * first.stride(0):
            return first.as_strided((rows, *first.shape[1:]), first.stride())
    matrix = torch.cat([p.detach() for p in parts])
    if matrix.is_cuda:
        for p, part in zip(parts, matrix.split(list(map(len, parts)))):
            p.data = part
    return matrix
