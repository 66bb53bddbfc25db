"""The transformer computes what transformers computes, also behind a prompt that was run before."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES, VOCABULARY, close, logits_of, random_ids

from minisoft.io.checkpoint import load_model

SAMPLE = ("llama3", "llama-mha", "qwen2", "qwen3")  # for what hardly depends on the architecture
ENGINE = pytest.mark.parametrize("engine", [False, True], ids=["plain", "accelerated"])


# ---------------------------------------------------------------- parity with transformers


@ENGINE
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_logits_equal_those_of_transformers(both, fast, architecture, engine):
    theirs, ours = (fast if engine else both)(architecture)
    ids = random_ids(3, 70)
    logits = logits_of(ours, ids)
    assert logits.shape == (3, 70, VOCABULARY) and logits.dtype == torch.float32
    close(logits, theirs(ids).logits)


@ENGINE
@pytest.mark.parametrize("architecture", ["llama-gqa", "llama-linear", "llama3", "qwen2", "qwen3"])
@torch.no_grad()
def test_logits_equal_those_of_transformers_past_position_1000(both, fast, architecture, engine):
    theirs, ours = (fast if engine else both)(architecture)
    ids = random_ids(1, 1100)
    close(logits_of(ours, ids)[:, 1000:], theirs(ids).logits[:, 1000:], 2e-5)


@ENGINE
@pytest.mark.parametrize("architecture", ["llama-yarn", "qwen2-yarn", "qwen3-yarn"])
@torch.no_grad()
def test_yarn_is_that_of_transformers_past_the_original_length(both, fast, architecture, engine):
    """The original length is 64; relative to the largest logit."""
    theirs, ours = (fast if engine else both)(architecture)
    ids = random_ids(1, 1100)
    expected = theirs(ids).logits[:, 64:]
    off = (logits_of(ours, ids)[:, 64:] - expected).abs().max()
    assert off <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("architecture", ["llama-yarn", "qwen2-yarn", "qwen3-yarn"])
@torch.no_grad()
def test_yarn_scales_cosines_and_sines(both, architecture):
    """Otherwise that test would not see a forgotten attention factor."""
    _, ours = both(architecture)
    factor = ours.config.rope_scaling["attention_factor"]
    assert abs(factor - 1) > 0.02
    cos, sin = ours._rope(torch.arange(9)[None], torch.float32)
    close(cos.square() + sin.square(), torch.full_like(cos, factor**2))


@ENGINE
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_equal_those_of_transformers(both, fast, architecture, engine):
    theirs, ours = (fast if engine else both)(architecture)
    ids = random_ids(2, 20)
    gradients = {}
    for model, logits in ((theirs, theirs(ids).logits), (ours, logits_of(ours, ids))):
        model.zero_grad()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradients[model] = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients[ours].keys() == gradients[theirs].keys()
    for name, gradient in gradients[ours].items():
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(gradient, gradients[theirs][name], atol=1e-6, rtol=1e-4)


# ---------------------------------------------------------------- dtype


@pytest.mark.parametrize("architecture", SAMPLE)
@torch.no_grad()
def test_bfloat16_runs_with_float32_logits_and_angles(both, saved, architecture):
    exact, model = both(architecture)[1], load_model(saved(architecture)[1], dtype=torch.bfloat16)
    ids = random_ids(1, 300)
    hidden = model(model.embed(ids))
    assert hidden.dtype == torch.bfloat16 and model.logits(hidden).dtype == torch.float32
    assert torch.equal(model.frequencies, exact.frequencies)
    expected = logits_of(exact, ids)
    logits = model.logits(hidden)
    assert (logits - expected).norm() < 0.06 * expected.norm()
    assert (logits != logits.bfloat16().float()).float().mean() > 0.9  # they are not rounded


# ---------------------------------------------------------------- the shared prompt


@pytest.mark.parametrize("architecture", SAMPLE)
@pytest.mark.parametrize("length", [1, 9])
def test_continuing_a_shared_prompt_equals_the_full_forward(both, architecture, length):
    """Numbers and all gradients, those through the prompt included."""
    model = both(architecture)[1]
    ids, rows = random_ids(1, length), random_ids(3, 6, seed=1)
    weights = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(2))
    gradients = []
    full = model(model.embed(torch.cat((ids.expand(3, -1), rows), dim=1)))[:, length:]
    hidden, prompt = model.run_prompt(ids)
    close(hidden, model(model.embed(ids)))
    assert prompt.keys[0].shape[2] == length
    continued = model(model.embed(rows), prompt)
    close(continued, full)
    used = [p for p in model.parameters() if p is not model.W_d or p is model.E]
    for hidden in (full, continued):
        model.zero_grad()
        (hidden * weights).sum().backward()
        gradients.append([p.grad.clone() for p in used])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)
