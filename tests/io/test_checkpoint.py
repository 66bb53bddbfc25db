"""A Hugging Face folder is read strictly, with one line for every failure, and written for
transformers to read."""

import json
import os
import shutil

import pytest
import torch
from conftest import random_model, write_json
from safetensors.torch import load_file, save_file

import minisoft
from minisoft.errors import InputError
from minisoft.io import checkpoint
from minisoft.io.atomic import read_json, recover
from minisoft.io.checkpoint import SIDECAR, find, load_model, read_about, read_files, save_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
IDS = torch.arange(40).view(2, 20) * 7 % 512


@torch.no_grad()
def logits_of(model, ids=IDS):
    return model.logits(model(model.embed(ids)))


def rewrite(folder, change):
    """Apply `change` to the dict of tensors in model.safetensors."""
    tensors = load_file(folder / WEIGHTS)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def refuses(folder, *parts, load=load_model):
    """`load(folder)` raises an InputError of one line that has all `parts`."""
    with pytest.raises(InputError) as error:
        load(folder)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message
    return message


@pytest.fixture
def sharded(saved, tmp_path):
    saved("llama-gqa")[0].save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


# ---------------------------------------------------------------- reading


def test_sharded_weights_are_the_single_file_ones(both, sharded):
    assert not (sharded / WEIGHTS).exists()
    assert torch.equal(logits_of(load_model(sharded)), logits_of(both("llama-gqa")[1]))


@pytest.mark.parametrize("architecture", ["llama-tied", "qwen3-tied"])
def test_a_tied_head_may_be_stored_or_not(both, saved, tmp_path, architecture):
    shutil.copytree(saved(architecture)[1], tmp_path, dirs_exist_ok=True)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    rewrite(
        tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    model = load_model(tmp_path)
    assert model.W_d is model.E
    assert torch.equal(logits_of(model), logits_of(both(architecture)[1]))


@pytest.mark.parametrize("in_shards", [False, True])
@torch.no_grad()
def test_a_tied_model_may_be_stored_under_the_name_of_its_head_alone(saved, tmp_path, in_shards):
    """As safetensors.torch.save_model writes it; transformers reads it, and what is exported."""
    from transformers import AutoModelForCausalLM

    source = tmp_path / "source"
    saved("qwen2-tied")[0].save_pretrained(source, max_shard_size="40KB" if in_shards else "5GB")
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    file = source / WEIGHTS
    if in_shards:
        places = json.loads((source / INDEX).read_text())["weight_map"]
        file = source / places[embedding]
        edit_json(
            source / INDEX,
            lambda index: index["weight_map"].update({head: index["weight_map"].pop(embedding)}),
        )
    tensors = load_file(file)
    tensors[head] = tensors.pop(embedding)
    save_file(tensors, file, {"format": "pt"})
    model = load_model(source)
    assert model.W_d is model.E
    save_model(tmp_path / "out", model, read_files(source), {})
    for folder in (source, tmp_path / "out"):
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        torch.testing.assert_close(logits_of(model), theirs(IDS).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_single_file_goes_before_an_index_as_in_transformers(both, saved, sharded):
    """Also before one whose shards are gone."""
    from transformers import AutoModelForCausalLM

    other = random_model("llama-gqa")
    other.model.embed_tokens.weight.mul_(2)
    other.save_pretrained(sharded.parent / "other")
    shutil.copy(sharded.parent / "other" / WEIGHTS, sharded)
    for _ in range(2):
        theirs = AutoModelForCausalLM.from_pretrained(sharded).eval()
        found = logits_of(load_model(sharded))
        torch.testing.assert_close(found, theirs(IDS).logits, atol=1e-5, rtol=0)
        assert not torch.allclose(found, logits_of(both("llama-gqa")[1]), atol=1e-2)
        for shard in sharded.glob("model-*.safetensors"):
            shard.unlink()


def test_an_untied_head_is_its_own(both):
    theirs, ours = both("llama-gqa")
    assert torch.equal(ours.W_d, theirs.lm_head.weight) and not torch.equal(ours.W_d, ours.E)


def test_old_rotary_frequencies_are_ignored(both, saved, tmp_path):
    shutil.copytree(saved("llama3")[1], tmp_path, dirs_exist_ok=True)
    rewrite(
        tmp_path,
        lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}),
    )
    assert torch.equal(logits_of(load_model(tmp_path)), logits_of(both("llama3")[1]))


@pytest.mark.parametrize(
    "stored, asked, expected",
    [
        ("float32", None, "float32"),
        ("bfloat16", None, "bfloat16"),
        ("float16", None, "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("bfloat16", "float32", "float32"),
    ],
)
def test_dtype_is_the_asked_one_else_bfloat16_where_stored_so_else_float32(
    saved, tmp_path, stored, asked, expected
):
    shutil.copytree(saved("llama-tied")[1], tmp_path, dirs_exist_ok=True)
    rewrite(
        tmp_path, lambda t: t.update({name: x.to(getattr(torch, stored)) for name, x in t.items()})
    )
    model = load_model(tmp_path, dtype=asked and getattr(torch, asked))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, expected)}
    assert model.frequencies.dtype == torch.float32


def test_load_gives_the_model_and_its_tokenizer(model_folder):
    model, tokenizer = minisoft.load(str(model_folder))
    assert tokenizer.size <= model.config.vocab_size == 512
    assert all(p.requires_grad and p.device.type == "cpu" for p in model.parameters())


# ---------------------------------------------------------------- what is refused

NAME = "model.layers.1.mlp.up_proj.weight"


def test_a_missing_tensor(model_folder):
    rewrite(model_folder, lambda t: t.pop(NAME))
    refuses(model_folder, model_folder / WEIGHTS, NAME, (48, 32))


def test_an_unexpected_tensor(model_folder):
    rewrite(
        model_folder, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})
    )
    refuses(model_folder, model_folder / WEIGHTS, "model.layers.0.self_attn.q_proj.bias")


def test_a_missing_untied_head(saved, tmp_path):
    shutil.copytree(saved("llama-gqa")[1], tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, lambda t: t.pop("lm_head.weight"))
    refuses(tmp_path, tmp_path / WEIGHTS, "lm_head.weight", (512, 32), "tie_word_embeddings")


def test_a_wrong_shape(model_folder):
    rewrite(model_folder, lambda t: t.update({NAME: torch.zeros(32, 48)}))
    refuses(model_folder, model_folder / WEIGHTS, NAME, (48, 32), (32, 48))


def test_integer_weights(model_folder):
    rewrite(model_folder, lambda t: t.update({NAME: torch.zeros(48, 32, dtype=torch.int8)}))
    refuses(model_folder, model_folder / WEIGHTS, NAME, "I8", "bfloat16")


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_a_truncated_file(model_folder, size):
    path = model_folder / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    refuses(model_folder, path, len(whole[:size]))


def test_no_weights(model_folder):
    (model_folder / WEIGHTS).unlink()
    refuses(model_folder, model_folder / WEIGHTS)


@pytest.mark.parametrize("head", [torch.ones(512, 32), torch.ones(500, 32)])
def test_another_head_in_a_tied_model(model_folder, head):
    rewrite(model_folder, lambda t: t.update({"lm_head.weight": head}))
    refuses(model_folder, model_folder / WEIGHTS, "lm_head.weight")


def test_a_head_without_its_embedding(saved, tmp_path):
    shutil.copytree(saved("llama-gqa")[1], tmp_path, dirs_exist_ok=True)
    rewrite(tmp_path, lambda t: t.pop("model.embed_tokens.weight"))
    refuses(tmp_path, tmp_path / WEIGHTS, "model.embed_tokens.weight", (512, 32))


def test_weights_of_another_format(model_folder):
    (model_folder / WEIGHTS).rename(model_folder / "pytorch_model.bin")
    refuses(model_folder, model_folder / WEIGHTS, "pytorch_model.bin")


def test_an_adapter(model_folder):
    write_json(model_folder / "adapter_config.json", {"peft_type": "LORA"})
    refuses(model_folder, model_folder / "adapter_config.json", "merge", "remove")
    (model_folder / WEIGHTS).unlink()
    assert "remove" not in refuses(model_folder, model_folder / "adapter_config.json", "merge")


def test_a_tensor_that_the_index_forgets(saved, tmp_path):
    """transformers reads what lies in the shards: here a head that a tied model would have."""
    saved("llama-tied")[0].save_pretrained(tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    save_file({**load_file(shard), "lm_head.weight": torch.ones(512, 32)}, shard, {"format": "pt"})
    refuses(tmp_path, tmp_path / INDEX, "lm_head.weight", "tie_word_embeddings")
    head = load_file(shard)["model.embed_tokens.weight"].clone()
    save_file({**load_file(shard), "lm_head.weight": head}, shard, {"format": "pt"})
    assert torch.equal(load_model(tmp_path).E, head)


def test_a_missing_shard(sharded):
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    refuses(sharded, gone)


def test_an_index_that_lacks_a_tensor_of_its_shards(both, sharded):
    """It is read as transformers does, unless no tensor of its shard is named."""
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    edit_json(sharded / INDEX, lambda index: index["weight_map"].pop(NAME))
    assert torch.equal(logits_of(load_model(sharded)), logits_of(both("llama-gqa")[1]))
    kept = {name: file for name, file in places.items() if file != places[NAME]}
    write_json(sharded / INDEX, {"weight_map": kept})
    refuses(sharded, sharded / INDEX, "found no such tensor")


def test_shards_without_an_index(sharded):
    (sharded / INDEX).unlink()
    refuses(sharded, sharded / WEIGHTS, "model-00001-of", INDEX)


def test_the_value_head_of_trl_is_left_out(model_folder, capsys):
    whole = load_model(model_folder)
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    rewrite(model_folder, lambda t: t.update(head))
    assert torch.equal(logits_of(load_model(model_folder)), logits_of(whole))
    (line,) = capsys.readouterr().err.splitlines()
    assert str(model_folder / WEIGHTS) in line and all(name in line for name in head)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_pointer_of_git_lfs(model_folder, name):
    (model_folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    refuses(model_folder, model_folder / name, "git lfs pull", load=minisoft.load)


def test_an_index_naming_a_tensor_that_the_shard_lacks(sharded):
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    other = next(file for file in places.values() if file != places[NAME])
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({NAME: other}))
    refuses(sharded, sharded / other, NAME)


@pytest.mark.parametrize(
    "where",
    ["../model.safetensors", "/model.safetensors", "sub/model.safetensors", "..", "config.json"],
)
def test_an_index_leaving_the_folder(sharded, where):
    shutil.copyfile(next(sharded.glob("*.safetensors")), sharded.parent / WEIGHTS)
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({NAME: where}))
    refuses(sharded, sharded / INDEX, NAME, repr(where))


@pytest.mark.parametrize("places", [None, [], "model.safetensors", {NAME: 3}])
def test_an_index_without_a_weight_map(sharded, places):
    write_json(sharded / INDEX, {"weight_map": places})
    refuses(sharded, sharded / INDEX, "weight_map")


@pytest.mark.parametrize("text", ["{not json", "[1, 2]", "", "\xff\xfe"])
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_bad_json(sharded, name, text):
    (sharded / name).write_bytes(text.encode("latin1"))
    message = refuses(sharded, sharded / name, "JSON")
    assert message.count(name) == 1


def test_no_config(model_folder):
    (model_folder / "config.json").unlink()
    message = refuses(model_folder, model_folder / "config.json", "no such file")
    assert message.count("config.json") == 1


def test_a_bad_config_is_named(model_folder):
    edit_json(model_folder / "config.json", lambda config: config.update(hidden_act="gelu"))
    refuses(model_folder, model_folder / "config.json", "hidden_act", "silu", "gelu")


def test_a_vocabulary_smaller_than_the_tokenizer(model_folder):
    edit_json(model_folder / "config.json", lambda config: config.update(vocab_size=300))
    rewrite(model_folder, lambda t: t.update({"model.embed_tokens.weight": torch.zeros(300, 32)}))
    refuses(model_folder, model_folder, "tokenizer", "300", load=minisoft.load)


def shorten(folder, rows):
    """A model of only the first rows of its vocabulary."""
    edit_json(folder / "config.json", lambda config: config.update(vocab_size=rows))
    name = "model.embed_tokens.weight"
    rewrite(folder, lambda t: t.update({name: t[name][:rows].clone()}))


def test_an_added_token_needs_no_row_but_a_token_of_the_vocabulary_does(model_folder):
    """The Llama 3 tokenizer of the tests ends with three special tokens; here is one more."""
    from tokenizers import Tokenizer

    path = model_folder / "tokenizer.json"
    codec = Tokenizer.from_file(str(path))
    codec.add_special_tokens(["[PAD]"])
    codec.save(str(path))
    words = codec.get_vocab_size(with_added_tokens=False)
    shorten(model_folder, words)
    model, tokenizer = minisoft.load(model_folder)
    assert tokenizer.size > model.config.vocab_size == words
    shorten(model_folder, words - 1)
    refuses(model_folder, f"{model_folder}: tokenizer", words - 1, words, load=minisoft.load)


# ---------------------------------------------------------------- finding


def test_a_folder_is_found(model_folder, monkeypatch):
    assert find(str(model_folder)) == model_folder
    monkeypatch.chdir(model_folder.parent)
    assert find("model").samefile(model_folder)


@pytest.mark.parametrize("name", ["nowhere", "/no/where", "./no", "../a/b", "~/model", "a/b/c"])
def test_a_folder_that_does_not_exist(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refuses(name, "no such folder", load=find)


def test_a_hub_id_that_cannot_be_reached(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path / "weights")
    target = tmp_path / "weights" / "nobody--model"
    refuses("nobody/model", f"hf download nobody/model --local-dir {target}", load=find)
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    assert find("nobody/model") == target


def test_a_hub_id_is_found_in_the_cache_of_the_hub_without_a_network(model_folder, monkeypatch):
    import huggingface_hub.constants

    cache = model_folder.parent / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(checkpoint, "WEIGHTS", cache)
    for owner in ("alice", "bob"):
        root, commit = cache / f"models--{owner}--model", owner[0] * 40
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
        shutil.copytree(model_folder, root / "snapshots" / commit)
        assert find(f"{owner}/model").samefile(root / "snapshots" / commit)
        refuses(root, root, root / "snapshots" / commit)
        assert torch.equal(load_model(find(f"{owner}/model")).E, load_model(model_folder).E)


# ---------------------------------------------------------------- writing


def test_what_is_written_is_what_transformers_reads(saved, tokenizer_folders, tmp_path):
    """Identical logits, and identical greedy text; for every kind of head and bias."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for architecture, tokens in (
        ("llama3-tied", "llama3"),
        ("qwen2", "qwen"),
        ("qwen3-yarn", "qwen"),
    ):
        source, target = tmp_path / architecture, tmp_path / f"{architecture}-out"
        shutil.copytree(saved(architecture)[1], source)
        shutil.copytree(tokenizer_folders[tokens], source, dirs_exist_ok=True)
        model, tokenizer = minisoft.load(source)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        save_model(target, model, read_files(source), {})
        theirs = AutoModelForCausalLM.from_pretrained(target).eval()
        assert theirs.dtype == torch.float32
        assert torch.equal(theirs(IDS).logits, logits_of(model))
        theirs.generation_config.eos_token_id = None
        prompt = AutoTokenizer.from_pretrained(target)(
            "Mia has 3 pears.", return_tensors="pt"
        ).input_ids
        assert prompt[0].tolist() == tokenizer.encode("Mia has 3 pears.")
        written = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=20,
            pad_token_id=0,
        )[0]
        ids = prompt
        for _ in range(20):
            ids = torch.cat((ids, logits_of(model, ids)[:, -1:].argmax(-1)), dim=1)
        assert written.tolist() == ids[0].tolist()
        assert AutoTokenizer.from_pretrained(target).decode(
            written, skip_special_tokens=True, clean_up_tokenization_spaces=False
        ) == tokenizer.decode(ids[0].tolist())


def test_bfloat16_is_written_as_bfloat16(model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = load_model(model_folder, dtype=torch.bfloat16)
    save_model(tmp_path / "out", model, read_files(model_folder), {})
    assert {t.dtype for t in load_file(tmp_path / "out" / WEIGHTS).values()} == {torch.bfloat16}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", torch_dtype="auto")
    assert theirs.dtype == torch.bfloat16
    again = load_model(tmp_path / "out")
    assert again.E.dtype == torch.bfloat16 and torch.equal(logits_of(again), logits_of(model))


def test_saving_replaces_the_model_and_leaves_what_else_lies_there(model_folder, tmp_path):
    model, target = load_model(model_folder), tmp_path / "runs" / "last"
    save_model(target, model, read_files(model_folder), {"step": 1})
    (target / "notes.md").write_text("mine")
    (target / "sub").mkdir()
    (target / "sub/plan").write_text("mine too")
    (target.with_name("last.being-written")).mkdir()
    (target.with_name("last.being-written") / "stray").write_text("of a crash")
    with torch.no_grad():
        model.E.mul_(2)
    save_model(target, model, read_files(model_folder), {"step": 2})
    assert [path.name for path in target.parent.iterdir()] == ["last"]
    assert (target / "notes.md").read_text() == "mine"
    assert (target / "sub/plan").read_text() == "mine too"
    assert {path.name for path in target.iterdir() if path.name not in ("notes.md", "sub")} == {
        "config.json",
        "generation_config.json",
        "minisoft.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert read_json(target / SIDECAR) == {"step": 2}
    assert torch.equal(load_model(target).E, model.E)


def test_saving_over_the_source(model_folder):
    model, before = load_model(model_folder), (model_folder / "tokenizer.json").read_bytes()
    with torch.no_grad():
        model.E.mul_(2)
    save_model(model_folder, model, read_files(model_folder), {})
    loaded, _ = minisoft.load(model_folder)
    assert torch.equal(loaded.E, model.E)
    assert (model_folder / "tokenizer.json").read_bytes() == before


def test_a_folder_from_elsewhere_has_no_sidecar(model_folder):
    assert read_json(model_folder / SIDECAR) == {}


GOOD_SIDECAR = {
    "prompt": "Q: QUESTION A:",
    "tokens": "a kind that is yet to be written",
    "noise": "hidden",
    "sigma": 0.1,
    "top_k": None,
    "data": "tiny",
    "step": 3,
    "defaults": {"prompts": 8, "lr": {"soft": 1e-5, "another kind": 2}, "data": "tiny"},
}


def test_a_sidecar_may_have_kinds_of_token_that_io_does_not_know(model_folder):
    for about in (GOOD_SIDECAR, {"defaults": {"lr": 6e-6, "cot": 80}}, {"defaults": {}}, {}):
        write_json(model_folder / SIDECAR, about)
        assert read_about(model_folder) == about


@pytest.mark.parametrize(
    "field, value",
    [
        ("prompt", "no place"),
        ("prompt", "QUESTION QUESTION"),
        ("tokens", ["soft"]),
        ("noise", None),
        ("data", 3),
        ("base", 3),
        ("sigma", "0.1"),
        ("gamma", 0),
        ("tau", -1),
        ("tau", True),
        ("top_k", 0),
        ("width", 0),
        ("width", "three"),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_p", None),
        ("top_k", 2.5),
        ("defaults", None),
        ("defaults", {"prompts": 1.5}),
        ("defaults", {"steps": 0}),
        ("defaults", {"data": 3}),
        ("defaults", {"lr": "1e-5"}),
        ("defaults", {"lr": {"soft": -1}}),
        ("defaults", {"no such flag": 1}),
    ],
)
def test_a_field_of_the_sidecar_that_cannot_be_used(model_folder, field, value):
    write_json(model_folder / SIDECAR, {"sigma": 0.1, field: value})
    refuses(model_folder, f"{model_folder / SIDECAR}: {field}: ", load=read_about)


@pytest.mark.parametrize("broken", ["save_tensors", "write_json"])
def test_a_failure_while_writing_leaves_the_old_one(model_folder, tmp_path, monkeypatch, broken):
    model, target = load_model(model_folder), tmp_path / "last"
    save_model(target, model, read_files(model_folder), {"step": 1})
    old = {path.name: path.read_bytes() for path in target.iterdir()}

    def fail(*arguments, **options):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, broken, fail)
        with pytest.raises(OSError, match="no space"):
            save_model(target, model, read_files(model_folder), {"step": 2})
    assert {path.name: path.read_bytes() for path in target.iterdir()} == old
    assert [path.name for path in tmp_path.iterdir() if path != model_folder] == ["last"]
    save_model(target, model, read_files(model_folder), {"step": 3})  # and the next one succeeds
    assert read_json(target / SIDECAR) == {"step": 3}


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_between_the_renames_is_undone(model_folder, tmp_path, renames):
    """Before the second one, and after it, before what else lay there has been moved."""
    model, target = load_model(model_folder), tmp_path / "runs" / "best"
    save_model(target, model, read_files(model_folder), {"step": 1})
    (target / "notes.md").write_text("mine")
    target.rename(target.with_name("best.being-replaced"))
    if renames == 2:
        save_model(tmp_path / "new", model, read_files(model_folder), {"step": 2})
        (tmp_path / "new").rename(target)
    recover(target)
    assert read_json(target / SIDECAR) == {"step": renames}
    save_model(target, model, read_files(model_folder), {"step": 3})
    assert (target / "notes.md").read_text() == "mine"
    assert [path.name for path in target.parent.iterdir()] == ["best"]


def test_a_folder_behind_a_link_stays_behind_it(model_folder, tmp_path):
    model, link, disk = load_model(model_folder), tmp_path / "run/last", tmp_path / "disk/last"
    link.parent.mkdir()
    disk.mkdir(parents=True)
    link.symlink_to(disk)
    for step in (1, 2):
        save_model(link, model, read_files(model_folder), {"step": step})
    disk.rename(disk.with_name("last.being-replaced"))
    recover(link)
    assert link.is_symlink() and read_json(disk / SIDECAR) == {"step": 2}
    assert [path.name for path in (*link.parent.iterdir(), *disk.parent.iterdir())] == ["last"] * 2


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_the_files_have_the_mode_that_the_umask_says(model_folder, tmp_path, mask):
    before = os.umask(mask)
    try:
        save_model(tmp_path / "out", load_model(model_folder), read_files(model_folder), {})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~mask) and WEIGHTS in modes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(model_folder, value):
    tensors = load_file(model_folder / WEIGHTS)
    tensors["model.norm.weight"][0] = value
    save_file(tensors, model_folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(
        InputError, match="model.norm.weight: expected finite numbers, found NaN or infinity"
    ):
        load_model(model_folder)


def test_the_weights_of_random_models_differ():
    """Otherwise parity would show nothing."""
    model = random_model("qwen2")
    assert all(p.std() > 0.1 for p in model.parameters())
