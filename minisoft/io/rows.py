"""Files, folders and sets of the hub -> rows, each with the place where it stands.

A source is a .jsonl, .json (also .gz) or .parquet file, or a folder of such; a set beside the
embedded model ("tiny", "tiny-test", ...); or one of the hub: "gsm8k", ..., or
"owner/name[:configuration[:split]]".  Parquet and the hub need the extra `data`.
"""

import codecs
import gzip
import io
import json
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

from minisoft.errors import InputError, expect, expecting
from minisoft.io import WEIGHTS

HUB = {  # short name -> (hub dataset, configuration, split)
    "gsm8k": ("openai/gsm8k", "main", "train"),
    "gsm8k-test": ("openai/gsm8k", "main", "test"),
    "math-500": ("HuggingFaceH4/MATH-500", None, "test"),
    "deepscaler": ("agentica-org/DeepScaleR-Preview-Dataset", None, "train"),
    "olympiadbench": ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"),
    "hellaswag": ("Rowan/hellaswag", None, "validation"),
    "arc-easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
    "arc-challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
    "mmlu": ("cais/mmlu", "all", "test"),
}
_NAMES = ("test", "long", "hard", "facts", "sorting", "drills", "references")
EMBEDDED = {"tiny": "train.jsonl", **{f"tiny-{name}": f"{name}.jsonl" for name in _NAMES}}

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
# Also in one word (trainset, GSM8KTest), but not in constraint, contest and latest.
_SPLIT = r"(?<!s)train|(?<!con)(?<!la)test|valid|(?<![a-z])(val|dev|eval)(?![a-rt-z])|math[-_]?500"
_SHARD = re.compile(r"(.*)-\d{5}-of-0*([1-9]\d*)\b.*")
_DIGITS = re.compile("([0-9]+)")
POINTER = b"version https://git-lfs"  # what lies there before git lfs pull
_SPACE = re.compile(r"\s*")
_EXTRA = "need the extra `data`: pip install 'minisoft[data]'"


def read(source: str | Path) -> list[tuple[str, object]]:
    """(where, row) of each row, at least one.  Raises InputError for what cannot be read."""
    path = WEIGHTS / "tiny" / EMBEDDED[source] if source in EMBEDDED else Path(source)
    if path.is_file():
        rows = _read_file(path)
    elif path.is_dir() and source not in HUB:
        rows = [row for file in _files(path) for row in _read_file(file)]
    elif path.name.endswith(_SUFFIXES):
        raise InputError(f"{source}: expected a data file, found no such file")
    else:
        rows = _read_hub(str(source))
    if not rows:
        raise InputError(f"{source}: expected at least one row, found none")
    return rows


def decode(raw: bytes, where) -> str:
    """UTF-8, with or without a byte order mark -> text without it.  Raises InputError."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{where}: expected UTF-8 text, found UTF-16 or UTF-32; save it as UTF-8")
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where}: line {line}: expected UTF-8 text, found: {error}") from None


def _files(folder: Path) -> list[Path]:
    """The data files below a folder, 2.json before 10.json, hidden ones apart.  Raises InputError
    for several splits, since test problems would be trained on, for a part of the shards, and for
    rows that are there twice: a.json, a.jsonl.gz."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]
    names = [name for name in names if name.endswith(_SUFFIXES) and not re.search(r"(^|/)\.", name)]
    if not names:
        raise InputError(f"{folder}: expected a {', '.join(_SUFFIXES)} file in it, found none")
    names.sort(key=lambda name: [int(x) if i % 2 else x for i, x in enumerate(_DIGITS.split(name))])
    firsts = {}  # (Parquet or JSON, split) -> the first file of these
    for name in names:
        split = re.search(_SPLIT, name.lower())
        firsts.setdefault((name.endswith(".parquet"), split and split[0]), name)
    if len(firsts) > 1:
        first, second = list(firsts.values())[:2]
        raise InputError(
            f"{folder}: expected data files of one format and one split, found {first} and "
            f"{second}; give a file, or the folder of one split"
        )
    shards = Counter(shard.groups() for shard in map(_SHARD.fullmatch, names) if shard)
    for (name, total), n in shards.items():
        expect(n == int(total), f"{folder}: {name}", f"its {total} files, or one by name", n)
    for stem, n in Counter(re.sub(r"\.jsonl?(\.gz)?$", "", name) for name in names).items():
        expect(n == 1, f"{folder}: {stem}", "one file of that name", n)
    return [folder / name for name in names]


def _read_file(path: Path) -> list[tuple[str, object]]:
    with expecting("a data file", path):
        raw = path.read_bytes()
    if raw.startswith(POINTER):
        raise InputError(f"{path}: expected a data file, found a pointer to one; run git lfs pull")
    if path.suffix == ".parquet":
        return _read_parquet(raw, path)
    if path.suffix == ".gz":
        with expecting("a gzip file", path):
            raw = gzip.decompress(raw)
    return _parse(decode(raw, path), path)


def _integer(digits: str) -> int | Decimal:
    """Python reads no integers of more than 4300 digits, or as few as 640 where that is set."""
    return int(digits) if len(digits) <= 640 else Decimal(digits)


_JSON = json.JSONDecoder(parse_int=_integer, parse_float=Decimal)  # keeps every digit


def _parse(text: str, path: Path) -> list[tuple[str, object]]:
    """The rows of a JSON list, or of JSON values one after another: one a line, or indented."""
    if text.lstrip().startswith("["):
        with expecting("a JSON list", path):
            return [(f"{path}: row {i}", row) for i, row in enumerate(_JSON.decode(text), 1)]
    rows, line, end = [], 1, 0
    while (start := _SPACE.match(text, end).end()) < len(text):
        line += text.count("\n", end, start)
        where = f"{path}: line {line}"
        with expecting("a JSON object", where):
            row, end = _JSON.raw_decode(text, start)
        rows.append((where, row))
        line += text.count("\n", start, end)
    return rows


def _read_parquet(raw: bytes, path: Path) -> list[tuple[str, dict]]:
    try:
        from pyarrow import array, float16, float32, parquet
    except ImportError:
        raise InputError(f"{path}: Parquet files {_EXTRA}") from None
    with expecting("a Parquet file", path), parquet.ParquetFile(io.BytesIO(raw)) as file:
        table = file.read()
        for i, name in enumerate(table.column_names):
            if (kind := table.schema.types[i]) in (float16(), float32()):
                short = kind.to_pandas_dtype()  # numpy's, which writes 0.1, not 0.10000000149011612
                values = [x if x is None else float(str(short(x))) for x in table[i].to_pylist()]
                table = table.set_column(i, name, [array(values)])
        rows = table.to_pylist()
    return [(f"{path}: row {i}", row) for i, row in enumerate(rows, 1)]


def _read_hub(name: str) -> list[tuple[str, dict]]:
    if name not in HUB and name.count("/") != 1:
        known = ", ".join([*EMBEDDED, *HUB])
        raise InputError(
            f"{name}: expected a {', '.join(_SUFFIXES)} file, a folder of such files, owner/name "
            f"on the hub, or one of {known}; found no such file"
        )
    dataset, configuration, split = HUB.get(name) or (name.split(":") + [None, None])[:3]
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name}: datasets of the hub {_EXTRA}") from None
    hint = "; download it and give its .jsonl or .parquet file instead"
    with expecting("a dataset of the hub", name, hint):
        rows = datasets.load_dataset(dataset, configuration or None, split=split or "train")
    return [(f"{name}: row {i}", row) for i, row in enumerate(rows, 1)]
