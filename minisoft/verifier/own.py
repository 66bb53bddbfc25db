"""A reward of one's own, `--reward FILE.py`, behind the wall of `process`: reward(answer, gold),
answer the text in the box, None where none closes.  The file is read once, and runs in child
processes, where the program was started."""

import hashlib
import inspect
import json
import os
import sys
import traceback
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import SupportsFloat

from minisoft.data import boxed
from minisoft.errors import InputError, expecting
from minisoft.verifier.process import WORKERS, Judge, Verifier, serve

DEADLINE_S, MEMORY_BYTES = 60.0, 4 << 30  # of a call; of a child, its address space


class OwnReward(Verifier):
    """The reward() of a file.  Raises InputError for a file without one, and where a call fails."""

    def __init__(self, path: str, workers: int = 1, deadline_s: float = DEADLINE_S):
        super().__init__(workers=0)
        with expecting("a Python file", path):
            source = Path(path).read_bytes()
        self.sha256 = hashlib.sha256(source).hexdigest()
        self.judges = [OwnJudge(path, source, deadline_s) for _ in range(workers)]
        self.judges[0].need_child()

    def pay(self, generations: list[dict]) -> None:
        """Their `reward` is the file's from now on; the verifier's stays beside it, `verified`."""
        rewards = self.score_all([(x["answer"], x["gold"]) for x in generations])
        for generation, reward in zip(generations, rewards, strict=True):
            generation.update(verified=generation["reward"], reward=reward)


class OwnJudge(Judge):
    """One call at a time, in a child process."""

    module = __name__

    def __init__(self, path: str, source: bytes, deadline_s: float):
        super().__init__(deadline_s, MEMORY_BYTES)
        self.path = path
        self.hello = json.dumps([os.getcwd(), path, source.decode("latin-1")]).encode() + b"\n"

    def judge(self, answer_text: str, gold: str) -> tuple[float, str]:
        """(reward, "own").  Raises InputError."""
        self.need_child()
        call = boxed(answer_text), gold
        reply = self.ask_child(json.dumps(call).encode() + b"\n", self.deadline_s)
        if not reply:
            expected = f"a number in {self.deadline_s:g} s and {MEMORY_BYTES >> 30} GiB"
            found = "none" if reply is None else "that its process has died"
            where = f"{self.path}: reward{call!r:.80}"
            raise InputError(f"{where}: expected {expected}, found {found}")
        value = json.loads(reply)
        if isinstance(value, str):
            raise InputError(value)
        return value, "own"


def verifier_of(file: str | None) -> Verifier:
    """What a program scores answers with; file: that of --reward."""
    verifier = Verifier(workers=WORKERS)
    if file:
        verifier.own = OwnReward(file, WORKERS)
        verifier.own_sha256 = verifier.own.sha256
    return verifier


def load():
    """In the child: the file's reward(), as a number or a text, why not.  Raises InputError."""
    folder, path, source = json.loads(sys.stdin.readline())
    os.chdir(folder)
    module = sys.modules["own_reward"] = ModuleType("own_reward")

    def failed(expected: str, found, line: int | None = None) -> str:
        if isinstance(found, SyntaxError):
            line = found.lineno
        for frame in traceback.extract_tb(getattr(found, "__traceback__", None)):
            line = frame.lineno if frame.filename == path else line
        where = f"{path}:{line}" if line else path
        return f"{where}: expected {expected}, found {' '.join(repr(found).split()):.200}"

    try:
        exec(compile(source.encode("latin-1"), path, "exec"), vars(module))
        reward = module.reward
        begins = inspect.unwrap(reward).__code__.co_firstlineno
    except (Exception, SystemExit) as error:
        raise InputError(failed("a function reward(answer, gold)", error)) from None

    def value_or_error(*call) -> float | str:
        try:
            value = reward(*call)
            if isinstance(value, SupportsFloat) and isfinite(value):
                return float(value)
        except (Exception, SystemExit) as error:
            value = error
        return failed(f"a finite number of reward{call!r:.80}", value, begins)

    return value_or_error


if __name__ == "__main__":
    serve(load, *sys.argv[1:])
