"""The models that eval.py compares: where each comes from, its settings, its row in the tables."""

import hashlib
import re
from argparse import Namespace
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os.path import commonprefix
from pathlib import Path

import torch

from minisoft.data import Format
from minisoft.errors import InputError, expect
from minisoft.io import atomic, checkpoint, state
from minisoft.io.journal import Journal
from minisoft.io.prompts import CHAT
from minisoft.io.tokenizer import Tokenizer
from minisoft.run import policy
from minisoft.run.evaluate import check_prompts, lengthened
from minisoft.run.policy import Policy
from minisoft.run.settings import EVAL_COT, Flags, Settings
from minisoft.run.world import World
from minisoft.soft import GAMMA

USUAL = {"gamma": GAMMA, "noise": "embedding", "top_k": None}  # of minisoft.json
BEGINS = {  # what eval.py and minisoft.lab.tables write; .md: to the end, without a user's notes
    ".json": rb'\{\s*("runs": \[\s*\{\s*)?"model": .*\s*"label": .*\s*"named": ',
    ".jsonl": rb'\{"run": \d+, "setting": ',
    ".md": rb"\*\*(\w+ inference\*\*: pass|Multiple choice\*\*: acc)(.|\n(?=[|\n]|\*\*|\Z))*\Z",
    ".png": rb"(?s)\x89PNG.*minisoft",
}
MARK = {"Source": "minisoft"}  # in a PNG
DECIDE = ("samples", "seed", "dtype", "limit")  # beside models, their settings and the data


@dataclass(frozen=True)
class Subject:
    """A model under test: what the user gave, its folder, how its tokens are made (its weights
    unread), its row's label, and whether that is a NAME of the user's."""

    given: str
    folder: Path
    settings: Settings
    label: str
    named: bool

    @classmethod
    def find(cls, text: str, args: Namespace) -> "Subject":
        """[NAME=]MODEL; without a name: what it was trained from, on and with."""
        name, equals, path = text.partition("=")
        given = path if equals and not Path(text).exists() else text
        folder = checkpoint.find(given)
        kinds = [setting.kind for setting in args.settings]
        settings = policy.settings(folder, kinds, Flags.of(args), EVAL_COT)
        named = given != text
        row = name if named else label(folder, settings.sidecar)
        return cls(given, folder, settings, row, named)

    def check(self, rows: list, world: World) -> None:
        """See `check_prompts`; the weights are not read."""
        config, tokenizer = checkpoint.outline(self.folder).config, Tokenizer(self.folder)
        texts = lengthened(rows, self.settings, Format(tokenizer))
        check_prompts(self.folder, config, tokenizer, texts, world)

    def load(self, args: Namespace, device: torch.device) -> Policy:
        """The model on a device, with the first kind of token of args.settings."""
        tokens, dtype = args.settings[0].kind, checkpoint.DTYPES[args.dtype]
        return Policy.load(self.folder, tokens, self.settings, device, dtype, args.plain)

    def identity(self) -> list:
        """Changes when a file of the model does; others may come, such as an evaluation's."""
        paths = [*map(self.folder.joinpath, checkpoint.NAMES), *self.folder.glob("*.safetensors*")]
        files = [(path, path.stat()) for path in paths if path.is_file()]
        return [self.given, *sorted([p.name, s.st_size, s.st_mtime_ns] for p, s in files)]

    def default_data(self) -> list[str]:
        tiny = self.settings.sidecar.get("defaults", {}).get("data") == "tiny"
        return ["tiny-test" if tiny else "gsm8k-test"]


def label(folder: Path, sidecar: dict) -> str:
    """What a model was trained from, on and with, or the name of its folder."""
    if "tokens" not in sidecar:
        return checkpoint.name_of(folder)
    trained = [str(sidecar[name]) for name in ("base", "data", "tokens") if name in sidecar]
    unusual = [name for name, value in USUAL.items() if sidecar.get(name, value) != value]
    return ", ".join([" ".join(trained), *(f"{name} {sidecar[name]}" for name in unusual)])


def apart(models: list[tuple[str, str, bool]]) -> list[str]:
    """The label of the row of each (label, path, whether the label is a NAME of the user's), which
    alone makes seeds of several models; other labels get what differs in the paths."""
    paths_of: dict[str, set] = {}
    for text, path, _ in models:
        paths_of.setdefault(text, set()).add(path)
    return [
        text if named or len(paths_of[text]) == 1 else f"{text} ({_rest(path, paths_of[text])})"
        for text, path, named in models
    ]


def _rest(path: str, paths: set[str]) -> str:
    """ "a/b": the parts of a path that not all begin or, if something is left of each, end with."""
    parts = [one.strip("/").split("/") for one in (path, *paths)]
    first = min(len(commonprefix(parts)), min(map(len, parts)) - 1)
    ends = [of_path[first:][::-1] for of_path in parts]
    last = len(commonprefix(ends))
    if last == min(map(len, ends)):
        last = 0
    return "/".join(ends[0][last:][::-1])


def find_all(args: Namespace) -> list[Subject]:
    """--model, with the labels of the rows.  Raises InputError where a model would be a seed of
    itself, or those of one row, which are its seeds, have other settings."""
    subjects = [Subject.find(text, args) for text in args.model]
    labels = apart([(s.label, str(s.folder.resolve()), s.named) for s in subjects])
    rows: list[Subject] = []
    for subject, text in zip(subjects, labels):
        rows.append(replace(subject, label=text))
        row = [each for each in rows if each.label == text]
        same = [each.given for each in row if each.folder.resolve() == subject.folder.resolve()]
        if len(same) > 1:
            found = " and ".join(same)
            raise InputError(f"--model: expected each once, found one folder in {found}")
        now, before = subject.settings.facts(), row[0].settings.facts()
        if differ := [name for name, value in now.items() if value != before[name]]:
            raise InputError(
                f"--model: expected models called {text!r} to differ in the seed only, found other "
                f"values for {', '.join(differ)} in {row[0].given} and {subject.given}; give them "
                "NAMEs"
            )
    return rows


@contextmanager
def output(args: Namespace, world: World):
    """Inside, --out is of this process alone.  Raises InputError where another one has it, where
    what is read or not ours would be written over, and in a folder of problems."""
    ends = (".json", ".jsonl", ".md") if args.show is None else (".png",)
    outputs = [args.out.with_suffix(end) for end in ends]
    template = [args.template] if args.template not in (None, CHAT) else []
    for path in map(Path, [*(args.data or []), *template]):
        if atomic.lies_in(args.out, path) or path.resolve() in map(Path.resolve, outputs):
            written = f"{path} is read and {args.out.stem}.* is written"
            raise InputError(f"--out: expected another name, since {written}")
    for path in outputs:
        check_written(path)
    lock = args.out.with_name(f"{args.out.name}.lock")
    held = world.all_or_none(lambda: world.main and state.lock(lock))
    try:
        yield
    finally:
        if held:
            lock.unlink(missing_ok=True)


def check_written(path: Path) -> None:
    """Raises InputError where a file is there that is neither empty nor one of ours (BEGINS)."""
    if path.exists():
        with path.open("rb") as file:
            head = file.read(2**14)
        ours = not head or re.match(BEGINS[path.suffix], head)
        expect(ours, path, "no such file, or one of an earlier call", head[:40])


def open_journal(args, subjects: list[Subject], sources: dict, verifier, world: World) -> Journal:
    """What an earlier call with the same flags, models and data had done; sources: {name: rows}."""
    facts = {name: getattr(args, name) for name in DECIDE}
    facts["settings"] = [str(setting) for setting in args.settings]
    facts["tokens"] = [subject.settings.facts() for subject in subjects]
    facts["reward"] = verifier.own_sha256
    facts["model"] = [subject.identity() for subject in subjects]
    hashes = [hashlib.sha256(repr(rows).encode()).hexdigest() for rows in sources.values()]
    facts["data"] = [list(pair) for pair in zip(sources, hashes)]
    return Journal(args.out, facts, world)
