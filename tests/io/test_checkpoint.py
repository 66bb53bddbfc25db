"""A Hugging Face folder is read strictly, with one line for every failure, and written for
transformers to read."""

import os
import shutil
from functools import partial

import pytest
import torch
from conftest import close, logits_of, random_model, refuses, write_json
from safetensors.torch import load_file, save_file

import minisoft
from minisoft.io import checkpoint
from minisoft.io.atomic import read_json, recover
from minisoft.io.checkpoint import SIDECAR, find, load_model, name_of, read_about

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NAME = "model.layers.1.mlp.up_proj.weight"
GONE = ...  # a tensor that is to be absent
IDS = torch.arange(40).view(2, 20) * 7 % 512
refuses = partial(refuses, by=load_model)
logits_of = torch.no_grad()(partial(logits_of, ids=IDS))


def write_tensors(path, tensors):
    kept = {name: x.clone() for name, x in tensors.items() if x is not GONE}
    save_file(kept, path, {"format": "pt"})


def rewrite(folder, tensors):
    """The folder, with these tensors in model.safetensors."""
    write_tensors(folder / WEIGHTS, {**load_file(folder / WEIGHTS), **tensors})
    return folder


def edit_json(path, **fields):
    write_json(path, {**read_json(path), **fields})


def places_of(folder):
    return read_json(folder / INDEX)["weight_map"]


def save(folder, model, source, **about):
    """The model, with the other files of `source`."""
    checkpoint.save_model(folder, model, checkpoint.read_files(source), about)


def doubled(model):
    with torch.no_grad():
        model.E.mul_(2)
    return model


@pytest.fixture
def copy(saved, tmp_path):
    """copy(architecture, tensors) -> a copy of its folder, with these tensors in it."""

    def get(architecture, tensors=()):
        shutil.copytree(saved(architecture)[1], tmp_path, dirs_exist_ok=True)
        return rewrite(tmp_path, dict(tensors))

    return get


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
def test_a_tied_head_may_be_stored_or_not(both, copy, architecture):
    stored = load_file(copy(architecture) / WEIGHTS)
    assert HEAD not in stored
    model = load_model(copy(architecture, {HEAD: stored[EMBEDDING]}))
    assert model.W_d is model.E
    assert torch.equal(logits_of(model), logits_of(both(architecture)[1]))


@pytest.mark.parametrize("in_shards", [False, True])
@torch.no_grad()
def test_a_tied_model_may_be_stored_under_the_name_of_its_head_alone(saved, tmp_path, in_shards):
    """As safetensors.torch.save_model writes it; transformers reads it, and what is exported."""
    from transformers import AutoModelForCausalLM

    source = tmp_path / "source"
    saved("qwen2-tied")[0].save_pretrained(source, max_shard_size="40KB" if in_shards else "5GB")
    file = source / WEIGHTS
    if in_shards:
        places = places_of(source)
        file = source / places[EMBEDDING]
        edit_json(source / INDEX, weight_map={HEAD: places.pop(EMBEDDING), **places})
    tensors = load_file(file)
    write_tensors(file, {**tensors, HEAD: tensors[EMBEDDING], EMBEDDING: GONE})
    model = load_model(source)
    assert model.W_d is model.E
    save(tmp_path / "out", model, source)
    for folder in (source, tmp_path / "out"):
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        close(logits_of(model), theirs(IDS).logits)


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
        close(found, theirs(IDS).logits)
        assert not torch.allclose(found, logits_of(both("llama-gqa")[1]), atol=1e-2)
        for shard in sharded.glob("model-*.safetensors"):
            shard.unlink()


def test_old_rotary_frequencies_are_ignored(both, copy):
    folder = copy("llama3", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    assert torch.equal(logits_of(load_model(folder)), logits_of(both("llama3")[1]))


DTYPES = "float32 - float32, bfloat16 - bfloat16, float16 - float32, float32 bfloat16 bfloat16"


@pytest.mark.parametrize("dtypes", [*DTYPES.split(", "), "bfloat16 float32 float32"])
def test_dtype_is_the_asked_one_else_bfloat16_where_stored_so_else_float32(saved, copy, dtypes):
    stored, asked, expected = (getattr(torch, name, None) for name in dtypes.split())
    tensors = load_file(saved("llama-tied")[1] / WEIGHTS).items()
    model = load_model(copy("llama-tied", {n: x.to(stored) for n, x in tensors}), dtype=asked)
    assert {p.dtype for p in model.parameters()} == {expected}
    assert model.frequencies.dtype == torch.float32


# ---------------------------------------------------------------- what is refused

BIAS = "model.layers.0.self_attn.q_proj.bias"
NORM, ONES = "model.norm.weight", 31 * [1.0]
BAD = [(NAME, GONE, [(48, 32)]), (NAME, torch.zeros(32, 48), [(48, 32), (32, 48)])]
BAD += [(NAME, torch.zeros(48, 32, dtype=torch.int8), ["I8", "bfloat16"])]
BAD += [(BIAS, torch.zeros(32), []), *((HEAD, torch.ones(n, 32), []) for n in (512, 500))]
BAD += [(NORM, torch.tensor(x), ["NaN"]) for x in ([*ONES, torch.nan], [torch.inf, *ONES])]
BAD = [("llama3-tied", *row) for row in BAD]
BAD += [("llama-gqa", HEAD, GONE, [(512, 32), "tie_word_embeddings"])]
BAD += [("llama-gqa", EMBEDDING, GONE, [(512, 32)])]


@pytest.mark.parametrize("architecture, name, tensor, parts", BAD)
def test_a_tensor_that_is_missing_unexpected_or_of_no_use(copy, architecture, name, tensor, parts):
    folder = copy(architecture, {name: tensor})
    refuses(folder, folder / WEIGHTS, name, *parts)


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_a_truncated_file(model_folder, size):
    path = model_folder / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    refuses(model_folder, path, len(whole[:size]))


def test_a_file_that_is_missing_or_of_another_format_is_named(model_folder, sharded):
    gone, other = sorted(sharded.glob("*.safetensors"))[1], model_folder / "pytorch_model.bin"
    gone.unlink()
    refuses(sharded, gone)
    (sharded / INDEX).unlink()
    refuses(sharded, sharded / WEIGHTS, "model-00001-of", INDEX)
    (model_folder / WEIGHTS).rename(other)
    refuses(model_folder, model_folder / WEIGHTS, "pytorch_model.bin")
    other.unlink()
    refuses(model_folder, model_folder / WEIGHTS)
    (model_folder / "config.json").unlink()
    message = refuses(model_folder, model_folder / "config.json", "no such file")
    assert message.count("config.json") == 1


def test_an_adapter(model_folder):
    write_json(model_folder / "adapter_config.json", {"peft_type": "LORA"})
    refuses(model_folder, model_folder / "adapter_config.json", "merge", "remove")
    (model_folder / WEIGHTS).unlink()
    assert "remove" not in refuses(model_folder, model_folder / "adapter_config.json", "merge")


def test_a_tensor_that_the_index_forgets(saved, tmp_path):
    """transformers reads what lies in the shards: here a head that a tied model would have."""
    saved("llama-tied")[0].save_pretrained(tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    stored = load_file(shard)
    write_tensors(shard, {**stored, HEAD: torch.ones(512, 32)})
    refuses(tmp_path, tmp_path / INDEX, HEAD, "tie_word_embeddings")
    write_tensors(shard, {**stored, HEAD: stored[EMBEDDING]})
    assert torch.equal(load_model(tmp_path).E, stored[EMBEDDING])


def test_an_index_that_lacks_a_tensor_of_its_shards(both, sharded):
    """It is read as transformers does, unless no tensor of its shard is named."""
    places = places_of(sharded)
    edit_json(sharded / INDEX, weight_map={n: file for n, file in places.items() if n != NAME})
    assert torch.equal(logits_of(load_model(sharded)), logits_of(both("llama-gqa")[1]))
    kept = {name: file for name, file in places.items() if file != places[NAME]}
    write_json(sharded / INDEX, {"weight_map": kept})
    refuses(sharded, sharded / INDEX, "found no such tensor")


def test_the_value_head_of_trl_is_left_out(model_folder, capsys):
    whole = load_model(model_folder)
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    rewrite(model_folder, head)
    assert torch.equal(logits_of(load_model(model_folder)), logits_of(whole))
    (line,) = capsys.readouterr().err.splitlines()
    assert str(model_folder / WEIGHTS) in line and all(name in line for name in head)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_pointer_of_git_lfs(model_folder, name):
    (model_folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n")
    refuses(model_folder, model_folder / name, "git lfs pull", by=minisoft.load)


def test_an_index_naming_a_tensor_that_the_shard_lacks(sharded):
    places = places_of(sharded)
    other = next(file for file in places.values() if file != places[NAME])
    edit_json(sharded / INDEX, weight_map={**places, NAME: other})
    refuses(sharded, sharded / other, NAME)


@pytest.mark.parametrize("where", [f"{x}/{WEIGHTS}" for x in ("..", "", "sub")] + ["..", "a.json"])
def test_an_index_leaving_the_folder(sharded, where):
    shutil.copyfile(next(sharded.glob("*.safetensors")), sharded.parent / WEIGHTS)
    edit_json(sharded / INDEX, weight_map={**places_of(sharded), NAME: where})
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


def test_a_bad_config_is_named(model_folder):
    edit_json(model_folder / "config.json", hidden_act="gelu")
    refuses(model_folder, model_folder / "config.json", "hidden_act", "silu", "gelu")


def shorten(folder, rows):
    """A model of only the first rows of its vocabulary."""
    edit_json(folder / "config.json", vocab_size=rows)
    rewrite(folder, {EMBEDDING: load_file(folder / WEIGHTS)[EMBEDDING][:rows]})


def test_a_vocabulary_smaller_than_the_tokenizer(model_folder):
    shorten(model_folder, 300)
    refuses(model_folder, model_folder, "tokenizer", "300", by=minisoft.load)


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
    refuses(model_folder, f"{model_folder}: tokenizer", words - 1, words, by=minisoft.load)


# ---------------------------------------------------------------- finding


def test_a_folder_is_found(model_folder, monkeypatch):
    assert find(str(model_folder)) == model_folder
    monkeypatch.chdir(model_folder.parent)
    assert find("model").samefile(model_folder)


@pytest.mark.parametrize("name", ["nowhere", "/no/where", "./no", "../a/b", "~/model", "a/b/c"])
def test_a_folder_that_does_not_exist(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refuses(name, "no such folder", by=find)


def test_a_hub_id_that_cannot_be_reached(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(checkpoint, "WEIGHTS", tmp_path / "weights")
    target = tmp_path / "weights" / "nobody--model"
    refuses("nobody/model", f"hf download nobody/model --local-dir {target}", by=find)
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
        assert name_of(find(f"{owner}/model")) == f"{owner}--model"
        refuses(root, root, root / "snapshots" / commit)
        assert torch.equal(load_model(find(f"{owner}/model")).E, load_model(model_folder).E)


# ---------------------------------------------------------------- writing


def test_what_is_written_is_what_transformers_reads(saved, tokenizer_folders, tmp_path):
    """Identical logits, and identical greedy text; for every kind of head and bias."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    of = {"llama3-tied": "llama3", "qwen2": "qwen", "qwen3-yarn": "qwen"}
    for architecture, tokens in of.items():
        source, target = tmp_path / architecture, tmp_path / f"{architecture}-out"
        shutil.copytree(saved(architecture)[1], source)
        shutil.copytree(tokenizer_folders[tokens], source, dirs_exist_ok=True)
        model, tokenizer = minisoft.load(source)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        save(target, model, source)
        theirs = AutoModelForCausalLM.from_pretrained(target).eval()
        assert theirs.dtype == torch.float32
        assert torch.equal(theirs(IDS).logits, logits_of(model))
        theirs.generation_config.eos_token_id = None
        codec = AutoTokenizer.from_pretrained(target)
        prompt = codec("Mia has 3 pears.", return_tensors="pt")
        assert prompt.input_ids[0].tolist() == tokenizer.encode("Mia has 3 pears.")
        options = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0}
        (written,) = theirs.generate(**prompt, **options).tolist()
        ids = prompt.input_ids
        for _ in range(20):
            ids = torch.cat((ids, logits_of(model, ids=ids)[:, -1:].argmax(-1)), dim=1)
        assert written == ids[0].tolist()
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        assert codec.decode(written, **options) == tokenizer.decode(written)


def test_bfloat16_is_written_as_bfloat16(model_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = load_model(model_folder, dtype=torch.bfloat16)
    save(tmp_path / "out", model, model_folder)
    assert {t.dtype for t in load_file(tmp_path / "out" / WEIGHTS).values()} == {torch.bfloat16}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", torch_dtype="auto")
    assert theirs.dtype == torch.bfloat16
    again = load_model(tmp_path / "out")
    assert again.E.dtype == torch.bfloat16 and torch.equal(logits_of(again), logits_of(model))


def test_saving_replaces_the_model_and_leaves_what_else_lies_there(model_folder, tmp_path):
    model, target = load_model(model_folder), tmp_path / "runs" / "last"
    save(target, model, model_folder, step=1)
    (target / "notes.md").write_text("mine")
    (target / "sub").mkdir()
    (target / "sub/plan").write_text("mine too")
    (target.with_name("last.being-written")).mkdir()
    (target.with_name("last.being-written") / "stray").write_text("of a crash")
    save(target, doubled(model), model_folder, step=2)
    assert [path.name for path in target.parent.iterdir()] == ["last"]
    assert (target / "notes.md").read_text() == "mine"
    assert (target / "sub/plan").read_text() == "mine too"
    left = "config.json generation_config.json minisoft.json notes.md sub tokenizer.json"
    expected = [*left.split(), WEIGHTS, "tokenizer_config.json"]
    assert sorted(path.name for path in target.iterdir()) == sorted(expected)
    assert read_json(target / SIDECAR) == {"step": 2}
    assert torch.equal(load_model(target).E, model.E)


def test_saving_over_the_source(model_folder):
    model, before = load_model(model_folder), (model_folder / "tokenizer.json").read_bytes()
    save(model_folder, doubled(model), model_folder)
    loaded, tokenizer = minisoft.load(str(model_folder))
    assert torch.equal(loaded.E, model.E) and loaded.E.requires_grad
    assert tokenizer.size <= loaded.config.vocab_size == 512
    assert (model_folder / "tokenizer.json").read_bytes() == before


GOOD_SIDECAR = {"prompt": "Q: QUESTION A:", "sigma": 0.1, "top_k": None, "data": "tiny", "step": 3}
GOOD_SIDECAR |= {"tokens": "a kind that is yet to be written", "noise": "hidden"}
RATES = {"soft": 1e-5, "another kind": 2}
GOOD_SIDECAR["defaults"] = {"prompts": 8, "lr": RATES, "data": "tiny"}


def test_a_sidecar_may_have_kinds_of_token_that_io_does_not_know(model_folder):
    for about in (GOOD_SIDECAR, {"defaults": {"lr": 6e-6, "cot": 80}}, {"defaults": {}}, {}):
        write_json(model_folder / SIDECAR, about)
        assert read_about(model_folder) == about


BAD_SIDECAR = {"prompt": ["no place", "QUESTION QUESTION"], "tokens": [["soft"]], "noise": [None]}
BAD_SIDECAR |= {"data": [3], "base": [3], "sigma": ["0.1"], "gamma": [0], "tau": [-1, True]}
BAD_SIDECAR |= {"top_k": [0, 2.5], "width": [0, "three"], "top_p": [0, 1.5, None]}
BAD_SIDECAR["defaults"] = [None, {"prompts": 1.5}, {"steps": 0}, {"data": 3}, {"lr": "1e-5"}]
BAD_SIDECAR["defaults"] += [{"lr": {"soft": -1}}, {"no such flag": 1}]


@pytest.mark.parametrize("field, value", [(f, x) for f, xs in BAD_SIDECAR.items() for x in xs])
def test_a_field_of_the_sidecar_that_cannot_be_used(model_folder, field, value):
    write_json(model_folder / SIDECAR, {"sigma": 0.1, field: value})
    refuses(model_folder, f"{model_folder / SIDECAR}: {field}: ", by=read_about)


@pytest.mark.parametrize("broken", ["save_tensors", "write_json"])
def test_a_failure_while_writing_leaves_the_old_one(model_folder, tmp_path, monkeypatch, broken):
    model, target = load_model(model_folder), tmp_path / "last"
    save(target, model, model_folder, step=1)
    old = {path.name: path.read_bytes() for path in target.iterdir()}

    def fail(*arguments, **options):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, broken, fail)
        with pytest.raises(OSError, match="no space"):
            save(target, model, model_folder, step=2)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == old
    assert [path.name for path in tmp_path.iterdir() if path != model_folder] == ["last"]
    save(target, model, model_folder, step=3)  # and the next one succeeds
    assert read_json(target / SIDECAR) == {"step": 3}


@pytest.mark.parametrize("renames", [1, 2])
def test_a_kill_between_the_renames_is_undone(model_folder, tmp_path, renames):
    """Before the second one, and after it, before what else lay there has been moved."""
    model, target = load_model(model_folder), tmp_path / "runs" / "best"
    save(target, model, model_folder, step=1)
    (target / "notes.md").write_text("mine")
    target.rename(target.with_name("best.being-replaced"))
    if renames == 2:
        save(tmp_path / "new", model, model_folder, step=2)
        (tmp_path / "new").rename(target)
    recover(target)
    assert read_json(target / SIDECAR) == {"step": renames}
    save(target, model, model_folder, step=3)
    assert (target / "notes.md").read_text() == "mine"
    assert [path.name for path in target.parent.iterdir()] == ["best"]


def test_a_folder_behind_a_link_stays_behind_it(model_folder, tmp_path):
    model, link, disk = load_model(model_folder), tmp_path / "run/last", tmp_path / "disk/last"
    link.parent.mkdir()
    disk.mkdir(parents=True)
    link.symlink_to(disk)
    for step in (1, 2):
        save(link, model, model_folder, step=step)
    disk.rename(disk.with_name("last.being-replaced"))
    recover(link)
    assert link.is_symlink() and read_json(disk / SIDECAR) == {"step": 2}
    assert [path.name for path in (*link.parent.iterdir(), *disk.parent.iterdir())] == ["last"] * 2


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_the_files_have_the_mode_that_the_umask_says(model_folder, tmp_path, mask):
    before = os.umask(mask)
    try:
        save(tmp_path / "out", load_model(model_folder), model_folder)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~mask) and WEIGHTS in modes
