"""config.json: what is read of it, and what would give wrong numbers is refused."""

import copy
import importlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import LLAMA3_SCALING, QWEN_YARN, close, hf_class, logits_of, random_ids, refuses

from minisoft.io.atomic import write_json
from minisoft.io.checkpoint import load_model
from minisoft.io.config import read_config
from minisoft.model import rope_frequencies


def rewritten(raw, form):
    """The config.json of transformers 4 or 5, whichever wrote `raw`."""
    rope = dict(raw.pop("rope_parameters", None) or raw.pop("rope_scaling", None) or {})
    raw.pop("rope_scaling", None)
    theta = rope.pop("rope_theta", None) or raw.pop("rope_theta")
    kind = rope.pop("rope_type", "default")
    if form == "transformers 5":
        return {**raw, "rope_parameters": {"rope_theta": theta, "rope_type": kind, **rope}}
    name = "rope_type" if form == "transformers 4" else "type"
    scaling = None if kind == "default" else {name: kind, **rope}
    return {**raw, "rope_theta": theta, "rope_scaling": scaling}


ROPES = "llama-gqa llama-linear llama3 llama-yarn qwen2 qwen2-yarn qwen3".split()


@pytest.mark.parametrize("architecture", ROPES)
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


PLAIN = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
PLAIN |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
PLAIN |= {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu"}
PLAIN |= {"tie_word_embeddings": False}
GONE = "..."


def given(fields):
    """The fields, and those of objects in them, that are not GONE."""
    inner = {name: given(x) if isinstance(x, dict) else x for name, x in fields.items()}
    return {name: value for name, value in inner.items() if value != GONE}


def raw_config(**changes):
    return given({**PLAIN, **changes})


WINDOW = {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 128}
GIVEN = {"YARN": QWEN_YARN, "LLAMA3": LLAMA3_SCALING, "WINDOW": WINDOW}


def changes_of(text):
    """JSON, in which fields of GIVEN stand by their name; a later one of the same name counts."""
    for name, fields in GIVEN.items():
        text = text.replace(name, json.dumps(fields)[1:-1])
    return json.loads(text)


TABLES = (Path(__file__).parent / "configs.txt").read_text("utf-8")
TABLES = [table.splitlines()[1:] for table in re.split("^# ", TABLES, flags=re.M)[1:]]
REFUSED = [line.split(" :: ") for line in TABLES[0]]  # changes, and what a message names
REFUSED = [(changes_of(row[-1]), *row[:-1]) for row in REFUSED]
REFUSED.append(({"rope_theta": 10**400}, "rope_theta", "a positive number"))
READ, FIELDS = [[changes_of(text) for text in table] for table in TABLES[1:]]
ODD = {"tie_word_embeddings": ["false"], "attention_bias": [1], "max_position_embeddings": ["2048"]}
ODD |= {"num_local_experts": [8], "partial_rotary_factor": [0.5], "transformers_weights": ["old"]}
ODD |= {"hidden_size": [-32], "num_hidden_layers": ["2"], "intermediate_size": [48.5]}
ODD |= {"num_attention_heads": [True], "num_key_value_heads": [0], "rope_scaling": ["linear"]}
ODD |= {"rms_norm_eps": ["small", -1e-5, None], "rope_theta": ["large", -1.0, None]}
REFUSED += [({name: x}, name, f"found {x!r}") for name, values in ODD.items() for x in values]


@pytest.mark.parametrize("changes, parts", [(row[0], row[1:]) for row in REFUSED], ids=str)
def test_a_config_that_would_give_wrong_numbers_is_refused(changes, parts):
    refuses(raw_config(**changes), *parts, by=read_config)


def test_a_config_as_the_hub_has_it_is_read():
    for changes in READ:
        assert read_config(raw_config(**changes)).hidden_size == 32, changes


def frequencies_and_factor(raw):
    """Those of transformers for a config.json, float32 (D/2,) and a number."""
    kind = raw["model_type"]
    fields = {field: copy.deepcopy(raw[field]) for field in raw if field != "model_type"}
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    rope = getattr(module, f"{kind.capitalize()}RotaryEmbedding")(
        hf_class(kind, "Config", **fields)
    )
    return rope.inv_freq, rope.attention_scaling


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("changes", FIELDS, ids=str)
def test_rope_fields_in_any_combination_are_read_as_by_transformers(kind, changes):
    raw = raw_config(model_type=kind, head_dim=64, max_position_embeddings=2048, **changes)
    config = read_config(raw)
    frequencies, factor = frequencies_and_factor(raw)
    torch.testing.assert_close(rope_frequencies(config), frequencies, atol=0, rtol=3e-7)
    assert config.rope_scaling.get("attention_factor", 1.0) == pytest.approx(factor, rel=1e-12)


WINDOWS = [("qwen2", {"sliding_window": 16, "max_window_layers": 2}, 0)]
WINDOWS += [("qwen2", {"max_window_layers": 0, "layer_types": ["full_attention"] * 2}, 0)]
WINDOWS += [
    ("qwen3", {"sliding_window": x, "max_window_layers": 0}, n) for x, n in ((None, 0), (16, 2))
]
WINDOWS += [("qwen2", {"max_window_layers": 1}, 1)]


@pytest.mark.parametrize("kind, layers, sliding", WINDOWS)
def test_a_window_is_refused_where_a_layer_of_transformers_has_one(kind, layers, sliding):
    window = {"use_sliding_window": True, **layers}
    theirs = hf_class(kind, "Config", num_hidden_layers=2, **window)
    assert theirs.layer_types.count("sliding_attention") == sliding
    raw = raw_config(model_type=kind, **window)
    if sliding:
        refuses(raw, "sliding_window: expected full attention in all layers", by=read_config)
    else:
        assert read_config(raw).num_hidden_layers == 2


def test_max_position_embeddings_is_read_and_yarn_extends_it():
    def length(**changes):
        return read_config(raw_config(**changes)).max_positions

    assert length() is None
    assert length(max_position_embeddings=2048, rope_scaling=LLAMA3_SCALING) == 2048
    assert length(max_position_embeddings=64, rope_scaling=QWEN_YARN) == 256
    assert length(max_position_embeddings=512, rope_scaling=QWEN_YARN) == 512


LEFT_OUT = {"llama": (False, False, 8), "qwen2": (True, False, 8), "qwen3": (False, True, 128)}


@pytest.mark.parametrize("kind, expected", LEFT_OUT.items())
def test_what_a_config_leaves_out_is_as_in_transformers(kind, expected):
    config = read_config(raw_config(model_type=kind))
    assert (config.qkv_bias, config.qk_norm, config.head_dim) == expected and not config.o_bias
    assert read_config(raw_config(model_type=kind, rms_norm_eps=GONE)).rms_norm_eps == 1e-6
    assert read_config(raw_config(num_key_value_heads=GONE)).num_key_value_heads == 4
