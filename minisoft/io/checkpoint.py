"""A Hugging Face folder <-> the model."""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from minisoft.errors import InputError, expect, expecting
from minisoft.io import WEIGHTS
from minisoft.io.atomic import read_json, replace_folder, save_tensors, write_json
from minisoft.io.config import read_config
from minisoft.io.rows import POINTER
from minisoft.io.tokenizer import FILES, Tokenizer
from minisoft.kinds import COT, OPTIONS, SIGMA, TAU_OF, TRAINING
from minisoft.model import Transformer

SIDECAR = "minisoft.json"  # how a model is to be used: prompt, sigma, defaults; only ours have it
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NAMES = ("config.json", "generation_config.json", SIDECAR, *FILES)  # what is not weights
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(folder: str | Path, device="cpu", dtype=None) -> tuple[Transformer, Tokenizer]:
    """A Hugging Face folder -> (Transformer, Tokenizer), parameters in `dtype` on `device`; None is
    bfloat16 if stored so, else float32.  Raises InputError unless every tensor is there, expected
    and of the right shape, and every token of ordinary text is a row of E; added ones may have none
    (see `run.evaluate.check_prompts`)."""
    folder = Path(folder)
    model = load_model(folder, device, dtype)
    tokenizer = Tokenizer(folder)
    size = model.config.vocab_size
    needed = tokenizer.size - sum(size <= i < tokenizer.size for i in tokenizer.added_ids)
    expect(needed <= size, f"{folder}: tokenizer", f"at most vocab_size={size} ids", needed)
    return model, tokenizer


def outline(folder: Path) -> Transformer:
    """The model of a folder's config.json on the meta device: shapes without weights, float32."""
    _refuse_what_is_no_model(folder)
    path = folder / "config.json"
    raw = read_json(path, required=True)
    try:
        config = read_config(raw)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    with torch.device("meta"):
        return Transformer(config)


def _refuse_what_is_no_model(folder: Path) -> None:
    adapter, snapshots = folder / "adapter_config.json", sorted(folder.glob("snapshots/*"))
    if snapshots and not (folder / "config.json").is_file():
        hint = f"give its snapshot {snapshots[-1]}"
        raise InputError(f"{folder}: expected a model folder, found the hub's cache of one; {hint}")
    if adapter.is_file():  # for which transformers loads the base, whatever weights are beside it
        hint = "merge it into its base (peft: merge_and_unload) and save that"
        if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
            hint = f"if the weights beside it are merged, remove {adapter.name}, else {hint}"
        raise InputError(f"{adapter}: expected a whole model, found an adapter; {hint}")
    for path in sorted(folder.glob("*.*")):
        read = path.suffix in (".json", ".model", ".safetensors", ".txt") and path.is_file()
        if read and path.stat().st_size < 1000 and path.read_bytes().startswith(POINTER):
            found = "a pointer to one; run git lfs pull"
            raise InputError(f"{path}: expected a model's file, found {found}")


def load_model(folder: Path, device="cpu", dtype: torch.dtype | None = None) -> Transformer:
    """Of a folder (see `load`); its files are mapped, so that the ranks of a node share them."""
    model = outline(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    index, paths = _find_weights(folder)
    tied = model.lm_head is None
    if tied and HEAD in paths:  # stored all the same: beside the embedding, or in its stead
        shapes[HEAD] = shapes[EMBEDDING]
        if EMBEDDING not in paths:
            del shapes[EMBEDDING]
    _check_names(index, paths, shapes)
    files, dtypes = _open_tensors(paths, shapes)
    if dtype is None:
        in_16_bits = dtypes.get(EMBEDDING, dtypes.get(HEAD)) == "BF16"
        dtype = torch.bfloat16 if in_16_bits else torch.float32
    weights = {}
    for name, file in files.items():
        tensor = file.get_tensor(name)
        if not tensor.isfinite().all():
            found = "finite numbers, found NaN or infinity"
            raise InputError(f"{paths[name]}: {name}: expected {found}")
        weights[name] = tensor.to(device, dtype)
    if tied and HEAD in weights:
        head = weights.pop(HEAD)
        if not torch.equal(weights.setdefault(EMBEDDING, head), head):
            raise InputError(
                f"{index}: {HEAD}: expected the numbers of {EMBEDDING}, since config.json has "
                "tie_word_embeddings, found others; if the head is its own, that is to be false"
            )
    model.load_state_dict(weights, strict=True, assign=True)
    return model


def _find_weights(folder: Path) -> tuple[Path, dict[str, Path]]:
    """(what lists the tensors, name -> file).  As in transformers, a single file goes first, and
    the tensors of an index's files are there that it does not name."""
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        with _open(single) as file:
            return single, dict.fromkeys(file.keys(), single)
    if not index.is_file():
        others = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
        hint = f"{others[0]}; save it with safetensors" if others else "no such file"
        if shards := sorted(path.name for path in folder.glob("model-*.safetensors")):
            hint = f"{shards[0]} without {INDEX}; fetch that too"
        raise InputError(f"{single}: expected a safetensors file, found {hint}")
    names = read_json(index).get("weight_map")
    good = isinstance(names, dict) and all(isinstance(file, str) for file in names.values())
    expect(good, f"{index}: weight_map", "an object of file names", names)
    for name, file in names.items():
        inside = Path(file).name == file and file.endswith(".safetensors")
        expect(inside, f"{index}: {name}", "a .safetensors file of this folder", file)
    for file in sorted(set(names.values())):
        with _open(folder / file) as shard:
            for name in shard.keys():
                names.setdefault(name, file)
    return index, {name: folder / file for name, file in names.items()}


def _check_names(index: Path, files: dict[str, Path], shapes: dict[str, tuple]) -> None:
    """Raises InputError for a missing or an unexpected tensor."""
    for name, shape in shapes.items():
        if name not in files:
            hint = "; with tie_word_embeddings true it is the embedding's" if name == HEAD else ""
            raise InputError(f"{index}: {name}: expected {shape}, found no such tensor{hint}")
    others = sorted(set(files) - set(shapes))
    if heads := [name for name in others if name.startswith("v_head.")]:
        print(f"{index}: left out, a value head of TRL: {', '.join(heads)}", file=sys.stderr)
    for name in others:
        if name not in heads and not name.endswith(".rotary_emb.inv_freq"):  # once saved
            expected = "no such tensor for this config.json, found one"
            raise InputError(f"{index}: {name}: expected {expected}")


def _open(path: Path):
    if not path.is_file():
        raise InputError(f"{path}: expected a safetensors file, found no such file")
    with expecting(f"a whole safetensors file of {path.stat().st_size} bytes", path):
        return safe_open(path, framework="pt")


def _open_tensors(paths: dict[str, Path], shapes: dict[str, tuple]) -> tuple[dict, dict[str, str]]:
    """({tensor: its open file}, {tensor: its dtype}), file after file, by their headers alone."""
    opened = {path: _open(path) for path in sorted({paths[name] for name in shapes})}
    files, dtypes = {}, {}
    for name in sorted(shapes, key=paths.get):
        files[name], where = opened[paths[name]], f"{paths[name]}: {name}"
        with expecting("here by the index", where):
            header = files[name].get_slice(name)
        shape, dtypes[name] = tuple(header.get_shape()), header.get_dtype()
        expect(shape == shapes[name], where, f"shape {shapes[name]}", shape)
        usable = dtypes[name] in ("F32", "BF16", "F16")
        expect(usable, where, "float32, bfloat16 or float16", dtypes[name])
    return files, dtypes


def read_about(folder: Path) -> dict:
    """A folder's minisoft.json, {} without one.  Raises InputError for an unusable field."""
    path = folder / SIDECAR
    sidecar = read_json(path)
    fields = {row.name: row for row in (TAU_OF, SIGMA, *OPTIONS)}
    for name, value in sidecar.items():
        where = f"{path}: {name}"
        if name in fields and (name, value) != ("top_k", None):
            fields[name].check(value, where)
        elif name in ("tokens", "base", "data"):
            expect(isinstance(value, str), where, "a text", value)
        elif name == "prompt":
            once = isinstance(value, str) and value.count("QUESTION") == 1
            expect(once, where, "a text with QUESTION once", value)
        elif name == "defaults":
            expect(isinstance(value, dict), where, "an object of flags of train.py", value)
            for flag, default in value.items():
                _check_default(flag, default, f"{where}: {flag}")
    return sidecar


def _check_default(flag: str, value, where: str) -> None:
    """Raises InputError unless it is a flag of train.py's; --lr may have a number for each kind."""
    rows = {**TRAINING, "cot": COT}
    expect(flag in rows, where, f"one of {', '.join(rows)}", value)
    of_kinds = value.values() if flag == "lr" and isinstance(value, dict) else [value]
    for each in of_kinds:
        rows[flag].check(each, where)


def name_of(folder: Path) -> str:
    """What a model is called: its folder, of a snapshot in the hub's cache its owner--name."""
    folder = folder.resolve()
    in_cache = folder.parent.name == "snapshots"
    return folder.parents[1].name.removeprefix("models--") if in_cache else folder.name


def find(model: str) -> Path:
    """A folder, or a hub id "owner/name": weights/owner--name, else the hub's own cache, where it
    is fetched into unless HF_HUB_OFFLINE is set.  Raises InputError."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        expected = "a model folder or a hub id owner/name"
        ours = "; it is in the repository only: pip install -e ."
        hint = ours if WEIGHTS in folder.parents else ""
        raise InputError(f"{model}: expected {expected}, found no such folder{hint}")
    target = WEIGHTS / model.replace("/", "--")
    if (target / "config.json").is_file():
        return target
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "tokenizer.model", "merges.txt", "*.jinja", "README.md"]
    hint = f". Where the hub can be reached, type: hf download {model} --local-dir {target}"
    with expecting("a folder or a model of the hub", model, hint):
        return Path(snapshot_download(model, allow_patterns=patterns))


def read_files(folder: Path) -> dict[str, bytes]:
    """{name: content} of what decides how a model is read and used, but for its weights."""
    return {name: (folder / name).read_bytes() for name in NAMES if (folder / name).is_file()}


def save_model(folder: Path, model: Transformer, files: dict[str, bytes], sidecar: dict) -> None:
    """Write a folder that transformers loads, whole or not at all: weights in their own
    dtype, the files that `read_files` has read, the sidecar.  Raises OSError."""
    config = json.loads(files["config.json"])
    config = {name: x for name, x in config.items() if name not in ("torch_dtype", "dtype")}
    config["torch_dtype"] = str(model.E.dtype).removeprefix("torch.")

    def write(new: Path) -> None:
        save_tensors(new / "model.safetensors", model.state_dict(), {"format": "pt"})
        for name, content in files.items():
            (new / name).write_bytes(content)
        write_json(new / "config.json", config)
        write_json(new / SIDECAR, sidecar)

    replace_folder(folder, write)
