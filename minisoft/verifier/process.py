"""Scores answers, with Math-Verify behind a wall: a child process, killed when it hangs or grows.
To accept a wrong answer costs a policy more than to refuse an odd spelling of a right one."""

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import DEVNULL, PIPE

from minisoft.data import boxed
from minisoft.errors import InputError, expect, expecting
from minisoft.reward import reward
from minisoft.verifier.compare import Comparison
from minisoft.verifier.spelling import exact

_SAID = os.environ.get("LOCAL_WORLD_SIZE", "")  # of ranks on this machine; World refuses odd ones
_RANKS = int(_SAID) if _SAID.isdecimal() and int(_SAID) else 1
WORKERS = max(1, min(4, (os.cpu_count() or 1) // _RANKS))  # children that pay, for each rank
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
STARTUP_S = 120.0  # importing sympy from a cold network disk is slow


class Verifier(AbstractContextManager):
    """Scores answers, for one thread; a context manager.  `workers` children start at need.  An
    answer is wrong if its formulas together need more than `deadline_s` (start-up not counted) or
    `memory_bytes`.  `counts`: how many answers were decided by what, the costliest of it: "unboxed"
    (reward 0), "exact" (as text), "numeric", "symbolic" (Math-Verify answered), "timed_out",
    "killed" (it died), "refused" (by its form)."""

    own = own_sha256 = None  # or the `OwnReward` that generations are paid by, and its file's hash

    def __init__(self, deadline_s: float = 2.0, memory_bytes: int = 1 << 30, workers: int = 1):
        self.counts = Counter()
        self.judges = [Judge(deadline_s, memory_bytes) for _ in range(workers)]

    def close(self, *_):
        """End the children, if there are any."""
        for judge in self.judges:
            judge.end_child()
        if self.own:
            self.own.close()

    __exit__ = close

    def score(self, answer_text: str, gold: str) -> int:
        r"""100, 10 or 0 (eq. 11) for what follows `\boxed{`; InputError without Math-Verify."""
        score, costliest = self.judges[0].judge(answer_text, gold)
        self.counts[costliest] += 1
        return score

    def score_all(self, pairs: list[tuple[str, str]]) -> list[int]:
        """`score` of each (answer_text, gold).  Equal pairs are judged once, and counted each."""
        idle = [*self.judges]  # as many as threads, so that each finds one

        def verdict(pair: tuple[str, str]) -> tuple[int, str]:
            judge = idle.pop()
            try:
                return judge.judge(*pair)
            finally:
                idle.append(judge)

        unique = list(dict.fromkeys(pairs))
        with ThreadPoolExecutor(len(self.judges)) as pool:
            verdicts = dict(zip(unique, pool.map(verdict, unique), strict=True))
        self.counts.update(verdicts[pair][1] for pair in pairs)
        return [verdicts[pair][0] for pair in pairs]


class Judge:
    """One answer at a time, and a child process that is asked about its formulas."""

    module = __name__  # what the child runs
    hello = b""  # what it reads first

    def __init__(self, deadline_s: float, memory_bytes: int):
        self.deadline_s, self.memory_bytes = deadline_s, memory_bytes
        self.child: subprocess.Popen | None = None

    def judge(self, answer_text: str, gold: str) -> tuple[int, str]:
        """(reward, for what it is to be counted)."""
        answer = boxed(answer_text)
        if not (answer and answer.strip()) or _CONTROL.search(answer):
            return reward(boxed=False, right=False), "unboxed"
        self._seconds_left, self._asked = self.deadline_s, None
        comparison = Comparison(self._ask)
        right = comparison.same(gold, answer)
        costliest = self._asked or ("numeric" if comparison.used_numbers else None)
        return reward(boxed=True, right=right), costliest or ("exact" if right else "refused")

    def _ask(self, gold: str, answer: str) -> bool:
        """Math-Verify's opinion on two formulas, if time is left for this answer."""
        if self._seconds_left <= 0:
            return False
        self.need_child()
        question = json.dumps([exact(gold), exact(answer)])
        began = time.monotonic()
        reply = self.ask_child(question.encode() + b"\n", self._seconds_left)
        self._seconds_left -= time.monotonic() - began
        self._asked = "symbolic" if reply else "timed_out" if reply is None else "killed"
        if not reply:
            self._seconds_left = 0
        return reply == b"true\n"

    def ask_child(self, question: bytes, seconds: float) -> bytes | None:
        """A line from the child, b"" if it died, None if it did not answer in time."""
        reply = None
        try:
            self.child.stdin.write(question)
            if select.select([self.child.stdout], [], [], seconds)[0]:
                reply = self.child.stdout.readline()
            return reply
        finally:  # also after Ctrl-C in a notebook: the reply would answer the next question
            if not reply:
                self.end_child()

    def need_child(self):
        """Start it, if none is there.  Raises InputError where it cannot be used."""
        if self.child and self.child.poll() is None:
            return
        self.end_child()
        command = [sys.executable, "-m", self.module, str(self.deadline_s), str(self.memory_bytes)]
        pipes = {"stdin": PIPE, "stdout": PIPE, "stderr": DEVNULL, "bufsize": 0}
        root = Path(__file__).resolve().parents[2]
        self.child = subprocess.Popen(command, cwd=root, start_new_session=True, **pipes)
        reply = self.ask_child(self.hello, STARTUP_S)
        expect(reply, self.module, "the start of a child process", reply)
        if reply != b"ready\n":
            self.end_child()
            raise InputError(json.loads(reply))

    def end_child(self):
        if self.child:
            with self.child as child:
                child.kill()
        self.child = None


def serve(load, deadline_s: str, memory_bytes: str):
    """The child: a line of arguments in, the value of the function that load() has made out, until
    stdin closes or, if it hangs, an alarm.  Before that "ready", or the InputError of load()."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing else may print between the replies
    try:
        function = load()
    except InputError as error:
        print(json.dumps(str(error)), file=replies)
        return
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    print("ready", file=replies)
    for line in sys.stdin:
        signal.alarm(int(float(deadline_s)) + 2)
        print(json.dumps(function(*json.loads(line))), file=replies)
        signal.alarm(0)


def math_verify():
    """Are two formulas equal?  Raises InputError where Math-Verify is missing."""
    with expecting("its start", "Math-Verify (pip install math-verify)"):
        from math_verify import LatexExtractionConfig, LatexNormalizationConfig, parse, verify
    no_changes = {"units": False, "malformed_operators": False, "nits": False, "boxed": "none"}
    config = [LatexExtractionConfig(normalization_config=LatexNormalizationConfig(**no_changes))]
    digits = {"float_rounding": 100, "numeric_precision": 100}  # so many that nothing rounds

    def equal(*formulas: str) -> bool:  # the gold first; the deadline is not Math-Verify's business
        gold, answer = (
            parse(f"${f}$", config, "no_fallback", parsing_timeout=None) for f in formulas
        )
        return verify(gold, answer, **digits, timeout_seconds=None)

    equal("x + 1", "1 + x")  # compiles its patterns before the clock runs
    return equal


if __name__ == "__main__":
    serve(math_verify, *sys.argv[1:])
