"""The study: cells that are done, interrupted or failing; the statistics; tables and pictures from a made-up folder."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from minisoft import findings
from minisoft.errors import InputError
from minisoft.findings import at_accuracy, difference, show_difference, show_mean, student
from minisoft.study import PARTS, Cell, Study, main, remedies

ROOT = Path(__file__).resolve().parent.parent


def test_student_intervals_of_published_quantiles():
    assert student(2) == 4.303 and student(20) == student(500) == 2.086
    mean, half = difference([1.0, 2.0, 3.0], [0.0, 0.0, 3.0])  # variances 1 and 3: Welch's 16 / 5 = 3.2 degrees of freedom
    assert mean == 1.0 and half == pytest.approx(3.182 * (4 / 3) ** .5)
    mean, half = difference([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])  # all spread on one side: 2 degrees of freedom
    assert mean == -3.0 and half == pytest.approx(4.303 / 3**.5)
    mean, half = difference([1.0, 2.0, 3.0], 1.5)  # to a constant
    assert mean == 0.5 and half == pytest.approx(4.303 / 3**.5)
    assert difference([1.0], [2.0, 3.0]) is None and difference([1.0, 2.0], [1.0]) is None and difference([1.0], 1.0) is None
    assert difference([1.0, 1.0], [2.0, 2.0]) == (-1.0, 0.0)


def test_numbers_for_people():
    assert show_mean([.5, .6]) == "55.0 ± 7.1" and show_mean([.123], 1, 2) == "0.12" and show_mean([]) == ""
    assert show_difference([.5, .6], .5) == "+5.0 [-58.5, +68.5]" and show_difference([1.0, 1.0], .5) == "+50.0 (no spread)"


def test_entropy_at_an_accuracy_is_read_where_a_run_first_reaches_it():
    path = [{"greedy": a, "entropy": e} for a, e in ((.4, .2), (.6, .1), (.5, .05), (.9, .04))]
    assert at_accuracy(path, "greedy", .5) == pytest.approx(.15)
    assert at_accuracy(path, "greedy", .7) == pytest.approx(.05 + (.04 - .05) * .5)
    assert at_accuracy(path, "greedy", .3) is None and at_accuracy(path, "greedy", .95) is None


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_the_best_learning_rate_on_validation_the_smaller_of_equals(tmp_path):
    for kind, found in {"hard": (.1, .9, .9, .2), "soft": (.5, .4, .3, .2), "fuzzy": (.1, .1, .1, .3)}.items():
        for lr, value in zip(("1e-4", "2e-4", "4e-4", "8e-4"), found):
            validated(tmp_path / f"sweep/{kind}-{lr}", [.99, value - .01, None, value + .01])  # a lucky one does not count
    assert Study(tmp_path, 3, 1).chosen() == {"hard": "2e-4", "soft": "1e-4", "fuzzy": "8e-4"}
    stages = Study(tmp_path, 1, 1).stages([])
    assert len(next(stages)) == 12 and [c.name for c in next(stages)] == ["sweep/soft-5e-5", "sweep/fuzzy-1.6e-3"]
    validated(tmp_path / "sweep/soft-5e-5", [.2, .2])
    validated(tmp_path / "sweep/fuzzy-1.6e-3", [.4, .4])
    assert [c.name for c in next(stages)] == ["sweep/fuzzy-3.2e-3"]
    validated(tmp_path / "sweep/fuzzy-3.2e-3", [.4, .4])  # not better
    assert [c.command[4] for c in next(stages)] == ["2e-4", "1e-4", "1.6e-3"]


def validated(run: Path, values: list) -> None:
    """A finished run with these validations."""
    write(run / "summary.json", {})
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": i} | ({"validation": v} if v is not None else {})) + "\n"
                                               for i, v in enumerate(values)))


def test_a_test_older_than_its_model_is_done_again(tmp_path):
    study, model = Study(tmp_path, 1, 1), tmp_path / "train/x/best/model.safetensors"
    testing = study.evaluate("test/x", [f"soft={model.parent}"])
    write(model, {}), write(testing.result, {})
    os.utime(model, (1, 1))
    assert study.is_done(testing)
    os.utime(testing.result, (0, 0))
    assert not study.is_done(testing)


def test_a_run_with_another_learning_rate_is_not_taken_for_done(tmp_path):
    study = Study(tmp_path, 1, 1)
    write(tmp_path / "train/x/summary.json", {})
    write(tmp_path / "train/x/config.json", {"lr": 2e-4})
    assert run(study, [study.train("train/x", "soft", "2e-4", 0)]) == 0
    with pytest.raises(InputError, match="expected a run with --lr 0.0004, .* found one with 0.0002; move it away"):
        run(study, [study.train("train/x", "soft", "4e-4", 0)])


def cell(folder: Path, name: str, code: str) -> Cell:
    return Cell(name, ("-c", code), folder / f"{name}.json")


def run(study: Study, cells: list[Cell]) -> int:
    with tqdm(total=0, disable=True) as bar:
        study.run(cells, bar)
        return bar.total


def test_cells_are_done_once_and_written_down(tmp_path):
    study = Study(tmp_path, 1, 2)
    cells = [cell(tmp_path, f"part/{i}", f"import os; open(r'{tmp_path}/part/{i}.json', 'x').write(os.environ['OMP_NUM_THREADS'])")
             for i in range(3)]
    assert run(study, cells[:1]) == 1 and run(study, cells) == 2 and run(study, cells) == 0  # 'x' would fail the second time
    lines = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert sorted(line["cell"] for line in lines) == ["part/0", "part/1", "part/2"]
    assert all(line["command"].startswith("OMP_NUM_THREADS=1 python -c") and line["seconds"] >= 0 for line in lines)
    assert (tmp_path / "part/2.json").read_text() == "1"


def test_a_cell_that_fails_is_named_with_its_log_and_stops_the_study(tmp_path):
    study = Study(tmp_path, 1, 1)
    cells = [cell(tmp_path, "bad", "import sys; sys.exit('no such thing')"), cell(tmp_path, "later", "pass")]
    with pytest.raises(InputError, match=r"bad: expected .*bad.json, found exit status 1; see .*logs/bad.log"):
        run(study, cells)
    assert "no such thing" in (tmp_path / "logs/bad.log").read_text() and not (tmp_path / "logs/later.log").exists()
    with pytest.raises(InputError, match="exit status 0"):  # ended well, but left nothing
        run(Study(tmp_path, 1, 1), [cell(tmp_path, "empty", "pass")])


def test_a_training_cell_that_was_interrupted_is_resumed(tmp_path, monkeypatch):
    study, called = Study(tmp_path, 1, 1), []
    real = subprocess.Popen

    def start(command, **how):
        if "train.py" not in command:
            return real(command, **how)
        called.append(command)
        write(tmp_path / "train/x/summary.json", {})
        return real([sys.executable, "-c", ""], **how)
    monkeypatch.setattr(subprocess, "Popen", start)
    training = study.train("train/x", "soft", "2e-4", 0)
    write(tmp_path / "train/x/config.json", {})
    run(study, [training])
    assert called[0][1:4] == ["train.py", "--tokens", "soft"] and called[0][-1] == "--resume"


def test_sigterm_ends_the_cells_at_work_too(tmp_path):
    """The study in a process of its own, which gets SIGTERM once its cell works."""
    started, ended = tmp_path / "started", tmp_path / "ended"
    work = f"""import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(r'{ended}').touch(), sys.exit()))
pathlib.Path(r'{started}').touch()
time.sleep(60)"""
    study = subprocess.Popen([sys.executable, "-c", f"""import pathlib
from minisoft import study
one = study.Cell("x", ("-c", {work!r}), pathlib.Path(r"{tmp_path}/x.json"))
study.Study.stages = lambda self, parts: iter([[one]])
study.main(["--out", r"{tmp_path}/study"])"""], stderr=subprocess.PIPE, text=True)
    while not started.exists() and study.poll() is None:
        time.sleep(.05)
    study.terminate()
    assert "minisoft.study: interrupted; the same command goes on" in study.communicate(timeout=30)[1]
    assert study.returncode == 1 and ended.exists()


def test_the_commands_are_those_of_the_programs(tmp_path):
    """Every flag of every stage is one that its program knows, and names are unique."""
    import eval as evaluation
    import train
    from minisoft import gradient
    study, found = Study(tmp_path, 2, 1), []
    study.chosen, study.untried = (lambda: dict.fromkeys(("hard", "soft", "fuzzy"), "2e-4")), (lambda: [])
    study.at_step = lambda kind, seed, step: tmp_path / f"{kind}-{seed}-{step}"
    (tmp_path / "gradient").mkdir()
    for cells in study.stages(list(PARTS)):
        for one in cells:
            program, flags = one.command[0], list(one.command[1:])
            parse = {"train.py": train.read_flags, "eval.py": evaluation.read_flags}.get(program)
            parse(flags) if parse else gradient.read_flags(flags[1:])
            found.append(one.name)
    assert len(found) == len(set(found)) == 12 + 6 + 7 + 6 + 9 + 4 * len(remedies()) + 9 + 8 + 4 + 4


def numbers(value: float, samples: int) -> dict:
    return {**{f"pass@{k}": min(1.0, value + .01 * k) for k in range(1, samples + 1)}, "boxed": 1.0, "truncated": 0.0,
            "cot_length": 30.0, "entropy": .2 - .1 * value, "entropy_by_position": [.2] * 8, "rows_by_position": [40] * 8}


def result(label: str, model: str, value: float) -> dict:
    common = {"model": model, "label": label, "samples": 32, "seed": 0, "problems": 200}
    six = {f"{kind}-{how}": numbers(value, 1 if how == "greedy" else 32) for kind in ("hard", "soft", "fuzzy")
           for how in ("greedy", "sample")}
    return {"runs": [{**common, "data": data, "settings": six} for data in findings.PROBLEMS] + [
        {**common, "data": data, "settings": {}, "choices": {"accuracy": value, "accuracy_norm": value, "nll": 1 - value}}
        for data in findings.SKILLS]}


def signal() -> dict:
    one = {"norm": 3.0, "cosine": .1, "cosine_error": .02, "snr": .1, "snr_error": .03}
    return {"signal": {term: {part: one for part in ("E", "body", "all")} for term in ("cot", "answer", "both")},
            "norms": [1.0, 2.0, 3.0], "ties": {"still_moving": .1, "tied_in_bfloat16": .01}}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A whole study that nobody ran: hard reaches 80 %, soft 70 %, fuzzy 40 %, the base has 40 %."""
    write(tmp_path / "test/base.json", result("base", "tiny", .4))
    for kind, reached in {"hard": .8, "soft": .7, "fuzzy": .4}.items():
        for seed in range(3):
            value = reached + .01 * seed
            write(tmp_path / f"test/{kind}-s{seed}.json", result(kind, f"{kind}{seed}", value))
            settings = lambda v: {"data": "tiny-test", "settings": {"hard-greedy": numbers(v, 1), "hard-sample": numbers(v, 8)}}
            write(tmp_path / f"longer-test/{kind}-s{seed}.json", result(kind, f"{kind}{seed}", value + .05))
            write(tmp_path / f"checkpoints/{kind}-s{seed}.json", {"runs": [settings(v) for v in (.5, .55, .6)]})
            for name in (f"train/{kind}", f"ablation/{kind}-cot", f"ablation/{kind}-answer", "variance/prefix", "fuzzy/tau-0.1"):
                write(tmp_path / f"{name}-s{seed}/summary.json", {"after": {"hard-greedy": {"pass@1": value}}})
                write(tmp_path / f"{name}-s{seed}/config.json", {"tokens": kind, "seed": seed, "lr": 2e-4})
                (tmp_path / f"{name}-s{seed}/metrics.jsonl").write_text("".join(
                    json.dumps({"step": i, "accuracy": value, "seconds": i}) + "\n" for i in (1, 2, 3)))
        for step in (0, 30, 60):
            write(tmp_path / f"gradient/{kind}-{step}.json", signal())
        validated(tmp_path / f"sweep/{kind}-2e-4", [reached, reached])
    write(tmp_path / "gradient/fuzzy-tau-0.1.json", signal())
    write(tmp_path / "gradient/prefix-0.json", {**signal(), "norms": [2.0, 4.0, 6.0]})
    write(tmp_path / "cells.jsonl", {"cell": "x", "command": "python x", "commit": "abc", "seconds": 120.0})
    return tmp_path


def test_tables_of_a_study(folder, capsys):
    findings.write(folder)
    text = (folder / "study.md").read_text()
    assert all(title in text for title, _ in findings.SECTIONS)
    assert "1 cells of one thread, 2 minutes in all" in text and "commits abc" in text
    row = next(line for line in text.splitlines() if line.startswith("| tiny-test, hard-greedy"))
    assert [c.strip() for c in row.split("|")[2:8]] == ["41.0", "82.0 ± 1.0", "72.0 ± 1.0", "42.0 ± 1.0",
                                                        "-10.0 [-12.3, -7.7]", "-40.0 [-42.3, -37.7]"]
    assert "| hard   | 80.0 |" in text  # the sweep
    assert next(line for line in text.splitlines() if line.startswith("| prefix")).split("|")[4].strip() == "4.00 ± 0.00"
    assert capsys.readouterr().out.strip().endswith("study.md")


def test_pictures_of_a_study(folder):
    pytest.importorskip("matplotlib")
    findings.write(folder)
    for name in ("training", "pass_at_k", "entropy", "gradient", "matched"):
        assert (folder / f"{name}.png").stat().st_size > 10_000


def test_part_of_a_study_is_told_as_far_as_it_goes(folder):
    for path in (*folder.glob("test/*"), *folder.glob("longer-test/*"), *folder.glob("gradient/*"), *folder.glob("checkpoints/*")):
        path.unlink()
    findings.write(folder)
    text = (folder / "study.md").read_text()
    assert "## Which terms learn" in text and "## Finding" not in text


@pytest.mark.parametrize("flags, message", [
    (["--out", "x", "--parts", "everything"], "--parts: expected all or some of"), (["--out", "x", "--seeds", "0"], "--seeds"),
    ([], "--out")])
def test_bad_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(flags)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_commands_without_running_them(tmp_path):
    shown = subprocess.run([sys.executable, "-m", "minisoft.study", "--out", str(tmp_path / "s"), "--list"], text=True, cwd=ROOT,
                           capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    lines = shown.stdout.splitlines()
    assert shown.returncode == 0 and len(lines) == 13 and lines[0].startswith("OMP_NUM_THREADS=1 python train.py --tokens hard --lr 1e-4")
    assert lines[-1].startswith("# the commands that follow") and not (tmp_path / "s").exists()
    nothing = subprocess.run([sys.executable, "-m", "minisoft.findings", str(tmp_path)], text=True, cwd=ROOT, capture_output=True,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert nothing.returncode == 1 and "expected results of minisoft.study" in nothing.stderr
