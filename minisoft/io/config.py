"""config.json -> Config, for Llama, Qwen2 and Qwen3 as transformers 4 and 5 write them."""

import math

from minisoft.errors import expect
from minisoft.model import Config

ROPE_TYPES = {  # type -> the numbers it needs
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}


def is_positive(value, types=(int, float)) -> bool:
    """Whether a value of a JSON file is a positive number (types=int: a whole one)."""
    return isinstance(value, types) and not isinstance(value, bool) and 0 < value < math.inf


def read_config(raw: dict) -> Config:
    """The dict of a config.json -> Config.  Raises InputError for what would give wrong numbers."""
    optional = ("num_key_value_heads", "head_dim")
    raw = {name: value for name, value in raw.items() if value is not None or name not in optional}
    architecture = raw.get("model_type")
    known = architecture in ("llama", "qwen2", "qwen3")
    expect(known, "model_type", "llama, qwen2 or qwen3", architecture)
    _refuse_other_architectures(raw)
    theta, scaling = _read_rope(raw)
    bias = bool(raw.get("attention_bias", False))
    return Config(
        vocab_size=_positive(raw, "vocab_size", types=int),
        intermediate_size=_positive(raw, "intermediate_size", types=int),
        num_hidden_layers=_positive(raw, "num_hidden_layers", types=int),
        **_read_heads(raw),
        rms_norm_eps=_positive(raw, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=bias or architecture == "qwen2",
        o_bias=bias and architecture != "qwen2",
        mlp_bias=bool(raw.get("mlp_bias", False)) and architecture == "llama",
        qk_norm=architecture == "qwen3",
    )


def _positive(raw: dict, field: str, default=None, types=(int, float)):
    value = raw.get(field, default)
    expected = "a positive integer" if types is int else "a positive number"
    expect(is_positive(value, types), field, expected, value)
    return value


def _read_heads(raw: dict) -> dict[str, int]:
    """hidden_size and how it is cut into heads, with transformers' defaults."""
    d = _positive(raw, "hidden_size", types=int)
    heads = _positive(raw, "num_attention_heads", types=int)
    kv_heads = _positive(raw, "num_key_value_heads", heads, int)
    multiple = f"a multiple of num_key_value_heads={kv_heads}"
    expect(heads % kv_heads == 0, "num_attention_heads", multiple, heads)
    if raw["model_type"] == "qwen3":
        default = 128
    else:
        default = d // heads
        divides = "head_dim" in raw or d % heads == 0
        expect(divides, "hidden_size", f"a multiple of num_attention_heads={heads}", d)
    head_dim = _positive(raw, "head_dim", default, int)
    expect(head_dim % 2 == 0, "head_dim", "an even number", head_dim)
    return {
        "hidden_size": d,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


def _refuse_other_architectures(raw: dict) -> None:
    window = raw.get("sliding_window")
    sliding = raw.get("use_sliding_window") or (raw["model_type"] == "llama" and window)
    expect(not sliding, "use_sliding_window", "full attention (no sliding window)", window)
    layers = set(raw.get("layer_types") or ["full_attention"])
    full = layers == {"full_attention"}
    expect(full, "layer_types", "only full_attention", sorted(layers))
    for field in ("num_experts", "num_local_experts", "n_routed_experts"):
        expect(not raw.get(field), field, "a dense model (no mixture of experts)", raw.get(field))
    activation = raw.get("hidden_act", "silu")
    expect(activation == "silu", "hidden_act", "silu", activation)
    quantized = raw.get("quantization_config")
    expect(not quantized, "quantization_config", "unquantized weights", quantized)


def _read_rope(raw: dict) -> tuple[float, dict]:
    """(rope_theta, scaling), from transformers 4 (`rope_scaling`) or 5 (`rope_parameters`)."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    flat = isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values())
    expect(flat, "rope_parameters or rope_scaling", "one flat object", rope)
    rope = {"rope_theta": raw.get("rope_theta") or 10000.0, **rope}
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor") or 1.0)
    expect(partial == 1.0, "partial_rotary_factor", "1.0", partial)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    expect(rope_type in ROPE_TYPES, "rope_type", "default, linear or llama3", rope_type)
    theta = float(_positive(rope, "rope_theta"))
    numbers = {field: float(_positive(rope, field)) for field in ROPE_TYPES[rope_type]}
    return theta, {"rope_type": rope_type, **numbers} if numbers else {}
