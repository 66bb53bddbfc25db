"""The study: cells that are done, interrupted or failing; the statistics; tables and pictures from
a made-up folder."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from runs import ROOT, tiny_at

from minisoft.errors import InputError
from minisoft.io import WEIGHTS
from minisoft.lab import findings
from minisoft.lab.findings import difference, show_difference, student
from minisoft.lab.study import Cell, Runner, Study, hours, main, read_flags
from minisoft.lab.trainings import PAPERS, PROBLEMS, SKILLS, TRAININGS
from minisoft.run.tables import show_mean


def test_student_intervals_of_published_quantiles():
    assert student(2) == 4.303 and student(20) == student(500) == 2.086
    some = [1.0, 2.0, 3.0]
    welch = pytest.approx((1.0, 3.182 * (4 / 3) ** 0.5))  # 16 / 5 degrees of freedom
    assert difference(some, [0.0, 0.0, 3.0]) == welch
    half = 4.303 / 3**0.5  # all spread on one side, and to a constant: 2
    assert difference(some, [5.0, 5.0, 5.0]) == pytest.approx((-3.0, half))
    assert difference(some, 1.5) == pytest.approx((0.5, half))
    for few in (([1.0], [2.0, 3.0]), ([1.0, 2.0], [1.0]), ([1.0], 1.0)):
        assert difference(*few) is None
    assert difference([1.0, 1.0], [2.0, 2.0]) == (-1.0, 0.0)


def test_numbers_for_people():
    assert show_mean([0.5, 0.6]) == "55.0 ± 7.1"
    assert show_mean([0.123], 1, 2) == "0.12" and show_mean([]) == ""
    assert show_difference([0.5, 0.6], 0.5) == "+5.0 [-58.5, +68.5]"
    assert show_difference([1.0, 1.0], 0.5) == "+50.0 (no spread)"


def write(path: Path, *values) -> None:
    """Values as JSON, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def small(out: Path, *flags: str) -> Study:
    return read_flags(["--out", str(out), "--seeds", "1", *flags])


def test_a_test_older_than_its_model_is_done_again(tmp_path):
    model, runner = tmp_path / "train/x/best/model.safetensors", Runner(tmp_path, 1)
    testing = small(tmp_path).test("test/x", f"soft={model.parent}", ["hard"])
    write(model, {}), write(testing.result, {})
    os.utime(model, (1, 1))
    assert runner.is_done(testing)
    os.utime(testing.result, (0, 0))
    assert not runner.is_done(testing)


def test_a_run_without_a_best_model_is_tested_by_its_last(tmp_path):
    """--validation 0; before it has ended nothing is there."""
    for there, tested in (("", "best"), ("last", "last"), ("best", "best")):
        (tmp_path / "train/soft-s0" / there).mkdir(parents=True, exist_ok=True)
        _, tests = small(tmp_path).stages()
        assert any(f"soft={tmp_path}/train/soft-s0/{tested}" in x.command for x in tests)


def test_the_result_of_another_command_is_not_taken_for_done(tmp_path):
    """Wherever the study and the repository were when it was done."""
    one = small(tmp_path, "--data", "MATH/train").train("soft", 0)
    write(one.result, {})
    words = str(one).replace(str(tmp_path), "/elsewhere").replace("MATH", "/sets/MATH")
    write(tmp_path / "cells.jsonl", {"cell": one.name, "command": words})
    assert Runner(tmp_path, 1).run([one]) == 0
    for now, before in (("--lr 2e-4", "--lr 4e-4"), ("MATH/train", "GSM8K/train")):
        other = words.replace(now, before)
        write(tmp_path / "cells.jsonl", {"cell": one.name, "command": other})
        with pytest.raises(InputError, match="summary.json: expected the result of .* move it"):
            Runner(tmp_path, 1).run([one])


def cell(folder: Path, name: str, code: str) -> Cell:
    return Cell(name, ("-c", code), folder / f"{name}.json")


def test_cells_are_done_once_and_written_down(tmp_path):
    runner = Runner(tmp_path, 2)
    code = "import os; open(r'{}', 'x').write(os.environ['OMP_NUM_THREADS'])"  # 'x': not twice
    paths = [tmp_path / f"part/{i}.json" for i in range(3)]
    cells = [cell(tmp_path, f"part/{i}", code.format(path)) for i, path in enumerate(paths)]
    assert runner.run(cells[:1]) == 1 and runner.run(cells) == 2 and runner.run(cells) == 0
    lines = findings.read_cells(tmp_path)
    assert sorted(line["cell"] for line in lines) == ["part/0", "part/1", "part/2"]
    with (tmp_path / "cells.jsonl").open("a") as file:
        file.write('{"cell": "part/')  # as a full disk leaves it
    assert findings.read_cells(tmp_path) == lines
    first = "OMP_NUM_THREADS=1 python -c"
    assert all(line["command"].startswith(first) and line["seconds"] >= 0 for line in lines)
    assert paths[2].read_text() == "1"


def test_a_cell_that_fails_is_named_with_its_log_and_stops_the_study(tmp_path):
    bad = cell(tmp_path, "bad", "import sys; sys.exit('no such thing')")
    with pytest.raises(InputError, match=r"bad: expected .*bad.json, found .* 1; see .*bad.log"):
        Runner(tmp_path, 1).run([bad, cell(tmp_path, "later", "pass")])
    assert "no such thing" in (tmp_path / "logs/bad.log").read_text()
    assert not (tmp_path / "logs/later.log").exists()
    with pytest.raises(InputError, match="exit status 0"):  # ended well, but left nothing
        Runner(tmp_path, 1).run([cell(tmp_path, "empty", "pass")])


def test_an_error_of_the_disk_waits_for_the_cells_at_work(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/two").touch()  # where a folder is needed
    slow = cell(tmp_path, "slow", f"import time; time.sleep(1); open(r'{tmp_path}/slow.json', 'x')")
    with pytest.raises(InputError, match="logs/two"):
        Runner(tmp_path, 2).run([slow, cell(tmp_path, "two/x", "pass")])
    assert slow.result.exists() and findings.read_cells(tmp_path)[0]["done"]


def test_a_training_cell_that_was_interrupted_is_resumed(tmp_path, monkeypatch):
    called, real = [], subprocess.Popen

    def start(command, **how):
        if "train.py" not in command:
            return real(command, **how)
        called.append(command)
        write(tmp_path / "train/soft-s0/summary.json", {})
        return real([sys.executable, "-c", ""], **how)

    monkeypatch.setattr(subprocess, "Popen", start)
    write(tmp_path / "train/soft-s0/config.json", {})
    Runner(tmp_path, 1).run([small(tmp_path).train("soft", 0)])
    assert called[0][1:4] == ["train.py", "--tokens", "soft"] and called[0][-1] == "--resume"


@pytest.mark.parametrize("to_the_cell_too", [False, True])
def test_a_study_that_is_stopped_waits_for_its_cells(tmp_path, to_the_cell_too):
    """The study in a process of its own gets SIGTERM, which it passes on; or it and its cell get
    SIGINT, as from a terminal.
    The cell takes a second to end."""
    started, ended = tmp_path / "started", tmp_path / "ended"
    work = f"""import pathlib, signal, sys, time
def end(*_):
    time.sleep(1)
    pathlib.Path(r'{ended}').touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
pathlib.Path(r'{started}').touch()
time.sleep(60)"""
    code = f"""import pathlib
from minisoft.lab import study
out = pathlib.Path(r"{tmp_path}")
cells = [study.Cell(name, ("-c", {work!r}), out / name) for name in ("x", "never")]
study.Study.stages = lambda self: iter([cells])
study.main(["--out", r"{tmp_path}/study", "--jobs", "1"])"""
    how = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    study = subprocess.Popen([sys.executable, "-c", code], **how)
    while not started.exists() and study.poll() is None:
        time.sleep(0.05)
    os.killpg(study.pid, signal.SIGINT) if to_the_cell_too else study.terminate()
    message = study.communicate(timeout=30)[1]
    assert ended.exists() and study.returncode == 1
    assert "minisoft.lab.study: interrupted; the same command goes on; python -m" in message
    (line,) = findings.read_cells(tmp_path / "study")
    assert line["cell"] == "x" and not line["done"] and line["seconds"] >= 1


def read(words: tuple[str, ...]) -> None:
    """The flags of a command, by the program that it calls."""
    import eval as evaluation
    import train
    from minisoft.lab import gradient

    program, *flags = words
    parse = {"train.py": train.read_flags, "eval.py": evaluation.read_flags}
    parse[program](flags) if program in parse else gradient.read_flags(flags[1:])


def cells_of(study: Study) -> dict[str, Cell]:
    """By their names, each of which is one cell's, and of whose flags all are known."""
    cells = [cell for stage in study.stages() for cell in stage]
    for one in cells:
        read(one.command)
    found = {one.name: one for one in cells}
    assert len(found) == len(cells)
    return found


def test_the_commands_are_those_of_the_programs(tmp_path):
    (tmp_path / "gradient").mkdir()
    found = cells_of(small(tmp_path, "--seeds", "2"))
    counts = {"train": 14, "test": 1 + 14, "gradient": 7 * 2}
    assert Counter(name.partition("/")[0] for name in found) == counts
    trainings = Counter(name for name, _ in read_flags(["--out", "x"]).each(TRAININGS))
    assert list(trainings.values()) == [5, 5, 3, 3, 5, 5, 3]


def test_the_papers_own_studies_as_commands(capsys):
    """Three models, three kinds, three seeds, the learning rates and budgets of the paper."""
    main(["--plan", "paper"])
    printed = capsys.readouterr().out
    assert [line[2:] for line in printed.splitlines() if line[0] == "#"] == [
        f"python -m minisoft.lab.study {flags}" for flags in PAPERS
    ]
    runs, settings = Counter(), set()
    for flags in PAPERS:
        found = cells_of(read_flags(flags.split()))
        assert all(str(one) in printed for one in found.values())
        runs.update(name.partition("/")[0] for name in found)
        for name, one in found.items():
            given = dict(zip(one.command, one.command[1:]))
            if name.startswith("train"):
                assert given["--steps"] == "4000" and given["--eval-cot"] == "512"
                settings.add(tuple(given[x] for x in ("--model", "--data", "--lr", "--cot")))
    assert runs == {"train": 5 * 3 * 3, "test": 5 * (1 + 3 * 3)}
    llama, qwen = "meta-llama/Llama-3.2-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct"
    assert {(llama, "gsm8k", "6e-6", "128"), (qwen, "MATH/train", "8e-6", "512")} < settings
    assert ("meta-llama/Llama-3.1-8B-Instruct", "gsm8k", "3e-6", "128") in settings


FAMILIES = [
    ({"model_type": "llama", "hidden_size": 3072}, "6e-6"),
    ({"model_type": "llama", "hidden_size": 4096}, "3e-6"),
    ({"model_type": "qwen2", "hidden_size": 896}, "8e-6"),
]


@pytest.mark.parametrize("config, rate", FAMILIES)
def test_the_learning_rate_is_that_of_the_family_if_no_other_is_given(tmp_path, config, rate):
    write(tmp_path / "config.json", config)
    own = ["--model", str(tmp_path), "--test", "tiny-test"]
    assert f"--lr {rate} " in str(small(tmp_path, *own).train("soft", 0))
    assert "--lr 0.5 " in str(small(tmp_path, *own, "--lr", "0.5").train("soft", 0))
    write(tmp_path / "minisoft.json", {"defaults": {"lr": 1.0}})
    assert "--lr" not in small(tmp_path, *own).train("soft", 0).command


def test_tables_while_a_run_is_being_written(tmp_path):
    for seed, text in enumerate(("", '{"step": 0, "validation": 0.3}\n', '{"step": 1, "seco')):
        run = tmp_path / f"train/soft-s{seed}"
        run.mkdir(parents=True)
        (run / "metrics.jsonl").write_text(text)
    chosen = {"best_step": 0, "validation": 0.3}
    write(tmp_path / "train/soft-s1/summary.json", chosen)  # only this one has ended
    (tmp_path / "train/soft-s0.old").mkdir()  # moved away
    (tmp_path / "train/soft-s0.old/metrics.jsonl").write_text("{}\n")
    paths = findings.seeds(tmp_path, "train/soft", "/metrics.jsonl")
    assert list(paths) == [0, 1, 2]
    assert "| soft   | 1    | 0       | 30.0     | 30.0     |" in findings.write(tmp_path)


def numbers(value: float, samples: int, entropy: float = 0.15) -> dict:
    made = {f"pass@{k}": min(1.0, value + 0.01 * k) for k in range(1, samples + 1)}
    made |= {"boxed": 1.0, "truncated": 0.0, "cot_length": 30.0, "entropy": entropy}
    return made | {"entropy_by_position": [0.2] * 8, "rows_by_position": [40] * 8}


def result(label: str, model: str, value: float) -> dict:
    """Soft inference is 2 points better than hard, fuzzy 1 worse."""
    common = {"model": model, "label": label, "named": True}
    common |= {"samples": 32, "seed": 0, "problems": 200}
    six = {
        f"{kind}-{how}": numbers(value + better, 1 if how == "greedy" else 32)
        for kind, better in (("hard", 0), ("soft", 0.02), ("fuzzy", -0.01))
        for how in ("greedy", "sample")
    }
    choices = {"accuracy": value, "accuracy_norm": value, "nll": 1 - value}
    made = [{**common, "data": data, "settings": six} for data in PROBLEMS]
    for data in SKILLS:
        made.append({**common, "data": data, "settings": {}, "choices": choices})
    return {"runs": made}


KINDS = {"hard": 0.8, "soft": 0.7, "fuzzy": 0.4, "top-5": 0.75, "multiplex": 0.79}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A whole study that nobody ran: hard inference reaches the shares of KINDS after update 20,
    of the base 40 %; multiplex 10 points more in its own."""
    write(tmp_path / "test/base.json", result("base", "tiny", 0.4))
    cell = {"cell": "x", "command": "python x", "commit": "abc", "seconds": 120.0}
    write(tmp_path / "cells.jsonl", cell)
    for kind, seed in product(KINDS, range(3)):
        value, run = KINDS[kind] + 0.01 * seed, tmp_path / f"train/{kind}-s{seed}"
        made = result(kind, f"{kind}{seed}", value)
        soft = {"support": 1.2, "largest_weight": 0.95, "share_soft": 0.05}
        for of_data, how in product(made["runs"][:2], ("greedy", "sample")):
            own = numbers(value + 0.1, 1 if how == "greedy" else 32) | soft
            of_data["settings"] |= {f"multiplex-{how}": own} if kind == "multiplex" else {}
        write(tmp_path / f"test/{kind}-s{seed}.json", made)
        rows = [
            {"step": 10 * i, "validation": v, "validation_hard": v}
            for i, v in enumerate((0.3, value, value, 0.1), 1)
        ]
        write(run / "summary.json", {"best_step": 20, "validation": value})
        write(run / "metrics.jsonl", *rows)
    return tmp_path


ROWS = """
| soft | 1 | 20 | 71.0 | 10.0 | 71.0 | 71.0 |
| tiny-test, hard-greedy, pass@1 | base | 1 | 41.0 | | |
| tiny-test, hard-greedy, pass@1 | hard | 3 | 82.0 ± 1.0 | | +41.0 [+38.5, +43.5] |
| tiny-test, hard-greedy, pass@1 | soft | 3 | 72.0 ± 1.0 | -10.0 [-12.3, -7.7] | +31.0 [
| tiny-test, own-greedy, pass@1 | soft | 3 | 74.0 ± 1.0 | -8.0 [-10.3, -5.7] | +33.0 [
| tiny-long, soft-greedy, pass@1 | fuzzy | 3 | 44.0 ± 1.0 | -40.0 [-42.3, -37.7] |
| tiny-test, hard-greedy, pass@1 | top-5 | 3 | 77.0 ± 1.0 | -5.0 [-7.3, -2.7] |
| tiny-test, own-greedy, pass@1 | multiplex | 3 | 91.0 ± 1.0 | +9.0 [
| tiny-long, hard-sample, pass@16 | soft | 3 | 87.0 ± 1.0 |
| tiny-sorting, nll | base | 1 | 0.6000 | | |
| tiny-sorting, nll | soft | 3 | 0.2900 ± 0.0100 | +0.1000 [+0.0773, +0.1227] |
| tiny-test, hard-sample, entropy | hard | 3 | 0.150 ± 0.000 | | +0.000 (no spread) |
| tiny-test, soft-sample, pass@1 | soft | 3 | 74.0 ± 1.0 | -10.0 [-12.3, -7.7] | +31.0 [
| tiny-test, fuzzy-sample, pass@1 | hard | 3 | 81.0 ± 1.0 | | +41.0 [+38.5, +43.5] | -1.0 (no
| tiny-long, fuzzy-sample, pass@1 | base | 1 | 40.0 |
| tiny-test, own-sample, pass@1 | multiplex | 3 | 91.0 ± 1.0 |
| tiny-test, own-sample, support | multiplex | 3 | 1.20 ± 0.00 |
| tiny-test, own-sample, share_soft | multiplex | 3 | 5.0 ± 0.0 |
| tiny-test, own-sample, largest_weight | multiplex | 3 | 0.950 ± 0.000 |
| hard-greedy pass@1 | here, tiny-test | 41.0 | 82.0 ± 1.0 | 72.0 ± 1.0 | 42.0 ± 1.0 |
| hard-greedy pass@1 | Llama-3.2-3B (GSM8K), GSM8K | 71.4 | 75.9 ± 1.3 | 77.2 ± 0.9 | 76.7 ± 1.8 |
| NLL | here, tiny-sorting | 0.6000 | 0.1900 ± 0.0100 | 0.2900 ± 0.0100 |
"""


def squeeze(line: str) -> str:
    return " ".join(line.split())


def flat(text: str) -> list[str]:
    """The lines of tables; of one with a title each begins with that."""
    title, lines = "", []
    for line in map(squeeze, text.splitlines()):
        if line.startswith(("**", "##")):
            title = f"| {line.strip('*')} " if line.startswith("**") else ""
        lines.append(title + line)
    return lines


def test_tables_of_a_study(folder, capsys):
    findings.main([str(folder)])
    text = (folder / "study.md").read_text()
    lines, titles = flat(text), findings.sections(findings.Results(folder))
    assert all(f"## {title}" in text for title in titles)
    for row in ROWS.strip().splitlines():
        assert any(line.startswith(squeeze(row)) for line in lines), row
    assert "1 cells of one thread, 2 minutes in all" in text and "commits abc" in text
    assert capsys.readouterr().out.strip().endswith("study.md")


def test_a_study_md_of_the_users_stays(folder):
    (folder / "study.md").write_text("# My notes\n")
    with pytest.raises(InputError, match="study.md: expected no such file, or one of"):
        findings.write(folder)
    assert (folder / "study.md").read_text() == "# My notes\n"


def test_part_of_a_study_is_told_as_far_as_it_goes(folder):
    shutil.rmtree(folder / "test")
    findings.write(folder)
    text = (folder / "study.md").read_text()
    assert "## Best checkpoints" in text and "## Finding" not in text


BAD = {
    "--out x --seeds 0": "--seeds",
    "": "--out",
    "--out x --model weights/tiny": "--test",
    "--out x --model weights/tiny --test tiny-test --kinds warm": "--kinds",
    "--out x --model weights/tiny --test nowhere.jsonl": "nowhere.jsonl",
    "--out x --kinds hard soft hard": "--kinds",
    "--out x --model weights/tiny --test tiny-test tiny-test": "--test",
    "--out x -- --seed=3": "after --: .*--seed",  # of all runs, which then would not differ
    "--out x --kinds hard -- --cot 9 --tokens soft": "after --: .*--tokens",
    "--out x -- --model elsewhere": "after --: .*--model",
    "--plan mine": "--plan",
}


@pytest.mark.parametrize("flags, name", BAD.items())
def test_bad_flags(flags, name):
    with pytest.raises(SystemExit, match=f"error: .*{name}") as end:
        main(flags.split())
    assert "\n" not in end.value.code


def test_commands_without_running_them(tmp_path, capsys):
    main(["--out", str(tmp_path / "s"), "--list"])
    told = capsys.readouterr()
    first, *others = told.out.splitlines()
    assert first.startswith("OMP_NUM_THREADS=1 python train.py --tokens hard --lr 1e-4")
    assert len(others) == 72 and told.err.startswith(
        "# 73 cells, 73 left\n# train/hard: 5 cells, 5 left,"
    )
    assert not (tmp_path / "s").exists()


def test_hours_are_those_measured_else_an_estimate(tmp_path):
    """Of cells like them; what an interruption took counts, and what has failed does not."""
    study = small(tmp_path, "--kinds", "hard", "soft")
    cells = [cell for stage in study.stages() for cell in stage]
    lines = [("train/hard-s7", 3600, False), ("train/hard-s7", 1800, True), ("train/x", 9, False)]
    names = ("cell", "seconds", "done")
    write(tmp_path / "cells.jsonl", *(dict(zip(names, line)) for line in lines))
    write(study.train("soft", 0).result, {})
    told = {line.split(":")[0]: line for line in hours(study, cells)}
    assert told["# train/hard"].endswith(": 1 cells, 1 left, 1.5 h (measured)")
    assert told["# train/soft"].endswith(": 1 cells, 0 left, 0 h (estimate)")
    both = {f"# {x}/{kind}" for x in ("train", "test", "gradient") for kind in ("hard", "soft")}
    assert {*told} == {*both, "# test/base"}
    estimates = [float(told[f"# test/{x}"].split()[-3]) for x in ("base", "hard")]
    assert 0.3 > estimates[0] > estimates[1] > 0.03  # in all kinds, in the paper's


OWN = "--kinds hard multiplex --seeds 1 --steps 2 --samples 2 --eval-cot 30 --jobs 2"
TRAIN = "--prompts 2 --group 4 --cot 30 --validation 4 --test 2 --validate-every 1 --show-every 0"


def test_a_study_of_any_model_goes_on_after_an_interruption(tmp_path, capsys):
    """And its page has the paper's numbers of the same model, data and sets, by their names."""
    out, model = tmp_path / "study", tiny_at(tmp_path / "Llama-3.2-3B-Instruct")
    sets = {"gsm8k_train": "train", "gsm8k_test": "test", "mmlu": "facts"}
    for name, source in sets.items():
        lines = (WEIGHTS / f"tiny/{source}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[: 40 if "train" in name else 5]))
    data, *tests = (str(tmp_path / f"{name}.jsonl") for name in sets)
    flags = ["--model", str(model), "--data", data, "--test", *tests, *OWN.split()]
    flags += ["--out", str(out), "--", *TRAIN.split()]
    command = [sys.executable, "-m", "minisoft.lab.study", *flags]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT)
    while not (out / "train/hard-s0/config.json").exists() and first.poll() is None:
        time.sleep(0.05)
    first.terminate()
    assert first.wait(60) == 1 and not (out / "train/hard-s0/summary.json").exists()
    main(flags)
    names = {"train/hard-s0", "train/multiplex-s0", "test/base", "test/hard-s0"}
    done = [line["cell"] for line in findings.read_cells(out) if line["done"]]
    assert sorted(done) == sorted({*names, "test/multiplex-s0"})
    assert "--resume" not in done and capsys.readouterr().out.strip().endswith("study.md")
    main(flags)  # nothing is done twice
    assert len([line for line in findings.read_cells(out) if line["done"]]) == len(done)
    text = (out / "study.md").read_text()
    rows = [squeeze(row) for row in text.splitlines()]
    assert "## Training and inference" in text and "## Finding 1" in text
    paper = "Llama-3.2-3B (GSM8K)"
    assert f"| {paper}, GSM8K | 71.4 | 75.9 ± 1.3 | 77.2 ± 0.9 | 76.7 ± 1.8 |" in rows
    assert f"| {paper}, MMLU | 1.61 | 1.65 ± 0.01 | 1.59 ± 0.01 | 1.60 ± 0.02 |" in rows
    assert "MATH" not in text and "HellaSwag" not in text and "Qwen" not in text
    ours = [row for row in rows if row.startswith("| here, ")]
    assert any("gsm8k_test" in row for row in ours) and any("mmlu" in row for row in ours)
    assert any(row.startswith("| multiplex | gsm8k_test | multiplex-sample | ") for row in rows)


def test_a_flag_that_train_does_not_know_is_said_in_one_line(tmp_path):
    words = ["--model", "weights/tiny", "--test", "tiny-test", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match="unrecognized arguments: --bogus 2") as end:
        main([*words, "--", "--bogus", "2"])
    assert "\n" not in end.value.code


@pytest.mark.parametrize(
    "name, expected",
    [
        ("data/gsm8k_train.jsonl", "gsm8k"),
        ("MATH/train", "math"),
        ("math-500", "math500"),
        ("EleutherAI/hendrycks_math", "math"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama318binstruct"),
        ("Qwen/Qwen2.5-3B-Instruct", "qwen253binstruct"),
        ("arc-challenge", "arc"),
        ("", ""),
    ],
)
def test_names_of_the_papers_models_and_sets(name, expected):
    assert findings.plain(name) == expected


def test_findings_is_a_command_and_says_where_nothing_is(tmp_path, monkeypatch, capfd):
    """As `python -m` runs it, in this process."""
    monkeypatch.setattr(sys, "argv", ["findings", str(tmp_path)])
    monkeypatch.delitem(sys.modules, "minisoft.lab.findings")
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("minisoft.lab.findings", run_name="__main__", alter_sys=True)
    assert stop.value.code == 1
    assert "expected results of minisoft.lab.study" in capfd.readouterr().err
