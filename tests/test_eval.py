"""eval.py and minisoft.evaluation: the six settings, pass@k, what is written, and that nothing but
the problem decides."""

import ast
import itertools
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import run_on_gpus, run_ranks, start_ranks, tiny_at
from tqdm import tqdm

import eval as evaluation_script
from minisoft import data, evaluation
from minisoft.io import WEIGHTS, atomic, checkpoint, datasets
from minisoft.io.journal import Journal
from minisoft.reward import score
from minisoft.run import evaluate
from minisoft.run.subjects import Subject, output
from minisoft.run.world import World
from minisoft.soft import noise_scale

FLAGS = "--device cpu --limit 5 --samples 4 --cot 60".split()
PLENTY = "--settings hard-greedy,hard-sample,soft-sample --limit 3 --samples 3".split()
OPTIONS = [[str(i + 1), str(i), f"{i} {i} {i}", "no number"][: 2 + i % 3] for i in range(9)]
CHOICES = [
    {"question": f"What comes after {i}?", "choices": options, "answer": i % 2}
    for i, options in enumerate(OPTIONS)
]


def run(out, *flags):
    evaluation_script.main([*FLAGS, "--out", str(out), *flags])
    return json.loads(out.read_text()), [
        json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()
    ]


def files(out):
    """Everything that an evaluation wrote, as bytes, and nothing else is there."""
    found = sorted(path for path in out.parent.iterdir() if path.stem.startswith(out.stem))
    assert [path.suffix for path in found] == [".json", ".jsonl", ".md"]
    return [path.read_bytes() for path in found]


def cots(generations, setting):
    return [g["cot"] for g in generations if g["setting"] == setting]


@pytest.fixture
def choices_file(tmp_path):
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CHOICES))
    return path


@pytest.mark.parametrize("n, c", [(1, 0), (1, 1), (5, 0), (5, 2), (6, 5), (6, 6)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n, c):
    for k in range(1, n + 1):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert evaluation.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    for impossible in ((4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)):
        with pytest.raises(ValueError, match="pass_at_k"):
            evaluation.pass_at_k(*impossible)


def test_all_six_settings(tmp_path, capsys):
    result, generations = run(tmp_path / "r.json", "--settings", "all")
    assert list(result["settings"]) == list(evaluation.SETTINGS)
    assert {"model", "data", "samples", "seed"} <= set(result) and result["problems"] == 5
    for setting, numbers in result["settings"].items():
        passes = {f"pass@{k}" for k in range(1, 2 if setting.endswith("greedy") else 5)}
        assert {k for k in numbers if k.startswith("pass@")} == set(numbers["ci95"]) == passes
        for name, (low, high) in numbers["ci95"].items():
            assert 0 <= low <= numbers[name] <= high <= 1 + 1e-9
        mine = [g for g in generations if g["setting"] == setting]
        assert len(mine) == (5 if setting.endswith("greedy") else 20)
        assert numbers["pass@1"] == pytest.approx(sum(g["reward"] == 100 for g in mine) / len(mine))
        if "pass@4" in numbers:
            solved = {g["problem"] for g in mine if g["reward"] == 100}
            assert numbers["pass@4"] == pytest.approx(len(solved) / 5)
        lengths = [g["cot_tokens"] for g in mine]
        rows = [sum(n > t for n in lengths) for t in range(max(lengths))]
        assert numbers["rows_by_position"] == rows
        third = [g["entropies"][2] for g in mine if g["cot_tokens"] > 2]
        assert numbers["entropy_by_position"][2] == pytest.approx(sum(third) / len(third), abs=1e-6)
        assert all(len(g["entropies"]) == g["cot_tokens"] for g in mine)
    assert cots(generations, "hard-greedy") == cots(generations, "fuzzy-greedy")
    assert "Hard inference" in capsys.readouterr().out
    assert "Hard inference" in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize("batch", [1, 7])
def test_batch_size_changes_no_byte(tmp_path, choices_file, batch, whole):
    out = tmp_path / "r.json"
    run(out, *PLENTY, "--data", "tiny-test", str(choices_file), "--batch", str(batch))
    assert files(out) == whole(choices_file)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted evaluation in one process with batch 64 writes, made once."""
    made = []

    def get(choices_file):
        if not made:
            out = tmp_path_factory.mktemp("whole") / "r.json"
            run(out, *PLENTY, "--data", "tiny-test", str(choices_file))
            made.append((choices_file, files(out)))
        old, found = made[0]
        return [text.replace(str(old).encode(), str(choices_file).encode()) for text in found]

    return get


@pytest.mark.parametrize("run_two", [run_on_gpus, pytest.param(run_ranks, marks=pytest.mark.slow)])
def test_two_ranks_write_what_one_process_writes(tmp_path, choices_file, whole, run_two):
    """Its own, on a machine with two GPUs, and a launcher's."""
    flags = [*FLAGS, *PLENTY, "--data", "tiny-test", choices_file, "--out", tmp_path / "r.json"]
    run_two(tmp_path / "logs", 2, *flags, script="eval")
    assert files(tmp_path / "r.json") == whole(choices_file)


def test_killed_evaluation_goes_on_and_writes_the_same(tmp_path, choices_file, whole, monkeypatch):
    out, part = tmp_path / "r.json", tmp_path / "r.json.part-0"
    flags = [*FLAGS, *PLENTY, "--data", "tiny-test", choices_file, "--out", out]
    (process,) = start_ranks(tmp_path / "logs", 1, *flags, script="eval")
    while not part.exists() or part.read_bytes().count(b"\n") < 4:
        assert process.is_alive(), (tmp_path / "logs/rank-0").read_text()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not out.exists()
    before = part.read_text()
    part.write_text(before[: before.rindex("[")] + '[[0, "hard-greedy", 0], [{"prob')  # half a line
    expected = "r.json.part-0: expected what an interrupted call .* other values for samples, seed"
    with pytest.raises(SystemExit, match=expected):
        run(out, *PLENTY, "--data", "tiny-test", str(choices_file), "--seed", "3", "--samples", "2")
    uninterrupted = whole(choices_file)  # before entries are counted: it may have to be made
    made, add = [], Journal.add
    monkeypatch.setattr(Journal, "add", lambda *entry: (made.append(entry), add(*entry)))
    run(out, *PLENTY, "--data", "tiny-test", str(choices_file))
    assert files(out) == uninterrupted
    assert 0 < len(made) < 3 * 3 + 3  # some pieces were not made again


def test_several_models_seeds_and_data(tmp_path, choices_file, capsys):
    tiny = str(WEIGHTS / "tiny")
    flags = ["--model", f"a={tiny}", f"b={tiny}", "--data", "tiny-test", str(choices_file)]
    flags += "--seed 0 1 --settings soft-sample --limit 3".split()
    result, generations = run(tmp_path / "r.json", *flags)
    runs = [
        [r["label"], r["data"], r["seed"], *r["settings"], *r.keys() & {"choices"}]
        for r in result["runs"]
    ]
    both = [["tiny-test", 0, "soft-sample"], ["tiny-test", 1, "soft-sample"]]
    each = [*both, [str(choices_file), 0, "choices"]]
    assert runs == [[label, *rest] for label in "ab" for rest in each]

    def of(n):
        return [{k: v for k, v in g.items() if k != "run"} for g in generations if g["run"] == n]

    assert of(0) == of(3) != of(1) and of(2) == of(5)  # the label decides nothing, the seed does
    assert "±" in capsys.readouterr().out


def test_hard_greedy_is_transformers_greedy_generation(tmp_path):
    """The whole protocol written with transformers: greedy text up to the stop phrase or budget,
    prefill, greedy answer, the same reward.  The budget of 20 tokens cuts some CoTs."""
    import transformers

    _, generations = run(tmp_path / "r.json", "--limit", "12", "--cot", "20")
    assert {g["truncated"] for g in generations} == {True, False}
    model = transformers.AutoModelForCausalLM.from_pretrained(WEIGHTS / "tiny", dtype=torch.float32)
    tokenizer = checkpoint.load(WEIGHTS / "tiny")[1]

    def more(ids, n):
        ids = torch.tensor([ids])
        return model.generate(ids, max_new_tokens=n, do_sample=False)[0].tolist()

    for problem, g in zip(datasets.load_problems("tiny-test"), generations):
        ids = tokenizer.encode(data.prompt(problem.question, "User: QUESTION Assistant:"))
        start = len(ids)
        written = more(ids, 20)
        ends = range(start, len(written) + 1)
        stops = [n for n in ends if data.STOP in tokenizer.decode(written[start:n])]
        ids = written[: stops[0]] if stops else written
        assert g["cot"] == tokenizer.decode(ids[start:])
        prefill = data.PREFILL_EARLY if stops else data.PREFILL_LATE
        ids = ids + tokenizer.encode_after(data.STOP, prefill)
        text = tokenizer.decode(more(ids, 32)[len(ids) :])
        assert text.startswith(g["answer"])
        assert g["reward"] == score(g["answer"], problem.answer) == score(text, problem.answer)


def test_intervals_are_those_of_the_mean(tmp_path):
    ones, x = 40, torch.linspace(0, 1, 100, dtype=torch.float64)
    (low, high), (a, b), same = evaluation.intervals(
        [[float(i < ones), x[i].item(), 0.5] for i in range(100)]
    )
    error = (0.4 * 0.6 / 100) ** 0.5
    ends = [0.4 - 1.96 * error, 0.4 + 1.96 * error]
    assert [low, high] == pytest.approx(ends, abs=0.012)
    error = x.std().item() / 10
    assert [a, b] == pytest.approx([0.5 - 1.96 * error, 0.5 + 1.96 * error], abs=0.01)
    assert same == [0.5, 0.5]


TWO = ["--settings", "hard-sample,soft-sample"]
ABLATIONS = "--gamma 1.0;--tau soft=0.05;--noise hidden;--noise logits;--sigma 0.2"


@pytest.mark.parametrize("flags", [*ABLATIONS.split(";"), "--noise logits --top-k 5"])
def test_ablations_change_soft_but_not_hard_inference(tmp_path, flags, plain):
    result, generations = run(tmp_path / "r.json", *TWO, *flags.split())
    assert cots(generations, "hard-sample") == cots(plain, "hard-sample")
    assert cots(generations, "soft-sample") != cots(plain, "soft-sample")
    assert {"sigma", "noise", "top_k", "tau", "cot"} <= set(result)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain") / "r.json", *TWO)[1]


def test_a_look_inside(tmp_path, capsys, monkeypatch):
    picture = tmp_path / "chain.png"
    flags = ["--data", "tiny-test", "--settings", "hard-sample,soft-sample,fuzzy-greedy"]
    show = [*flags, "--show", "0", "--out", str(picture), "--device", "cpu", "--cot", "60"]
    evaluation_script.main(show)
    text = capsys.readouterr().out
    _, generations = run(tmp_path / "r.json", *flags, "--limit", "1")
    first = [g for g in generations if g["sample"] == 0]  # is what an evaluation draws
    blocks = text.split("question: ")[1:]
    assert len(blocks) == len(first) == 3
    for g, block in zip(first, blocks):
        rows = [line.split(" | ") for line in block.splitlines() if re.match(r"\| \d", line)]
        assert len(rows) == g["cot_tokens"]
        assert "".join(ast.literal_eval(row[1].strip()) for row in rows) == g["cot"]
        assert f"answer: {g['answer']}   gold: {g['gold']}" in block
        assert ("carries 1.00 tokens" in block) == (g["setting"] != "soft-sample")
    line = next(line for line in blocks[2].splitlines() if line.startswith("| 0 "))
    assert " 0.00 " in line and "1.000" in line  # fuzzy: one token; without noise the nearest
    pytest.importorskip("matplotlib")
    assert picture.read_bytes().startswith(b"\x89PNG")
    two = [f"a={WEIGHTS / 'tiny'}", f"b={WEIGHTS / 'tiny'}"]
    evaluation_script.main([*show, "--model", *two])  # over its own picture
    text = capsys.readouterr().out
    assert [text.count(f"{name}, hard-sample, tau 1: ") for name in "ab"] == [1, 1]
    assert text.count(f"answer: {first[0]['answer']}   gold: ") >= 2  # of both


@pytest.mark.parametrize("flags", [["--out", "chain.png"], []])
def test_a_picture_of_the_users_is_not_written_over(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / ("chain.png" if flags else "show-0.png")
    picture.write_bytes(b"\x89PNG\r\n\x1a\n a photo")
    with pytest.raises(SystemExit, match=f"{picture.name}: expected"):
        evaluation_script.main(["--show", "0", "--device", "cpu", "--cot", "8", *flags])
    assert picture.read_bytes().endswith(b"photo") and [*tmp_path.iterdir()] == [picture]


def test_a_look_inside_without_matplotlib_is_the_text(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "chain.png"
    evaluation_script.main(["--data", "tiny-test", "--show", "0", "--cot", "20", "--out", str(out)])
    text = capsys.readouterr().out
    assert "question: " in text and "pictures need the extra `plot`" in text
    assert not out.exists()


def test_plain_gives_the_generations_and_scores_of_the_engine(tmp_path, choices_file, monkeypatch):
    flags = [*PLENTY, "--samples", "2", "--data", "tiny-test", str(choices_file)]
    _, fast = run(tmp_path / "fast.json", *flags)
    monkeypatch.setattr(evaluate.choices, "score", None)  # the engine's is not called
    _, plain = run(tmp_path / "plain.json", *flags, "--plain")
    assert sum("picked" in line for line in plain) == 3 < len(plain)
    same = "setting problem sample cot answer reward truncated picked tokens".split()
    rounded = {"entropies": 2e-4, "log_probs": 3e-4}  # the one to 1e-4
    for a, b in zip(fast, plain, strict=True):
        assert [a.get(name) for name in same] == [b.get(name) for name in same]
        for name in rounded.keys() & a.keys():
            assert a[name] == pytest.approx(b[name], abs=rounded[name])


BAD = """--settings hard-greedy,warm-greedy :: settings: expected all, or KIND-greedy or KIND-sample
--model nowhere :: nowhere: expected a model folder
--data nowhere.jsonl :: nowhere.jsonl: expected a data file
--data tiny-test tiny-test :: --data: expected each once
--seed 1 1 :: --seed: expected each once
--tau soft=inf :: --tau soft:
--top-k 5 :: --top-k: expected noise on the logits
--top-k 999 --noise logits :: --top-k: expected at most the vocabulary's"""
BAD = [line.split(" :: ") for line in BAD.splitlines()]
OUT_OF_RANGE = "--gamma inf;--sigma -1;--samples 0;--limit -1;--tau soft;--tau firm=1".split(";")


@pytest.mark.parametrize("flags, message", BAD + [(x, f"{x.split()[0]}: ") for x in OUT_OF_RANGE])
def test_bad_input_is_one_line(tmp_path, flags, message):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "r.json", *flags.split())
    text = stop.value.code
    assert message in text and "\n" not in text and not list(tmp_path.glob("r.json*"))


# a file, the data, the results
OVER = """r.jsonl r.jsonl r.json;r.json r.json r.json;r.jsonl sub/../r.jsonl r.json
a.jsonl . r.json;a.jsonl . sub/r.json"""


@pytest.mark.parametrize("names", re.split("[;\n]", OVER))
def test_input_is_not_written_over_or_among(tmp_path, names):
    (tmp_path / "sub").mkdir()
    name, given, out = names.split()
    (tmp_path / name).write_text('{"question": "Zoe has 5 tiles.", "answer": "5"}\n')
    with pytest.raises(SystemExit, match="--out: expected another name"):
        run(tmp_path / out, "--data", f"{tmp_path}/{given}")
    assert (tmp_path / name).read_text().startswith('{"question"')
    assert len([*tmp_path.rglob("*")]) == 2


WRITTEN = "r.json r.jsonl r.md r.json.lock r.json.part-0 r.json.part-3".split()


OTHERS = ['{"results": {"acc": 0.5}}', '{"a": 1}\n{"b": 2}\n', "# My\n"]
OTHERS.append("**Hard inference**: pass@k in %.\n\n| tiny |\n| --- |\n\nMy notes below the table\n")


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("content", OTHERS)
def test_a_file_that_eval_did_not_write_is_refused_and_stays(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit, match=f"{tmp_path / name}: .*expected .*found") as stop:
        run(tmp_path / "r.json")
    assert "\n" not in stop.value.code
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_own_results_are_written_over_and_what_only_looks_like_a_part_stays(tmp_path):
    """Of one run and of two, empty files, and results behind a link."""
    out, disk = tmp_path / "r.json", tmp_path / "disk.json"
    names = ("r.json.part-0.bak", "r.jsonl.new", "1")
    for name in names:
        (tmp_path / name).write_text("mine")
    out.symlink_to(disk)
    disk.touch()
    for seeds in (["0"], ["0", "1"], ["2"]):
        result, _ = run(out, "--seed", *seeds, "--settings", "hard-sample", "--limit", "1")
    assert result["seed"] == 2 and out.is_symlink()
    assert all((tmp_path / name).read_text() == "mine" for name in names)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"r.json", "disk.json", "r.jsonl", "r.md", *names}


def test_two_evaluations_into_one_file_are_refused(tmp_path):
    out = tmp_path / "r.json"
    with output(evaluation_script.read_flags(["--out", str(out)]), World("cpu")):
        with pytest.raises(SystemExit, match=f"expected no other .*process {os.getpid()} "):
            run(out)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("written", ["r.jsonl", "r.md", "r.json"])
def test_a_disk_that_is_full_at_the_end_loses_nothing(tmp_path, monkeypatch, written):
    """One line with the path; the same call goes on and makes nothing again."""
    real, made, add = os.replace, [], Journal.add

    def replace(source, target):
        if Path(target).name == written:
            raise OSError(28, os.strerror(28), str(target))
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match=f"No space.*{written}"):
        patch.setattr(os, "replace", replace)
        run(tmp_path / "r.json")
    monkeypatch.setattr(Journal, "add", lambda *entry: (made.append(entry), add(*entry)))
    result, _ = run(tmp_path / "r.json")
    assert result["problems"] == 5 and not made


def test_an_interrupted_call_with_its_result_in_the_models_folder_goes_on(tmp_path, monkeypatch):
    folder, expected = tiny_at(tmp_path / "tiny"), "interrupted; the same command goes on where it"
    flags = ["--model", str(folder), "--data", "tiny-test"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match=expected):
        patch.setattr(tqdm, "update", lambda *_: signal.raise_signal(signal.SIGINT))
        run(folder / "r.json", *flags)
    assert (folder / "r.json.part-0").is_file()
    (folder / f"r.jsonl{atomic.NEW}").write_text("as a kill left it")
    assert run(folder / "r.json", *flags)[0]["problems"] == 5


TRAINED = {"base": "tiny", "data": "tiny", "tokens": "soft", "sigma": 0.06, "gamma": 0.5}
TRAINED |= {"tau": 0.4, "noise": "logits", "top_k": 5, "prompt": "Q QUESTION A"}
OWN = {"noise": "logits", "top_k": 5, "gamma": 0.5, "soft": 0.4, "fuzzy": 1.0, "hard": 1.0}
OWN |= {"prompt": "Q QUESTION A", "label": "tiny tiny soft, gamma 0.5, noise logits, top_k 5"}
PAPERS = {"noise": "embedding", "top_k": None, "gamma": 0.33, "soft": 0.5, "fuzzy": 0.0001}
FLAGS_OF_ALL = "--gamma 0.1 --tau soft=0.7 fuzzy=0.01 --cot 9"


# with the scale, where it is not that of the weights; each rule: run/test_settings.py
DECIDED = [({}, "", {**PAPERS, "label": "tiny", "cot": 512})]
DECIDED += [({"defaults": {"cot": 80}}, "", {**PAPERS, "cot": 80})]
DECIDED += [(TRAINED, "", {**OWN, "scale": 0.12}), (TRAINED, "--noise embedding", PAPERS)]
DECIDED += [(TRAINED, FLAGS_OF_ALL, {"gamma": 0.1, "soft": 0.7, "fuzzy": 0.01, "cot": 9})]
DECIDED += [(TRAINED, "--sigma 0.2", {"gamma": None, "sigma": 0.2})]


@pytest.mark.parametrize("about, flags, expected", DECIDED)
def test_what_decides_inference(tmp_path, about, flags, expected):
    folder = tiny_at(tmp_path / "tiny", about)
    subject = Subject.find(str(folder), evaluation_script.read_flags(flags.split()))
    model = checkpoint.load_model(folder)
    facts = subject.settings.for_model(model).facts()
    expected = dict(expected)
    scale = expected.pop("scale", 0) or noise_scale(model, facts["noise"])
    assert facts["sigma"] == pytest.approx(expected.get("sigma", (facts["gamma"] or 0) * scale))
    facts = {**facts, **facts["tau"], "label": subject.label}
    for name, value in expected.items():
        assert facts[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_seeds_of_a_row_must_be_alike(tmp_path):
    models = [f"x={tiny_at(tmp_path / n, {'noise': n})}" for n in ("embedding", "hidden")]
    expected = "--model: expected models called 'x' to differ in the seed only, .* for noise in"
    with pytest.raises(SystemExit, match=expected):
        run(tmp_path / "r.json", "--model", *models)


# only the user makes seeds of one row: n
ROWS = """ck/step_1/actor/hf ck/step_2/actor/hf = hf (step_1), hf (step_2)
x/run/best y/run/best = best (x), best (y);a/best a/b/best = best (best), best (b/best)
a/one b/two = one, two;n=a/best n=b/best = n, n;best=a/best b/best = best, best (b)"""


@pytest.mark.parametrize("row", re.split("[;\n]", ROWS))
def test_models_in_folders_of_one_name_are_rows_of_their_own(tmp_path, monkeypatch, row):
    monkeypatch.chdir(tmp_path)
    places, labels = row.split(" = ")
    places, labels = places.split(), labels.split(", ")
    for place in places:
        tiny_at(tmp_path / place.split("=")[-1])
    flags = ["--data", "tiny-test", "--limit", "1", "--cot", "8"]
    result, _ = run(tmp_path / "r.json", "--model", *places, *flags)
    assert [row["label"] for row in result["runs"]] == labels
    rows = (tmp_path / "r.md").read_text().split("\n\n")[1].splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == list(dict.fromkeys(labels))


def test_trainings_alike_are_seeds_of_one_row_only_by_a_name(tmp_path):
    about = {"base": "tiny", "data": "tiny", "tokens": "soft"}
    models = [str(tiny_at(tmp_path / place, about)) for place in ("1/best", "1/last")]
    flags = ["--model", *models, "--data", "tiny-test", "--cot", "8"]
    labels = [row["label"] for row in run(tmp_path / "r.json", *flags)[0]["runs"]]
    assert labels == ["tiny tiny soft (best)", "tiny tiny soft (last)"]


@pytest.mark.parametrize("names", ["", "x="])
def test_a_model_is_not_a_seed_of_itself(tmp_path, names):
    tiny = str(WEIGHTS / "tiny")
    with pytest.raises(SystemExit, match="--model: expected each once, found one folder in"):
        run(tmp_path / "r.json", "--model", f"{names}{tiny}", f"{names}{tiny}/")


def test_multiple_choice_is_also_written_in_the_harness_words(tmp_path, choices_file):
    result, lines = run(tmp_path / "r.json", "--data", str(choices_file), "--limit", "9")
    numbers = result["choices"]
    for name, ours in (("acc", "accuracy"), ("acc_norm", "accuracy_norm")):
        right = torch.tensor([line[name] for line in lines], dtype=torch.float64)
        assert numbers[name] == numbers[ours] == pytest.approx(right.mean().item())
        error = right.std().item() / 3  # of the mean of 9
        assert numbers[f"{name}_stderr"] == pytest.approx(error)
    for number, (line, row) in enumerate(zip(lines, CHOICES, strict=True)):
        assert line["doc_id"] == number and line["target"] == str(row["answer"])
        assert line["doc"]["choices"] == row["choices"]
        arguments = [line["arguments"][f"gen_args_{i}"] for i in range(len(row["choices"]))]
        assert [argument["arg_1"] for argument in arguments] == [f" {x}" for x in row["choices"]]
        assert arguments[0]["arg_0"] == f"Question: {row['question']}\nAnswer:"
        assert line["resps"] == [[answer] for answer in line["filtered_resps"]]
        scores = [float(score) for score, _ in line["filtered_resps"]]
        assert scores == line["log_probs"]
        assert line["acc"] == (scores.index(max(scores)) == row["answer"])
        assert {best for _, best in line["filtered_resps"]} <= {"True", "False"}
    one, _ = run(tmp_path / "one.json", "--data", str(choices_file), "--limit", "1")
    assert "acc" in one["choices"] and "acc_stderr" not in one["choices"]  # of one: none


CHANGES = "--tau soft=0.1;--gamma 0.1;--noise hidden;--dtype bfloat16;--limit 2;--cot 30"


@pytest.mark.parametrize("flags", [*CHANGES.split(";"), "--template PROMPT", "TOUCH"])
def test_an_interrupted_call_is_not_continued_by_another(tmp_path, monkeypatch, flags):
    folder, prompt = tiny_at(tmp_path / "tiny"), tmp_path / "prompt.txt"
    prompt.write_text("Q QUESTION A")
    monkeypatch.setattr(tqdm, "update", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit, match="interrupted"):
        run(tmp_path / "r.json", "--model", str(folder))
    if flags == "TOUCH":
        os.utime(folder / "model.safetensors", (1, 1))
    flags = flags.replace("TOUCH", "").replace("PROMPT", str(prompt)).split()
    with pytest.raises(SystemExit, match="part-0: expected what an interrupted call"):
        run(tmp_path / "r.json", "--model", str(folder), *flags)
