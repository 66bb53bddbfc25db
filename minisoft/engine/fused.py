"""One position of many rows, in few operations.

A decoding step of few rows or a small model is bound by the number of its operations.  What stands
between two products is one function here, and on a GPU one kernel (see `cuda`).

Dimensions: N rows, H query and K key/value heads, D head_dim, d width.
"""

import torch
import torch.nn.functional as F

from minisoft import soft
from minisoft.engine.cuda import OneKernel
from minisoft.model import rotate


@OneKernel
def add_and_norm(x, y, weight, eps: float) -> tuple:
    """x, y (N, 1, d) -> x + y, and that normed."""
    x = x + y
    return x, F.rms_norm(x, weight.shape, weight, eps)


@OneKernel
def swiglu(gate_and_up):
    """(N, 1, 2 n) -> (N, 1, n)"""
    gate, up = gate_and_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@OneKernel
def rotate_and_store(heads, rope, norms, keys, values, place) -> torch.Tensor:
    """Queries, keys and values, heads (N, H + 2 K, 1, D) -> the queries (N, H, 1, D), rotated; keys
    (rotated) and values go to their place in those stored, each (N, positions, K, D).

    norms: (weight, eps) of queries and of keys, where a model has them.
    """
    K = keys.shape[2]
    q, k, v = heads[:, : -2 * K], heads[:, -2 * K : -K], heads[:, -K:]
    if norms:
        q, k = (F.rms_norm(x, w.shape, w, eps) for x, (w, eps) in zip((q, k), norms))
    keys[place] = rotate(k, *rope)[:, :, 0].to(keys.dtype)
    values[place] = v[:, :, 0].to(values.dtype)
    return rotate(q, *rope)


measure = OneKernel(soft.measure)


def one_position(model, x: torch.Tensor, cache) -> torch.Tensor:
    """What `Transformer.forward` gives for the next position of every row on a cache, by a packed
    model: inputs (N, d) -> encodings hL (N, d)."""
    x = x[:, None].to(model.E.dtype)
    rope = model._rope(cache.positions(), x.dtype)
    layers, N, D = model.model.layers, len(x), model.config.head_dim
    norms = [*(layer.input_layernorm for layer in layers[1:]), model.model.norm]
    normed = layers[0].input_layernorm(x)
    for n, (layer, next_norm) in enumerate(zip(layers, norms, strict=True)):
        to_heads, from_heads, to_gate_and_up, down = model.packed.layers[n]
        attention, norm = layer.self_attn, layer.post_attention_layernorm
        heads = to_heads(normed).view(N, 1, -1, D).transpose(1, 2)  # (N, H + 2 K, 1, D)
        of_heads = (attention.q_norm, attention.k_norm) if model.config.qk_norm else ()
        of_heads = [(norm.weight, norm.eps) for norm in of_heads]
        q = rotate_and_store(heads, rope, of_heads, *cache.stored(n), (cache.rows, cache.at))
        out = from_heads(cache.attend(n, q).reshape(N, 1, -1))
        x, normed = add_and_norm(x, out, norm.weight, norm.eps)
        out = down(swiglu(to_gate_and_up(normed)))
        x, normed = add_and_norm(x, out, next_norm.weight, next_norm.eps)
    return normed[:, 0]
