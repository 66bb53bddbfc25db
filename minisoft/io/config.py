"""config.json -> Config, for Llama, Qwen2 and Qwen3 as transformers 4 and 5 write them."""

import math
import sys

from minisoft.errors import InputError, expect
from minisoft.model import Config

ROPE_TYPES = {  # type -> the numbers it needs
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}


def read_config(raw: dict) -> Config:
    """The dict of a config.json -> Config.  Raises InputError for what would give wrong numbers."""
    optional = ("num_key_value_heads", "head_dim")
    raw = {name: value for name, value in raw.items() if value is not None or name not in optional}
    architecture = raw.get("model_type")
    known = architecture in ("llama", "qwen2", "qwen3")
    expect(known, "model_type", "llama, qwen2 or qwen3", architecture)
    _refuse_other_architectures(raw)
    layers = _positive(raw, "num_hidden_layers", types=int)
    _refuse_windows(raw, layers)
    theta, scaling = _read_rope(raw)
    bias = read_flag(raw, "attention_bias")
    return Config(
        vocab_size=_positive(raw, "vocab_size", types=int),
        intermediate_size=_positive(raw, "intermediate_size", types=int),
        num_hidden_layers=layers,
        **_read_heads(raw),
        rms_norm_eps=_positive(raw, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=read_flag(raw, "tie_word_embeddings"),
        qkv_bias=bias or architecture == "qwen2",
        o_bias=bias and architecture != "qwen2",
        mlp_bias=read_flag(raw, "mlp_bias") and architecture == "llama",
        qk_norm=architecture == "qwen3",
        max_positions=_read_length(raw, scaling),
    )


def _positive(raw: dict, field: str, default=None, types=(int, float)):
    value = raw.get(field, default)
    expected = "a positive integer" if types is int else "a positive number"
    number = isinstance(value, types) and not isinstance(value, bool)
    expect(number and 0 < value <= sys.float_info.max, field, expected, value)
    return value


def read_flag(values: dict, field: str, default: bool = False, where: str = "") -> bool:
    value = values.get(field)
    value = default if value is None else value
    expect(isinstance(value, bool), f"{where}{field}", "true or false", value)
    return value


def _read_heads(raw: dict) -> dict[str, int]:
    """hidden_size and how it is cut into heads, with transformers' defaults."""
    d = _positive(raw, "hidden_size", types=int)
    heads = _positive(raw, "num_attention_heads", types=int)
    kv_heads = _positive(raw, "num_key_value_heads", heads, int)
    multiple = f"a multiple of num_key_value_heads={kv_heads}"
    expect(heads % kv_heads == 0, "num_attention_heads", multiple, heads)
    if raw["model_type"] != "qwen3" and "head_dim" not in raw:
        expect(d % heads == 0, "hidden_size", f"a multiple of num_attention_heads={heads}", d)
    default = 128 if raw["model_type"] == "qwen3" else d // heads
    head_dim = _positive(raw, "head_dim", default, int)
    expect(head_dim % 2 == 0, "head_dim", "an even number", head_dim)
    sizes = {"hidden_size": d, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return {**sizes, "head_dim": head_dim}


def _refuse_other_architectures(raw: dict) -> None:
    for field in ("num_experts", "num_local_experts", "n_routed_experts"):
        expect(not raw.get(field), field, "a dense model (no mixture of experts)", raw.get(field))
    activation = raw.get("hidden_act", "silu")
    expect(activation == "silu", "hidden_act", "silu", activation)
    weights = raw.get("transformers_weights") or "model.safetensors"
    expect(weights == "model.safetensors", "transformers_weights", "model.safetensors", weights)
    quantized = raw.get("quantization_config")
    expect(not quantized, "quantization_config", "unquantized weights", quantized)


def _refuse_windows(raw: dict, layers: int) -> None:
    """Raises InputError where a layer has a sliding window.  Llama's have none, whatever the fields
    say; Qwen's are named by layer_types, else they are those from max_window_layers on."""
    if raw["model_type"] == "llama":
        return
    types = raw.get("layer_types")
    if types is not None:
        full = isinstance(types, list) and all(kind == "full_attention" for kind in types)
        expect(full, "layer_types", "only full_attention", types)
        return
    window = raw.get("sliding_window", 4096) if read_flag(raw, "use_sliding_window") else None
    first = raw.get("max_window_layers", 28)
    if window is not None and not (isinstance(first, int) and first >= layers):
        found = f"{window} in layers from max_window_layers={first} on"
        raise InputError(f"sliding_window: expected full attention in all layers, found {found}")


def _read_length(raw: dict, scaling: dict) -> int | None:
    """How many positions the model is made for, None where nothing is said."""
    if raw.get("max_position_embeddings") is None:
        return None
    length = _positive(raw, "max_position_embeddings", types=int)
    if scaling.get("rope_type") != "yarn":
        return length  # Qwen's folders keep the original length where yarn is switched on
    return max(length, int(scaling["factor"] * scaling["original_max_position_embeddings"]))


def _read_rope(raw: dict) -> tuple[float, dict]:
    """(rope_theta, scaling), from transformers 4 (`rope_scaling`) or 5 (`rope_parameters`).  Both,
    and different, are refused: transformers 4 and 5 would not have the same rope_theta."""
    given = [field for field in ("rope_scaling", "rope_parameters") if raw.get(field)]
    read = [_read_dialect(raw, field) for field in given or ["rope_parameters"]]
    expected = "the same as rope_parameters, its rope_theta included, or only one of the two"
    expect(read[0] == read[-1], "rope_scaling", expected, raw.get("rope_scaling"))
    return read[0]


def _read_dialect(raw: dict, field: str) -> tuple[float, dict]:
    """What one of the fields says, with the older fields around it where it is silent."""
    rope = raw.get(field) or {}
    flat = isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values())
    expect(flat, field, "one flat object", rope)
    rope = {"rope_theta": raw.get("rope_theta", 10000.0), **rope}
    length = rope.get("original_max_position_embeddings", raw.get("max_position_embeddings"))
    rope["original_max_position_embeddings"] = raw.get("original_max_position_embeddings", length)
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor") or 1.0)
    expect(partial == 1.0, "partial_rotary_factor", "1.0", partial)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    known = isinstance(rope_type, str) and rope_type in ROPE_TYPES
    expect(known, "rope_type", "default, linear, llama3 or yarn", rope_type)
    theta = float(_positive(rope, "rope_theta"))
    numbers = {name: float(_positive(rope, name)) for name in ROPE_TYPES[rope_type]}
    if rope_type == "llama3":
        low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
        expect(high > low, "high_freq_factor", f"more than low_freq_factor={low}", high)
    if rope_type == "yarn":
        expect(theta > 1, "rope_theta", "more than 1", theta)
        numbers |= _read_yarn(rope)
    return theta, {"rope_type": rope_type, **numbers} if numbers else {}


def _read_yarn(rope: dict) -> dict:
    """What yarn may leave out, with transformers' defaults; there, 0 and null leave out too."""
    given = {name: value for name, value in rope.items() if value}
    betas = {"beta_fast": 32.0, "beta_slow": 1.0}
    betas = {name: float(_positive(given, name, usual)) for name, usual in betas.items()}
    truncate = rope.get("truncate", True)
    expect(isinstance(truncate, bool), "truncate", "true or false", truncate)

    def scale(by: float) -> float:
        return 0.1 * by * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    attention = scale(1.0)  # by which cosines and sines are multiplied
    if rope.get("attention_factor") is not None:
        attention = float(_positive(rope, "attention_factor"))
    elif "mscale" in given and "mscale_all_dim" in given:  # DeepSeek's, only together
        attention = scale(_positive(given, "mscale")) / scale(_positive(given, "mscale_all_dim"))
    return {**betas, "truncate": truncate, "attention_factor": attention}
