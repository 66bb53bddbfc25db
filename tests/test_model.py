"""The transformer computes what transformers computes, cached or not; configs it would get wrong are refused."""

import dataclasses
import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import ARCHITECTURES, LLAMA3_SCALING, VOCABULARY, write_json

from minisoft.errors import InputError
from minisoft.io.checkpoint import load_model
from minisoft.io.config import read_config
from minisoft.model import PromptCache, RowCache, Transformer

SAMPLE = ("llama3", "llama-mha", "qwen2", "qwen3")  # for what hardly depends on the architecture


def random_ids(*shape, seed=0):
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def logits_of(model, ids):
    return model.logits(model(model.embed(ids)))


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


# ---------------------------------------------------------------- parity with transformers

@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_logits_equal_those_of_transformers(both, architecture):
    theirs, ours = both(architecture)
    ids = random_ids(3, 70)
    found = logits_of(ours, ids)
    assert found.shape == (3, 70, VOCABULARY) and found.dtype == torch.float32
    close(found, theirs(ids).logits)


@pytest.mark.parametrize("architecture", ["llama-gqa", "llama-linear", "llama3", "qwen2", "qwen3"])
@torch.no_grad()
def test_logits_equal_those_of_transformers_past_position_1000(both, architecture):
    theirs, ours = both(architecture)
    ids = random_ids(1, 1100)
    close(logits_of(ours, ids)[:, 1000:], theirs(ids).logits[:, 1000:], 2e-5)


@pytest.mark.parametrize("architecture", ["llama-linear", "llama3"])
@torch.no_grad()
def test_dropping_the_rope_scaling_would_show(both, architecture):
    _, ours = both(architecture)
    bare = Transformer(dataclasses.replace(ours.config, rope_scaling={}))
    bare.load_state_dict(ours.state_dict())
    ids = random_ids(1, 1100)
    assert (logits_of(bare, ids) - logits_of(ours, ids))[:, 1000:].abs().mean() > 0.05


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_equal_those_of_transformers(both, architecture):
    theirs, ours = both(architecture)
    ids = random_ids(2, 20)
    found = {}
    for model, logits in ((theirs, theirs(ids).logits), (ours, logits_of(ours, ids))):
        model.zero_grad()
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        found[model] = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert found[ours].keys() == found[theirs].keys()
    for name, gradient in found[ours].items():
        assert gradient.abs().max() > 1e-6, name
        torch.testing.assert_close(gradient, found[theirs][name], atol=1e-6, rtol=1e-4, msg=lambda m: f"{name}: {m}")


def rewritten(raw, form):
    """The config.json of transformers 4 or 5, whichever wrote `raw`."""
    rope = dict(raw.pop("rope_parameters", None) or raw.pop("rope_scaling", None) or {})
    raw.pop("rope_scaling", None)
    theta = rope.pop("rope_theta", None) or raw.pop("rope_theta")
    kind = rope.pop("rope_type", "default")
    if form == "transformers 5":
        return {**raw, "rope_parameters": {"rope_theta": theta, "rope_type": kind, **rope}}
    name = "rope_type" if form == "transformers 4" else "type"
    return {**raw, "rope_theta": theta, "rope_scaling": None if kind == "default" else {name: kind, **rope}}


@pytest.mark.parametrize("architecture", ["llama-gqa", "llama-linear", "llama3", "qwen2", "qwen3"])
@torch.no_grad()
def test_configs_of_transformers_4_and_5_mean_the_same(both, saved, tmp_path, architecture):
    theirs, ours = both(architecture)
    shutil.copytree(saved(architecture)[1], tmp_path, dirs_exist_ok=True)
    ids = random_ids(1, 300)
    for form in ("transformers 4", "transformers 4 with type", "transformers 5"):
        raw = rewritten(json.loads((saved(architecture)[1] / "config.json").read_text()), form)
        assert ("rope_parameters" in raw) == (form == "transformers 5")
        write_json(tmp_path / "config.json", raw)
        model = load_model(tmp_path)
        assert model.config == ours.config
        close(logits_of(model, ids), theirs(ids).logits)


def test_what_the_config_says_is_read(both):
    config = both("llama3")[1].config
    assert (config.rope_theta, config.num_key_value_heads, config.head_dim) == (500000.0, 2, 8)
    assert config.rope_scaling == LLAMA3_SCALING
    assert both("llama-gqa")[1].config.rope_scaling == {}
    assert both("qwen3")[1].config.rms_norm_eps == 1e-3


# ---------------------------------------------------------------- causality, dtype, embeddings

@torch.no_grad()
def test_later_positions_do_not_change_earlier_ones(both):
    model = both("llama3")[1]
    ids = random_ids(2, 12)
    close(logits_of(model, ids)[:, :7], logits_of(model, ids[:, :7]))


@torch.no_grad()
def test_input_embeddings_need_not_be_rows_of_E(both):
    theirs, ours = both("qwen3")
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(1))
    close(ours.logits(ours(x)), theirs(inputs_embeds=x).logits)


@pytest.mark.parametrize("architecture", ["llama-tied", "llama-gqa"])
def test_E_and_W_d_are_the_same_matrix_where_tied(both, architecture):
    model = both(architecture)[1]
    assert (model.W_d is model.E) == (architecture == "llama-tied")
    assert torch.equal(model.embed(torch.tensor([[7]]))[0, 0], model.E[7])


@pytest.mark.parametrize("architecture", SAMPLE)
@torch.no_grad()
def test_bfloat16_runs_with_float32_logits_and_angles(both, saved, architecture):
    exact, model = both(architecture)[1], load_model(saved(architecture)[1], dtype=torch.bfloat16)
    ids = random_ids(1, 300)
    hidden = model(model.embed(ids))
    assert hidden.dtype == torch.bfloat16 and model.logits(hidden).dtype == torch.float32
    assert torch.equal(model.frequencies, exact.frequencies)
    expected = logits_of(exact, ids)
    assert (model.logits(hidden) - expected).pow(2).mean().sqrt() < 0.06 * expected.pow(2).mean().sqrt()
    _, cache = model.prefill(ids)
    rows = row_cache(model, [cache], [0, 0], 2)
    assert model(model.embed(ids[:, :1]).expand(16, 1, -1), rows).isfinite().all()


@torch.no_grad()
def test_bfloat16_logits_are_not_rounded_to_bfloat16(saved):
    model = load_model(saved("llama-gqa")[1], dtype=torch.bfloat16)
    logits = logits_of(model, random_ids(1, 20))
    assert (logits != logits.bfloat16().float()).float().mean() > 0.9


def test_rounded_logits_are_bfloat16_numbers_with_the_gradient_of_the_exact_ones(saved):
    _, folder = saved("llama-mha")
    model = load_model(folder, torch.device("cpu"), torch.float32)
    hidden = torch.randn(5, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    exact = model.logits(hidden)
    expected, = torch.autograd.grad(exact.square().sum(), hidden)
    model.rounded = True
    rounded = model.logits(hidden)
    assert (rounded == exact.bfloat16().float()).all() and (rounded != exact).any()
    found, = torch.autograd.grad((rounded * exact.detach() * 2).sum(), hidden)
    close(found, expected, 1e-4)



# ---------------------------------------------------------------- the shared prompt

@pytest.mark.parametrize("architecture", SAMPLE)
@torch.no_grad()
def test_prefill_is_the_uncached_forward(both, architecture):
    model = both(architecture)[1]
    ids = random_ids(1, 11)
    hidden, cache = model.prefill(ids)
    close(hidden, model(model.embed(ids)))
    assert cache.keys[0].shape[2] == 11


@pytest.mark.parametrize("architecture", SAMPLE)
@pytest.mark.parametrize("length", [1, 9])
def test_continuing_a_shared_prompt_equals_the_full_forward(both, architecture, length):
    """Numbers and all gradients, those through the prompt included."""
    model = both(architecture)[1]
    prompt, rows = random_ids(1, length), random_ids(3, 6, seed=1)
    weights = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(2))
    gradients = []
    full = model(model.embed(torch.cat((prompt.expand(3, -1), rows), dim=1)))[:, length:]
    _, cache = model.prefill(prompt)
    cached = model(model.embed(rows), PromptCache(keys=cache.keys, values=cache.values))
    close(cached, full)
    for hidden in (full, cached):
        model.zero_grad()
        (hidden * weights).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p is not model.W_d or p is model.E])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-4, rtol=1e-4)


def test_gradients_into_a_detached_prompt_add_up_over_micro_batches(both):
    model = both("llama3")[1]
    prompt, rows = random_ids(1, 9), random_ids(4, 5, seed=1)

    def gradients():
        return [p.grad.clone() for p in model.model.parameters()]

    model.zero_grad()
    model(model.embed(torch.cat((prompt.expand(4, -1), rows), dim=1)))[:, 9:].pow(3).sum().backward()
    expected = gradients()
    model.zero_grad()
    _, cache = model.prefill(prompt)
    leaves = cache.detached()
    for micro in (rows[:1], rows[1:]):
        model(model.embed(micro), leaves).pow(3).sum().backward()
    without_prompt = gradients()
    torch.autograd.backward(cache.keys + cache.values, [leaf.grad for leaf in leaves.keys + leaves.values])
    assert any((a - b).abs().max() > 1e-2 for a, b in zip(without_prompt, expected))
    torch.testing.assert_close(gradients(), expected, atol=1e-3, rtol=1e-4)


# ---------------------------------------------------------------- decoding row by row

def row_cache(model, prompts, owner, capacity):
    """A RowCache whose first rows continue the given recorded prompts."""
    cache = RowCache(model.config, len(owner), capacity, "cpu", model.E.dtype)
    numbers = [cache.add(prompt) for prompt in prompts]
    cache.owner[: len(owner)] = [numbers[p] for p in owner]
    cache.seat()
    return cache


def decode(model, prompts, owner, rows, drops=None):
    """Logits (N, T, V) of the continuations `rows` (N, T), step by step; drops[t]: rows that leave after step t."""
    drops = drops or {}
    N, T = rows.shape
    found = torch.full((N, T, VOCABULARY), torch.nan)
    cache = row_cache(model, [model.prefill(p)[1] for p in prompts], owner.tolist(), T)
    places = [*range(N), *[None] * (len(cache.owner) - N)]  # which row sits where
    for t in range(T):
        cache.position[:] = t
        cache.widen(t + 1)
        ids = torch.tensor([0 if row is None else rows[row, t] for row in places])
        logits = model.logits(model(model.embed(ids[:, None]), cache))[:, 0]
        for place, row in enumerate(places):
            if row is not None:
                found[row, t] = logits[place]
                if row in drops.get(t, []):
                    places[place] = cache.owner[place] = None
        if order := cache.shrink():
            places = [places[i] for i in order]
        cache.seat()
    return found


def uncached(model, prompts, owner, rows):
    return torch.stack([logits_of(model, torch.cat((prompts[p], row[None]), dim=1))[0, -len(row):]
                        for p, row in zip(owner.tolist(), rows)])


OWNER = torch.tensor([1, 0, 0, 1, 1, 0, 1] * 5)  # 35 rows: places for 48
DROPS = {"none": {}, "first row": {0: [0]}, "last row": {1: [6]}, "some": {0: [2], 1: [0, 5], 3: [3]},
         "all of one prompt": {1: [i for i in range(35) if i % 7 in (1, 2, 5)]}, "all but one": {1: [*range(34)]},
         "to 32 rows, then 16": {0: [3, 4, 30], 2: [*range(5, 29, 2), 29, 31, 33]}}


@pytest.mark.parametrize("architecture", ["llama3", "llama-mha", "qwen2", "qwen3"])
@pytest.mark.parametrize("drops", DROPS.values(), ids=DROPS)
@torch.no_grad()
def test_cached_decoding_equals_the_uncached_forward(both, architecture, drops):
    model = both(architecture)[1]
    prompts, rows = [random_ids(1, 5, seed=1), random_ids(1, 12, seed=2)], random_ids(35, 6, seed=3)
    found, expected = decode(model, prompts, OWNER, rows, drops), uncached(model, prompts, OWNER, rows)
    left = torch.ones(35, 6, dtype=torch.bool)
    for t, gone in drops.items():
        left[gone, t + 1:] = False
    close(found[left], expected[left], 2e-5)
    assert found[~left].isnan().all()


def test_shrink_tells_where_the_rows_went(both):
    cache = RowCache(both("llama3")[1].config, 48, 4, "cpu", torch.float32)
    cache.owner = [0 if i % 3 == 2 else None for i in range(48)]
    before = list(cache.owner)
    order = cache.shrink()
    assert len(order) == 16 and len(set(order)) == 16 and [before[i] for i in order] == cache.owner == [0] * 16
    assert all(order[i] == i for i in range(16) if before[i] == 0)  # who can stay stays
    assert cache.shrink() is None


@torch.no_grad()
def test_prompts_come_and_go(both):
    """A number that became free is used again, by a longer or a shorter prompt, while another row goes on."""
    model = both("llama3")[1]
    prompts, rows = [random_ids(1, n, seed=n) for n in (7, 30, 3, 40)], random_ids(4, 5, seed=2)
    expected = uncached(model, prompts, torch.arange(4), rows)
    cache = row_cache(model, [model.prefill(p)[1] for p in prompts[:2]], [0, 1], 16)
    jobs, start = {0: 0, 1: 1}, {0: 0, 1: 0}  # place -> row; place -> its first step
    waiting = [2, 3]
    for t in range(15):
        cache.position[:] = torch.tensor([t - start.get(place, t) for place in range(16)])
        cache.widen(t + 1)
        ids = torch.tensor([rows[jobs[place], t - start[place]] if place in jobs else 0 for place in range(16)])
        logits = model.logits(model(model.embed(ids[:, None]), cache))[:, 0]
        for place, row in list(jobs.items()):
            close(logits[place], expected[row, t - start[place]], 2e-5)
            if t - start[place] == (4 if place else 2):  # the row of place 0 is cut short, so the places get out of step
                cache.drop(cache.owner[place])
                cache.owner[place] = None
                del jobs[place]
                if waiting:
                    jobs[place], start[place] = waiting.pop(0), t + 1
                    cache.owner[place] = cache.add(model.prefill(prompts[jobs[place]])[1])
        cache.seat()
    assert not waiting and len(cache.length) == 2


@torch.no_grad()
def test_a_row_does_not_depend_on_the_other_prompts(both):
    model = both("llama3")[1]
    prompt, rows = random_ids(1, 6, seed=1), random_ids(4, 5, seed=2)
    alone = decode(model, [prompt], torch.tensor([0, 0]), rows[:2])
    for length in (1, 6, 40):
        other = random_ids(1, length, seed=3)
        close(decode(model, [prompt, other], torch.tensor([0, 0, 1, 1]), rows)[:2], alone)
        close(decode(model, [other, prompt], torch.tensor([1, 1, 0, 0]), rows)[:2], alone)


# ---------------------------------------------------------------- configs

PLAIN = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
         "hidden_act": "silu", "tie_word_embeddings": False}
GONE = ...
REFUSED = [
    ({"model_type": "mistral"}, "model_type: expected llama, qwen2 or qwen3, found 'mistral'"),
    ({"model_type": GONE}, "model_type.*None"),
    ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 128}, "use_sliding_window.*128"),
    ({"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]}, "layer_types.*sliding_attention"),
    ({"sliding_window": 128}, "sliding_window.*128"),
    ({"num_experts": 8}, "num_experts.*dense.*8"),
    ({"num_local_experts": 8}, "num_local_experts.*8"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type: expected default, linear or llama3.*yarn"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type.*dynamic"),
    ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type.*longrope"),
    ({"rope_scaling": {"rope_type": "linear"}}, "factor.*None"),
    ({"rope_scaling": {**LLAMA3_SCALING, "factor": "8"}}, "factor.*'8'"),
    ({"rope_scaling": {k: v for k, v in LLAMA3_SCALING.items() if k[:3] != "low"}}, "low_freq_factor.*None"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor.*0.5"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial.*0.5"),
    ({"num_key_value_heads": 3}, "num_attention_heads: expected a multiple of num_key_value_heads=3, found 4"),
    ({"num_attention_heads": 6}, "hidden_size: expected a multiple of num_attention_heads=6, found 32"),
    ({"head_dim": 7}, "head_dim.*even.*7"),
    ({"hidden_act": "gelu"}, "hidden_act: expected silu, found 'gelu'"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ({"vocab_size": GONE}, "vocab_size: expected a positive integer, found None"),
    ({"hidden_size": -32}, "hidden_size: expected a positive integer, found -32"),
    ({"num_hidden_layers": "2"}, "num_hidden_layers: expected a positive integer, found '2'"),
    ({"intermediate_size": 48.5}, "intermediate_size.*48.5"),
    ({"num_attention_heads": True}, "num_attention_heads.*True"),
    ({"num_key_value_heads": 0}, "num_key_value_heads.*0"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps.*'small'"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps.*-1e-05"),
    ({"rms_norm_eps": None}, "rms_norm_eps.*None"),
    ({"rope_theta": "large"}, "rope_theta.*'large'"),
    ({"rope_theta": -1.0}, "rope_theta.*-1.0"),
    ({"rope_scaling": "linear"}, "rope_scaling.*'linear'"),
    ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}}, "rope"),
]


def raw_config(**changes):
    return {field: value for field, value in {**PLAIN, **changes}.items() if value is not GONE}


@pytest.mark.parametrize("changes, message", REFUSED, ids=lambda value: str(value)[:60])
def test_a_config_that_would_give_wrong_numbers_is_refused(changes, message):
    with pytest.raises(InputError, match=message) as error:
        read_config(raw_config(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("changes", [
    {}, {"sliding_window": None}, {"layer_types": ["full_attention"] * 2}, {"rope_scaling": None}, {"head_dim": None},
    {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21},
    {"model_type": "qwen3", "use_sliding_window": False, "sliding_window": None}], ids=str)
def test_a_config_as_the_hub_has_it_is_read(changes):
    assert read_config(raw_config(**changes)).hidden_size == 32


@pytest.mark.parametrize("kind, qkv_bias, o_bias, qk_norm, head_dim", [
    ("llama", False, False, False, 8), ("qwen2", True, False, False, 8), ("qwen3", False, False, True, 128)])
def test_what_a_config_leaves_out_is_as_in_transformers(kind, qkv_bias, o_bias, qk_norm, head_dim):
    config = read_config(raw_config(model_type=kind))
    assert (config.qkv_bias, config.o_bias, config.qk_norm, config.head_dim) == (qkv_bias, o_bias, qk_norm, head_dim)
    assert read_config(raw_config(model_type=kind, rms_norm_eps=GONE)).rms_norm_eps == 1e-6
    assert read_config(raw_config(model_type="llama", num_key_value_heads=GONE)).num_key_value_heads == 4
