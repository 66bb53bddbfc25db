"""config.json: what is read of it, and what would give wrong numbers is refused."""

import json
import shutil

import pytest
import torch
from conftest import LLAMA3_SCALING, close, logits_of, random_ids, write_json

from minisoft.errors import InputError
from minisoft.io.checkpoint import load_model
from minisoft.io.config import read_config


def rewritten(raw, form):
    """The config.json of transformers 4 or 5, whichever wrote `raw`."""
    rope = dict(raw.pop("rope_parameters", None) or raw.pop("rope_scaling", None) or {})
    raw.pop("rope_scaling", None)
    theta = rope.pop("rope_theta", None) or raw.pop("rope_theta")
    kind = rope.pop("rope_type", "default")
    if form == "transformers 5":
        return {**raw, "rope_parameters": {"rope_theta": theta, "rope_type": kind, **rope}}
    name = "rope_type" if form == "transformers 4" else "type"
    return {
        **raw,
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {name: kind, **rope},
    }


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


PLAIN = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
GONE = ...
REFUSED = [
    ({"model_type": "mistral"}, "model_type: expected llama, qwen2 or qwen3, found 'mistral'"),
    ({"model_type": GONE}, "model_type.*None"),
    (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 128},
        "use_sliding_window.*128",
    ),
    (
        {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
        "layer_types.*sliding_attention",
    ),
    ({"sliding_window": 128}, "sliding_window.*128"),
    ({"num_experts": 8}, "num_experts.*dense.*8"),
    ({"num_local_experts": 8}, "num_local_experts.*8"),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        "rope_type: expected default, linear or llama3.*yarn",
    ),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_type.*dynamic"),
    ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type.*longrope"),
    ({"rope_scaling": {"rope_type": "linear"}}, "factor.*None"),
    ({"rope_scaling": {**LLAMA3_SCALING, "factor": "8"}}, "factor.*'8'"),
    (
        {"rope_scaling": {k: v for k, v in LLAMA3_SCALING.items() if k[:3] != "low"}},
        "low_freq_factor.*None",
    ),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor.*0.5"),
    (
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
        "partial.*0.5",
    ),
    (
        {"num_key_value_heads": 3},
        "num_attention_heads: expected a multiple of num_key_value_heads=3, found 4",
    ),
    (
        {"num_attention_heads": 6},
        "hidden_size: expected a multiple of num_attention_heads=6, found 32",
    ),
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
    (
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
            }
        },
        "rope",
    ),
]


def raw_config(**changes):
    return {field: value for field, value in {**PLAIN, **changes}.items() if value is not GONE}


@pytest.mark.parametrize("changes, message", REFUSED, ids=lambda value: str(value)[:60])
def test_a_config_that_would_give_wrong_numbers_is_refused(changes, message):
    with pytest.raises(InputError, match=message) as error:
        read_config(raw_config(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": None},
        {"layer_types": ["full_attention"] * 2},
        {"rope_scaling": None},
        {"head_dim": None},
        {
            "model_type": "qwen2",
            "use_sliding_window": False,
            "sliding_window": 32768,
            "max_window_layers": 21,
        },
        {"model_type": "qwen3", "use_sliding_window": False, "sliding_window": None},
    ],
    ids=str,
)
def test_a_config_as_the_hub_has_it_is_read(changes):
    assert read_config(raw_config(**changes)).hidden_size == 32


@pytest.mark.parametrize(
    "kind, qkv_bias, o_bias, qk_norm, head_dim",
    [
        ("llama", False, False, False, 8),
        ("qwen2", True, False, False, 8),
        ("qwen3", False, False, True, 128),
    ],
)
def test_what_a_config_leaves_out_is_as_in_transformers(kind, qkv_bias, o_bias, qk_norm, head_dim):
    config = read_config(raw_config(model_type=kind))
    assert (config.qkv_bias, config.o_bias, config.qk_norm, config.head_dim) == (
        qkv_bias,
        o_bias,
        qk_norm,
        head_dim,
    )
    assert read_config(raw_config(model_type=kind, rms_norm_eps=GONE)).rms_norm_eps == 1e-6
    assert (
        read_config(raw_config(model_type="llama", num_key_value_heads=GONE)).num_key_value_heads
        == 4
    )
