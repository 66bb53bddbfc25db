"""No answer can hurt or hold up the process that scores it; every answer is counted once."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import ROOT, python

from minisoft.errors import InputError
from minisoft.reward import BOXED, RIGHT, UNBOXED, reward, score
from minisoft.verifier import process
from minisoft.verifier.process import Judge, Verifier

HANG = "999999999!+x}", "x+999999999"  # the gold's own numbers may have a factorial


def test_the_reward_is_equation_11():
    assert reward(boxed=True, right=True) == RIGHT == 100
    assert reward(boxed=True, right=False) == BOXED == 10
    assert reward(boxed=False, right=False) == UNBOXED == 0


COUNTED = [("}", "1"), ("2}", "3"), (r"\text{no}}", r"\text{no}"), ("y}", "y"), ("1,2}", "3,4,5")]
COUNTED += [("2(x+1)}", "2x+2"), ("x, 1+y}", "y+1, x"), ("(3, x+2, 5)}", "(3, x+1, 5)"), HANG]
COUNTED += [("east}", "west"), ("9^{9^{9}}+x}", "x+1"), ("9^{009999999999}+x}", "x+1")]


def test_counts():
    with Verifier(deadline_s=0.5) as verifier:
        for text, gold in COUNTED:
            verifier.score(text, gold)
        expected = {"unboxed": 1, "numeric": 1, "exact": 2, "symbolic": 3, "refused": 4}
        assert verifier.counts == {**expected, "timed_out": 1}


def test_equal_questions_are_judged_once():
    with Verifier(deadline_s=0.5) as verifier:
        began = time.monotonic()
        assert verifier.score_all([HANG] * 40) == [10] * 40
        assert time.monotonic() - began < 15 and verifier.counts == {"timed_out": 40}


def test_a_hang_delays_no_other_answer(monkeypatch):
    ends, untimed = {}, Judge.judge

    def timed(judge, *question):
        verdict = untimed(judge, *question)
        ends[question] = time.monotonic()
        return verdict

    easy = [(f"{n}+x}}", f"x+{n}") for n in range(9)]
    with Verifier(deadline_s=4, workers=2) as team:
        assert team.score_all(easy[:2]) == [100, 100]
        monkeypatch.setattr(Judge, "judge", timed)
        began = time.monotonic()
        assert team.score_all([HANG, *easy]) == [10] + [100] * 9
        assert max(ends[question] for question in easy) < began + 3.5 < ends[HANG] < began + 5


def test_a_child_killed_at_its_deadline_is_no_other_ones():
    with Verifier(deadline_s=1, workers=2) as team:
        team.score_all([("1+x}", "x+1"), ("2+x}", "x+2")])
        slow = [(f"99999999{n}!+x}}", f"x+99999999{n}") for n in range(3)]
        questions = [slow[0], ("3+x}", "x+3"), *slow[1:], ("4+x}", "x+4")]
        assert team.score_all(questions) == [BOXED, RIGHT, BOXED, BOXED, RIGHT]
        assert team.counts == {"symbolic": 4, "timed_out": 3}


def test_a_mistake_in_score_all_is_raised():
    with Verifier(workers=2) as team, pytest.raises(TypeError):
        team.score_all([("1}", "1"), (None, "2"), ("3}", None)])


def test_numbers_and_texts_start_no_child(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with Verifier() as verifier:
        answers = ("1450}", "1451}", r"\sqrt{2}}", "x+1}", "one}")
        assert [verifier.score(text, "1,450") for text in answers] == [100, 10, 10, 10, 10]


def test_a_hang_ends_at_the_deadline():
    with Verifier(deadline_s=0.5) as verifier:
        assert verifier.score("1+x}", "x+1") == 100
        hung, began = verifier.judges[0].child, time.monotonic()
        answer, gold = (", ".join([text.rstrip("}")] * 10) for text in HANG)
        assert verifier.score(answer + "}", gold) == 10
        assert time.monotonic() - began < 2  # one deadline for the whole answer
        assert hung.poll() is not None and verifier.counts["timed_out"] == 1
        assert verifier.score("1+x}", "x+1") == 100


def test_memory_bomb():
    with Verifier(deadline_s=20, memory_bytes=200 << 20) as verifier:
        assert verifier.score("1+x}", "x+1") == 100
        child = verifier.judges[0].child.pid
        assert resource.prlimit(child, resource.RLIMIT_AS) == (200 << 20, 200 << 20)
        assert resource.prlimit(child, resource.RLIMIT_CORE) == (0, 0)
        assert verifier.score("2^{8589934592}+x}", "x+8589934592") == 10  # an integer of a gigabyte
        # refused at once, not computed for as long as it takes
        assert verifier.counts["timed_out"] == 0
        assert verifier.score("1+x}", "x+1") == 100


def test_a_dead_child_is_replaced():
    with Verifier(deadline_s=30) as verifier:
        assert verifier.score("1+x}", "x+1") == 100
        os.kill(verifier.judges[0].child.pid, signal.SIGKILL)  # while idle: nobody notices
        verifier.judges[0].child.wait()
        assert verifier.score("1+x}", "x+1") == 100
        at_work = f"sleep 0.5; kill -9 {verifier.judges[0].child.pid}"  # its answer is lost
        killer = subprocess.Popen(["sh", "-c", at_work])
        assert verifier.score(*HANG) == 10
        killer.wait()
        assert verifier.counts["killed"] == 1
        assert verifier.score("1+x}", "x+1") == 100


def test_interrupts_are_for_the_parent(verifier):
    assert verifier.score("1+x}", "x+1") == 100
    child = verifier.judges[0].child
    os.kill(child.pid, signal.SIGINT)
    assert verifier.score("2+x}", "x+2") == 100
    assert verifier.judges[0].child is child


def test_an_interrupted_question_leaves_no_stale_reply(monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with Verifier() as verifier:
        assert verifier.score("1+x}", "x+1") == 100
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(process.select, "select", interrupt)
            verifier.score("2+x}", "x+2")
        assert verifier.score("3+x}", "x+4") == 10


def is_running(process_id):
    status = Path(f"/proc/{process_id}/stat")
    return status.exists() and "Z" not in status.read_text().split()[2]


def test_the_child_ends_with_a_killed_parent():
    script = (
        "import time; from minisoft.verifier.process import Verifier; v = Verifier(); "
        "v.score('1+x}', 'x+1'); judge, = v.judges; print(judge.child.pid, flush=True); "
        "judge.deadline_s = 60; v.score(*%s); time.sleep(60)"
    )
    for question in (("2+x}", "x+2"), HANG):  # idle, or at work when the parent dies
        command = [sys.executable, "-c", script % (question,)]
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
        parent.communicate()
        ends = time.monotonic() + 8
        while is_running(child):
            assert time.monotonic() < ends
            time.sleep(0.1)


def test_a_child_that_cannot_start_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('no such thing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    message = "pip install math-verify.*no such thing"
    with Verifier() as verifier, pytest.raises(InputError, match=message):
        verifier.score("1+x}", "x+1")


def test_the_module_score_needs_no_main_guard(tmp_path):
    (tmp_path / "user.py").write_text(
        "from minisoft.reward import score\n"
        "print(score('1+x} text', 'x+1'), score('x}', 'x+1'), score('x', 'x'))"
    )
    done = python("user.py", env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("100 10 0\n", "")
    assert score("18}", "18") == 100


def test_the_verifier_imports_no_torch():
    code = "import minisoft.verifier.process, sys; print(*sys.modules)"
    loaded = python("-c", code).stdout.split()
    assert "minisoft.verifier.process" in loaded and not {"torch", "sympy"} & {*loaded}
