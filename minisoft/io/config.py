"""config.json -> Config, for Llama, Qwen2 and Qwen3 as transformers 4 and 5 write them."""

from minisoft.errors import InputError
from minisoft.model import Config


def read_config(raw: dict) -> Config:
    """The dict of a config.json -> Config.  Raises InputError for whatever would give wrong numbers."""
    raw = {k: v for k, v in raw.items() if v is not None or k not in ("num_key_value_heads", "head_dim")}
    kind = raw.get("model_type")
    _check("model_type", kind, "llama, qwen2 or qwen3", kind in ("llama", "qwen2", "qwen3"))
    _refuse_other_architectures(raw)
    whole = {name: _positive(raw, name, kind=int) for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
    d, heads = whole["hidden_size"], whole["num_attention_heads"]
    kv_heads = _positive(raw, "num_key_value_heads", heads, int)
    _check("num_attention_heads", heads, f"a multiple of num_key_value_heads={kv_heads}", heads % kv_heads == 0)
    own_head_dim = kind == "qwen3" or "head_dim" in raw
    _check("hidden_size", d, f"a multiple of num_attention_heads={heads}", own_head_dim or d % heads == 0)
    head_dim = _positive(raw, "head_dim", 128 if kind == "qwen3" else d // heads, int)  # transformers' defaults
    _check("head_dim", head_dim, "an even number", head_dim % 2 == 0)
    theta, scaling = _read_rope(raw)
    bias = bool(raw.get("attention_bias", False))
    return Config(**whole, num_key_value_heads=kv_heads, head_dim=head_dim,
               rms_norm_eps=_positive(raw, "rms_norm_eps", 1e-6), rope_theta=theta, rope_scaling=scaling,
               tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
               qkv_bias=bias or kind == "qwen2", o_bias=bias and kind != "qwen2",
               mlp_bias=bool(raw.get("mlp_bias", False)) and kind == "llama", qk_norm=kind == "qwen3")


def _check(field: str, found, expected: str, ok: bool) -> None:
    if not ok:
        raise InputError(f"{field}: expected {expected}, found {found!r}")


def _positive(raw: dict, field: str, default=None, kind=(int, float)):
    value = raw.get(field, default)
    number = isinstance(value, kind) and not isinstance(value, bool) and value > 0
    _check(field, value, "a positive integer" if kind is int else "a positive number", number)
    return value


def _refuse_other_architectures(raw: dict) -> None:
    sliding = raw.get("use_sliding_window") or (raw.get("model_type") == "llama" and raw.get("sliding_window"))
    _check("use_sliding_window", raw.get("sliding_window"), "full attention (no sliding window)", not sliding)
    layers = set(raw.get("layer_types") or ["full_attention"])
    _check("layer_types", sorted(layers), "only full_attention", layers == {"full_attention"})
    for field in ("num_experts", "num_local_experts", "n_routed_experts"):
        _check(field, raw.get(field), "a dense model (no mixture of experts)", not raw.get(field))
    _check("hidden_act", raw.get("hidden_act"), "silu", raw.get("hidden_act", "silu") == "silu")
    _check("quantization_config", "one", "unquantized weights", not raw.get("quantization_config"))


def _read_rope(raw: dict) -> tuple[float, dict]:
    """(rope_theta, scaling) from transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`)."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    flat = isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values())
    _check("rope_parameters or rope_scaling", rope, "one flat object", flat)
    rope = {"rope_theta": raw.get("rope_theta") or 10000.0, **rope}
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor") or 1.0)
    _check("partial_rotary_factor", partial, "1.0", partial == 1.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    needs = {"default": (), "linear": ("factor",),
             "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}
    _check("rope_type", kind, "default, linear or llama3", kind in needs)
    scaling = {field: float(_positive(rope, field)) for field in needs[kind]}
    return float(_positive(rope, "rope_theta")), {"rope_type": kind, **scaling} if scaling else {}
