"""Products with weights: values, gradients, packing, and bits that do not depend on the number of
rows."""

import pytest
import torch
import torch.nn.functional as F
from conftest import logits_of

from minisoft import engine
from minisoft.engine import cpu_products
from minisoft.engine.cpu_products import pack, product
from minisoft.engine.gpu_products import stacked
from minisoft.engine.linear import packed
from minisoft.io import WEIGHTS
from minisoft.io.checkpoint import load_model

SIZES = [(128, 352), (352, 128), (208, 128), (24, 7)]
onednn = pytest.mark.skipif(not cpu_products.ONEDNN, reason="needs oneDNN")


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("without", [False, True])
@pytest.mark.parametrize("inner, outer", SIZES)
@pytest.mark.parametrize("transposed", [False, True])
def test_values_and_gradients_are_those_of_torch(inner, outer, transposed, without, monkeypatch):
    monkeypatch.setattr(cpu_products, "ONEDNN", cpu_products.ONEDNN and not without)
    results = []
    for function in (product, F.linear):
        x = numbers(3, 5, inner).requires_grad_()
        shape = (inner, outer) if transposed else (outer, inner)
        stored = numbers(*shape, seed=1).requires_grad_()
        b = numbers(outer, seed=2).requires_grad_()
        y = function(x, stored.t() if transposed else stored, b)
        (y * numbers(3, 5, outer, seed=3)).sum().backward()
        assert stored.grad.stride() == stored.stride()
        results.append((y, x.grad, stored.grad, b.grad))
    for ours, torchs in zip(*results):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


def test_a_bfloat16_matrix_gives_exact_float32_values_and_bfloat16_gradients():
    x = numbers(9, 64).requires_grad_()
    W = numbers(50, 64, seed=1, dtype=torch.bfloat16).requires_grad_()
    y = product(x, W)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, (x.double() @ W.double().t()).float(), rtol=1e-5, atol=1e-5)
    dy = numbers(9, 50, seed=2)
    y.backward(dy)
    assert (x.grad.dtype, W.grad.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(x.grad, dy @ W.detach().float(), rtol=0.02, atol=0.1)
    torch.testing.assert_close(W.grad.float(), dy.t() @ x.detach(), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("packs", [False, True], ids=["weights", "packed"])
def test_cpus_without_16_bit_instructions_multiply_in_float32(packs, monkeypatch):
    """Values and gradients are those of float32 products, rounded once."""
    monkeypatch.setattr(cpu_products, "BFLOAT16", False)
    x, W, b = (numbers(*shape, dtype=torch.bfloat16) for shape in ((9, 64), (50, 64), (50,)))
    expected = F.linear(x.float(), W.float(), b.float())
    if packs:
        close_to_rounded(product(x, pack(W), b), expected)
        return
    x, W, b = (y.requires_grad_() for y in (x, W, b))
    y = product(x, W, b)
    close_to_rounded(y, expected)
    dy = numbers(9, 50, seed=2, dtype=torch.bfloat16)
    y.backward(dy)
    close_to_rounded(x.grad, dy.float() @ W.detach().float())
    close_to_rounded(W.grad, dy.float().t() @ x.detach().float())


def close_to_rounded(found, exact):
    """As float32 and then bfloat16 have it: half a unit of the last of 8 bits."""
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact.detach(), rtol=2**-8, atol=1e-4)


@onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inner, outer", SIZES)
def test_packed_or_not_and_with_however_many_rows_the_bits_are_the_same(inner, outer, dtype):
    W, x = numbers(outer, inner, dtype=dtype), numbers(70, inner, seed=1, dtype=dtype)
    whole = product(x, W)
    assert torch.equal(product(x, pack(W)), whole)
    for rows in (2, 3, 16, 33, 64):
        for stored in (W, pack(W)):
            assert torch.equal(product(x[:rows], stored), whole[:rows])


# ---------------------------------------------------------------- a model with these products


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_packed_model_computes_the_same_and_forgets_its_copies(dtype):
    model = engine.accelerate(load_model(WEIGHTS / "tiny").to(dtype))
    ids = torch.arange(40)[None]
    logits = logits_of(model, ids)
    p = logits.softmax(-1)
    mixed = model.mix(p)
    with packed(model):
        assert torch.equal(logits_of(model, ids), logits) and torch.equal(model.mix(p), mixed)
        assert set(model.packed.copies) == {"W_d", "E^T"}
    assert model.packed is None
    with pytest.raises(RuntimeError), packed(model):
        raise RuntimeError
    assert model.packed is None
    model.E.mul_(2)
    torch.testing.assert_close(model.mix(p), 2 * mixed)


class OnGpu(torch.Tensor):
    """A tensor that lies on a GPU, as it says."""

    is_cuda = True


@pytest.mark.parametrize("inner", [(), (4,)], ids=["biases", "weights"])
def test_what_a_gpu_multiplies_together_lies_together(inner):
    """And stays where it is, where CUDA graphs have read it, whatever becomes of the numbers."""
    parts = [numbers(n, *inner, seed=n).as_subclass(OnGpu) for n in (6, 2, 3)]
    expected = torch.cat([part.detach().clone() for part in parts])
    matrix = stacked(parts)
    assert torch.equal(matrix, expected)
    for part in parts:
        part.mul_(2)
    again = stacked(parts)
    assert again.data_ptr() == matrix.data_ptr() and torch.equal(again, 2 * expected)
