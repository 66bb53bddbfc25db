"""A Hugging Face folder <-> the model."""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from minisoft.io import WEIGHTS
from minisoft.errors import InputError, expecting
from minisoft.io.atomic import read_json, replace_folder, save_tensors, write_json
from minisoft.io.config import read_config
from minisoft.io.tokenizer import FILES, Tokenizer
from minisoft.model import Transformer
from minisoft.soft import KINDS, NOISES

SIDECAR = "minisoft.json"  # how the model is to be used: prompt, sigma, defaults; absent in folders from elsewhere
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(folder: str | Path, device="cpu", dtype: torch.dtype | None = None) -> tuple[Transformer, Tokenizer]:
    """A Hugging Face folder -> (Transformer, Tokenizer), parameters in `dtype` (None: bfloat16 if stored so, else
    float32) on `device`.  Strict: raises InputError unless every tensor is there, expected and of the right shape.
    """
    folder = Path(folder)
    model = load_model(folder, device, dtype)
    tokenizer = Tokenizer(folder)
    if tokenizer.size > model.config.vocab_size:
        raise InputError(f"{folder}: tokenizer: expected at most vocab_size={model.config.vocab_size} ids, "
                              f"found {tokenizer.size}")
    return model, tokenizer


def outline(folder: Path) -> Transformer:
    """The model of a folder's config.json on the meta device: its shapes without its weights, float32."""
    raw = read_json(folder / "config.json", required=True)
    try:
        config = read_config(raw)
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from None
    with torch.device("meta"):
        return Transformer(config)


def load_model(folder: Path, device="cpu", dtype: torch.dtype | None = None) -> Transformer:
    """The Transformer of a Hugging Face folder (see `load`)."""
    model = outline(folder)
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    files = _locate(folder, expected)
    stored = {}
    for path in sorted(set(files.values())):
        stored.update(_check_tensors(path, {name: expected[name] for name in expected if files[name] == path}))
    if dtype is None:
        dtype = torch.bfloat16 if stored["model.embed_tokens.weight"] == "BF16" else torch.float32
    model.load_state_dict({name: tensor.to(device, dtype) for name, tensor in _tensors(files, expected)},
                          strict=True, assign=True)
    return model


def _locate(folder: Path, expected: dict) -> dict[str, Path]:
    """Tensor name -> file.  Raises InputError for missing, unexpected or unreadable ones."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise InputError(f"{index}: weight_map: expected an object of file names, found {places!r:.60}")
        for name, file in places.items():
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise InputError(f"{index}: {name}: expected a .safetensors file of this folder, found {file!r}")
        where = {name: folder / file for name, file in places.items()}
    else:
        index = folder / "model.safetensors"
        with _open(index) as file:
            where = {name: index for name in file.keys()}
    found = {n for n in where if not n.endswith(".rotary_emb.inv_freq")}  # once saved, always recomputed
    if "lm_head.weight" not in expected:
        found.discard("lm_head.weight")  # a tied head may be stored all the same
    for name in expected:
        if name not in found:
            raise InputError(f"{index}: {name}: expected {expected[name]}, found no such tensor")
    if found - set(expected):
        name = min(found - set(expected))
        raise InputError(f"{index}: {name}: expected no such tensor for this config.json, found one")
    return where


def _open(path: Path):
    if not path.is_file():
        raise InputError(f"{path}: expected a safetensors file, found no such file")
    with expecting(f"a whole safetensors file of {path.stat().st_size} bytes", path):
        return safe_open(path, framework="pt")


def _check_tensors(path: Path, expected: dict[str, tuple]) -> dict[str, str]:
    """{name: its dtype in the file}, by the file's header alone."""
    found = {}
    with _open(path) as file:
        names = set(file.keys())
        for name, shape in expected.items():
            if name not in names:
                raise InputError(f"{path}: {name}: expected here by the index, found no such tensor")
            part = file.get_slice(name)
            if tuple(part.get_shape()) != shape:
                raise InputError(f"{path}: {name}: expected shape {shape}, found {tuple(part.get_shape())}")
            found[name] = part.get_dtype()
            if found[name] not in ("F32", "BF16", "F16"):
                raise InputError(f"{path}: {name}: expected float32, bfloat16 or float16, found {found[name]}")
    return found


def _tensors(files: dict[str, Path], expected: dict):
    """(name, tensor), one after the other, read once and not kept: the files are mapped, and the ranks of a node share what
    has been read of them.  Raises InputError for a number that is not finite."""
    for path in sorted(set(files.values())):
        with _open(path) as file:
            for name in (name for name in expected if files[name] == path):
                tensor = file.get_tensor(name)
                if not tensor.isfinite().all():
                    raise InputError(f"{path}: {name}: expected finite numbers, found NaN or infinity")
                yield name, tensor


def _good_defaults(value) -> bool:
    """What a model folder may say about training and evaluating it: numbers and the name of its data."""
    number = lambda v: type(v) in (int, float) and 0 < v < float("inf")
    whole = lambda v: type(v) is int and v > 0
    good = {**dict.fromkeys(("prompts", "group", "steps", "cot", "warmup", "validate_every"), whole),
            "data": lambda v: isinstance(v, str),
            "lr": lambda v: number(v) or isinstance(v, dict) and set(v) == set(KINDS) and all(map(number, v.values()))}
    return isinstance(value, dict) and all(name in good and good[name](v) for name, v in value.items())


def read_about(folder: Path) -> dict:
    """The minisoft.json of a model folder, {} without one.  Raises InputError for a field that cannot be used."""
    about, path = read_json(folder / SIDECAR), folder / SIDECAR
    number = lambda value: type(value) in (int, float) and 0 < value < float("inf")
    for field, expected, good in (
            ("prompt", "a text with QUESTION once", lambda v: isinstance(v, str) and v.count("QUESTION") == 1),
            ("tokens", f"one of {', '.join(KINDS)}", lambda v: v in KINDS),
            ("noise", f"one of {', '.join(NOISES)}", lambda v: v in NOISES), ("sigma", "a positive number", number),
            ("gamma", "a positive number", number), ("tau", "a positive number", number),
            ("top_k", "a positive integer or null", lambda v: v is None or type(v) is int and v > 0),
            ("defaults", "an object of flags of train.py", _good_defaults), ("base", "a text", lambda v: isinstance(v, str)),
            ("data", "a text", lambda v: isinstance(v, str))):
        if field in about and not good(about[field]):
            raise InputError(f"{path}: {field}: expected {expected}, found {about[field]!r:.80}")
    return about


def find(model: str) -> Path:
    """A folder, or a hub id "owner/name", which is fetched into weights/name.  Raises InputError."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise InputError(f"{model}: expected a model folder or a hub id owner/name, found no such folder")
    target = WEIGHTS / model.split("/")[1]
    if (target / "config.json").is_file():
        return target
    from huggingface_hub import snapshot_download
    print(f"fetching {model} into {target}")
    with expecting("a folder or a model of the hub", model,
                   f". Where the hub can be reached, type: hf download {model} --local-dir {target}"):
        part = target.with_name(target.name + ".part")  # an interrupted download goes on there
        snapshot_download(model, local_dir=part, allow_patterns=["*.safetensors", "*.json", "tokenizer.model", "*.jinja"])
    return part.rename(target)


def save_model(folder: Path, model: Transformer, source: Path, about: dict) -> None:
    """Write a Hugging Face folder that transformers and vLLM load, whole or not at all: the weights in their own dtype,
    config and tokenizer files carried over from `source`, `about` as the sidecar.  Raises OSError."""
    config = read_json(source / "config.json")
    config.pop("torch_dtype", None), config.pop("dtype", None)
    config["torch_dtype"] = str(model.E.dtype).removeprefix("torch.")

    def write(new: Path) -> None:
        save_tensors(new / "model.safetensors", model.state_dict(), {"format": "pt"})
        for name in (*FILES, "generation_config.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, new / name)
        write_json(new / "config.json", config)
        write_json(new / SIDECAR, about)
    replace_folder(folder, write)
