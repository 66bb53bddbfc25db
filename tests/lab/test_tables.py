"""minisoft.lab.tables and minisoft.lab.figures: results read, what pictures show, the command
line."""

import json
import re
import sys

import pytest
from results import GREEDY, PROFILE, SAMPLE, result
from runs import python

from minisoft import kinds
from minisoft.errors import InputError
from minisoft.lab import figures, tables
from minisoft.run.tables import short_names


def write(path, value):
    path.write_text(json.dumps(value), "utf-8")
    return path


EIGHT = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def make_run(folder, seed=0, tokens="soft", accuracies=EIGHT, **config):
    folder.mkdir(parents=True)
    about = {"tokens": tokens, "seed": seed, "model": "weights/tiny", "data": "tiny", "lr": 1e-4}
    write(folder / "config.json", {**about, "out": str(folder), **config})
    rows = [{"step": i, "accuracy": a, "reward": 100 * a} for i, a in enumerate(accuracies, 1)]
    for row in rows:
        row |= {"cot_length": 30, "entropy": 0.3, "grad_norm": 10.0, "share_E": 0.5}
        if row["step"] % 4 == 0:
            row |= {"validation": row["accuracy"], "validation_hard": row["accuracy"] + 0.1}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def of_greedy(**fields):
    return {"settings": {"hard-greedy": {**GREEDY, **fields}}}


# ---------------------------------------------------------------- results


BAD = [
    ({"label": None}, "label: expected str, found None"),
    ({"model": 3}, "model: expected str, found 3"),
    ({"problems": None}, "problems: expected int, found None"),
    ({"settings": {"warm-greedy": GREEDY}}, "settings: expected some of hard-greedy"),
    ({"settings": {"hard-greedy": {"boxed": 1.0}}}, "hard-greedy: pass@1: expected numbers"),
    (of_greedy(**{"pass@2": "x"}), "hard-greedy: pass@2: expected numbers"),
    (of_greedy(ci95={"pass@1": [0.1]}), "hard-greedy: ci95: expected numbers"),
    (of_greedy(ci95={"pass@1": 1}), "hard-greedy: ci95: "),
    (of_greedy(ci95=1), "hard-greedy: ci95: expected numbers"),
    (of_greedy(entropy_by_position=[0.1]), "entropy_by_position: expected two of one length"),
    (of_greedy(**{**PROFILE, "rows_by_position": [1, 1, 1, "x"]}), "rows_by_position"),
    ({"choices": {"nll": 2.0}}, "choices: accuracy: expected numbers"),
]


@pytest.mark.parametrize("fields, message", BAD)
def test_bad_fields_are_named(tmp_path, fields, message):
    path = write(tmp_path / "bad.json", {"runs": [result(seed=1), result(**fields)]})
    with pytest.raises(InputError) as error:
        tables.read_results([path])
    assert str(error.value).startswith(f"{path}: runs[1]: ") and message in str(error.value)


def test_runs_that_do_not_belong_together_are_refused(tmp_path):
    path, other = write(tmp_path / "a.json", result()), write(tmp_path / "b.json", result())
    for paths in ([path, path], [path, other]):
        expected = f"{paths[1].name}: label, model, data, seed: expected others than in .*a.json"
        with pytest.raises(InputError, match=expected):
            tables.read_results(paths)
    for fields in ({"problems": 100}, {"samples": 2}, {"cot": 128}):
        with pytest.raises(InputError, match="expected .* as in other runs of soft"):
            tables.read_results([path, write(other, result(seed=1, **fields))])
    assert len(tables.read_results([path, write(other, result(seed=1))])) == 2


def test_models_of_files_written_apart_are_seeds_only_by_a_name(tmp_path):
    """Two calls of eval.py, each with a model whose folder has the other's name."""
    models = [f"ck/step_{step}/actor/hf" for step in (1, 2)]
    paths = []
    for i, (named, model) in enumerate((x, model) for x in (False, True) for model in models):
        label = "mine" if named else "hf"
        fields = {"model": model, "label": label, "named": named}
        paths.append(write(tmp_path / f"{i}.json", result(**fields)))
    labels = [run["label"] for run in tables.read_results(paths)]
    assert labels == ["hf (step_1)", "hf (step_2)", "mine", "mine"]
    seeds = [write(tmp_path / f"s{i}.json", result(model="m", named=False, seed=i)) for i in (0, 1)]
    assert [run["label"] for run in tables.read_results(seeds)] == ["soft", "soft"]


# ---------------------------------------------------------------- figures


def lines(axis):
    shown = [line for line in axis.lines if line.get_label()[0] != "_"]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in shown}


def ends(axis, i=0):
    """x -> (low, high) of the i-th band."""
    found = {}
    for x, y in axis.collections[i].get_paths()[0].vertices:
        found.setdefault(x, set()).add(round(y, 6))
    return {x: (min(ys), max(ys)) for x, ys in found.items()}


def ends_of(figure):
    """(Labels at the ends of lines, in all panels; the notes above.)"""
    names = [text.get_text() for axis in figure.axes for text in axis.texts]
    return names, figure.legends[0].get_title().get_text() if figure.legends else ""


def test_pass_at_k_shows_every_cell(tmp_path):
    pytest.importorskip("matplotlib")
    low = {**SAMPLE, **{f"pass@{k}": 0.2 + k / 10 for k in (1, 2, 3, 4)}}
    both = [{"hard-sample": numbers, "soft-sample": SAMPLE} for numbers in (SAMPLE, low)]
    of_hard = [result("hard", seed=i, settings=settings) for i, settings in enumerate(both)]
    figure = figures.pass_at_k([result(), *of_hard, result(data="math.jsonl")])
    figure.savefig(tmp_path / "k.png")
    assert (tmp_path / "k.png").read_bytes()[:4] == b"\x89PNG"
    hard, math, soft, empty = figure.axes
    assert lines(hard)["soft"] == ([1, 2, 3, 4], [50, 62.5, 75, 80])
    assert lines(hard)["hard"] == ([1, 2, 3, 4], pytest.approx([40, 51.25, 62.5, 70]))
    assert ends(hard, 0)[1] == (40, 90)  # the interval of one run
    assert ends(hard, 1)[1] == pytest.approx((40 - 200**0.5, 40 + 200**0.5), abs=1e-4)  # deviation
    assert [*lines(math), *lines(soft)] == ["soft", "hard"] and not empty.get_visible()
    titles = ["gsm8k_test, hard-sample", "math, hard-sample", "gsm8k_test, soft-sample"]
    assert [axis.get_title() for axis in (hard, math, soft)] == titles
    assert hard.xaxis.get_transform().base == 2 and hard.get_ylabel() == "pass@k (%)"
    assert hard.get_ylim()[0] < 30 and hard.get_ylim()[1] > 90  # nothing is cut off
    assert figures.pass_at_k([result(samples=1, settings={"hard-sample": {"pass@1": 0.5}})]) is None
    names, title = ends_of(figure)
    assert names == ["hard", "soft", "soft", "hard"]  # from below
    assert "95 % interval" in title and "± 1 standard deviation" in title


def test_entropy_leaves_out_positions_that_few_reach():
    pytest.importorskip("matplotlib")
    other = {"entropy_by_position": [0.7, 0.3, 0.1], "rows_by_position": [10, 5, 4]}
    greedy = {"entropy_by_position": [1.7, 0.3], "rows_by_position": [5, 5]}
    settings = {"hard-sample": {**SAMPLE, **PROFILE}, "hard-greedy": {**GREEDY, **other}}
    runs = [result(settings=settings)]
    for i, of in enumerate((PROFILE, other)):
        settings = {"hard-sample": {**SAMPLE, **of}, "soft-greedy": {**GREEDY, **greedy}}
        runs.append(result("hard", seed=i, settings=settings))
    figure = figures.entropy(runs)
    assert figures.entropy([result()]) is None  # nothing by position
    hard, soft = figure.axes
    expected = {"soft": ([1, 2, 3], [0.9, 0.5, 0.4]), "hard": ([1, 2], pytest.approx([0.8, 0.4]))}
    assert lines(hard) == expected and lines(soft) == {"hard": ([1, 2], [1.7, 0.3])}
    assert soft.get_title() == "gsm8k_test, soft-greedy"
    assert all(axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > 1.7 for axis in figure.axes)
    assert "5 % or 5 of the generations" in figure.get_supxlabel()
    assert hard.get_ylabel() == "mean entropy (nats)"


def test_a_kind_of_token_that_is_not_the_papers_has_panels(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(kinds.KINDS, "firm", kinds.KINDS["soft"])
    (axis,) = figures.entropy([result(settings={"firm-sample": {**SAMPLE, **PROFILE}})]).axes
    assert axis.get_title() == "gsm8k_test, firm-sample"


def test_training_merges_seeds_and_names_what_differs(tmp_path):
    pytest.importorskip("matplotlib")
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1, accuracies=EIGHT[2:])
    figure = figures.training(figures.read_runs([a, b, make_run(tmp_path / "c", lr=2e-4)]))
    left, _, right, *_ = figure.axes
    assert list(lines(left)) == ["soft, lr 0.0001", "soft, lr 0.0002"] == ends_of(figure)[0][:2]
    x, y = lines(left)["soft, lr 0.0001"]  # means of five, fewer at the ends; b has six updates
    assert x == [1, 2, 3, 4, 5, 6] and y == pytest.approx([30, 35, 40, 50, 57.5, 65])
    assert ends(left)[3] == pytest.approx((40 - 200**0.5, 40 + 200**0.5), abs=1e-4)
    one, two = lines(right)["soft, lr 0.0001"], lines(right)["soft, lr 0.0002"]
    assert one == ([4], [pytest.approx(60)]) and two == ([4, 8], pytest.approx([50, 90]))
    raw = left.lines[0]
    assert list(raw.get_ydata()) == pytest.approx([20, 30, 40, 50, 60, 70])
    assert raw.get_label().startswith("_")
    assert "mean over 5 updates" in ends_of(figure)[1]
    assert left.get_ylabel() == "right training samples (%)" and left.get_xlabel() == "update"


def test_smoothing_and_short_names():
    assert figures.running_mean({1: 1.0, 2: 2.0, 3: 6.0}, 3) == {1: 1.5, 2: 3.0, 3: 4.0}
    names = {"a/x.jsonl": "x", "b/y.json": "y", "c/": "c"}
    assert short_names([*names]) == names
    assert short_names(["a/x", "b/x"]) == {"a/x": "a/x", "b/x": "b/x"}


def test_kinds_of_token_are_lines_of_their_own(tmp_path):
    runs = [make_run(tmp_path / name, tokens=name) for name in ("hard", "soft")]
    other = make_run(tmp_path / "other", model="weights/large")
    assert list(figures.read_runs(runs)) == ["hard", "soft"]
    assert list(figures.read_runs([runs[1], other])) == ["soft, model tiny", "soft, model large"]


def test_all_that_is_watched_of_a_run_is_drawn(tmp_path):
    """Also the untrained model's validation, and where a crash has cut the last line."""
    pytest.importorskip("matplotlib")
    run = make_run(tmp_path / "a")
    text = (run / "metrics.jsonl").read_text() + '{"step": 9, "accu'
    untrained = {"step": 0, "validation": 0.3, "validation_hard": 0.2}
    (run / "metrics.jsonl").write_text(json.dumps(untrained) + "\n" + text)
    axes = figures.training(figures.read_runs([run])).axes
    assert lines(axes[1]) == {"soft": ([0, 4, 8], pytest.approx([30, 40, 80]))}
    assert lines(axes[2]) == {"soft": ([0, 4, 8], pytest.approx([20, 50, 90]))}
    means = [20, 25, 30, 40, 50, 60, 65, 70]  # over five updates, fewer at the ends
    assert lines(axes[0]) == {"soft": (list(range(1, 9)), pytest.approx(means))}
    assert list(axes[0].lines[0].get_ydata()) == pytest.approx(list(range(10, 90, 10)))
    assert [axis.get_ylabel() for axis in axes] == list(figures.PANELS.values())
    assert axes[6].get_yscale() == "log" and lines(axes[7])["soft"][1] == [50] * 8


# ---------------------------------------------------------------- command line


def test_command_line_end_to_end(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    numbers = {"hard-sample": {**SAMPLE, **PROFILE}}
    paths = [write(tmp_path / f"{i}.json", result(seed=i, settings=numbers)) for i in range(2)]
    run = make_run(tmp_path / "run")
    tables.main([*map(str, paths), str(run), "--out", str(tmp_path / "new" / "out")])
    told = capsys.readouterr().out
    names = ["entropy.png", "pass_at_k.png", "tables.md", "training.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == names
    assert all(f"wrote {tmp_path / 'new' / 'out' / name}" in told for name in names)
    text = (tmp_path / "new" / "out" / "tables.md").read_text("utf-8")
    assert text.strip() in told and "50.0 ± 0.0" in text
    tables.main([str(paths[0])])
    made = {"tables.md", "pass_at_k.png", "entropy.png"}
    assert made < {path.name for path in tmp_path.iterdir()}
    tables.main([str(run), str(make_run(tmp_path / "run1", seed=1))])
    assert (run / "training.png").is_file()


def test_without_matplotlib_there_are_tables(tmp_path, capsys, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    tables.main([str(write(tmp_path / "a.json", result()))])
    told = capsys.readouterr()
    assert "37.5 [30.0, 45.0]" in told.out
    assert told.err.count("\n") == 1 and "pip install matplotlib" in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "tables.md"]
    expected = "minisoft.lab.tables: error: pictures need the extra `plot`"
    with pytest.raises(SystemExit, match=expected):
        tables.main([str(make_run(tmp_path / "run"))])


def test_bad_input_is_one_line_and_writes_nothing(tmp_path):
    good, run = write(tmp_path / "good.json", result()), make_run(tmp_path / "run")
    (tmp_path / "broken.json").write_text("{")
    empty, same = make_run(tmp_path / "empty", accuracies=()), make_run(tmp_path / "same")
    odd = make_run(tmp_path / "odd")
    (odd / "metrics.jsonl").write_text('{"step": 1}\n')
    for paths, message in [
        ([tmp_path / "broken.json"], "broken.json: expected JSON, found: "),
        ([tmp_path / "none.json"], "none.json: expected a JSON file, found no such file"),
        ([tmp_path / "none"], "none: expected a run folder or a .json file"),
        ([write(tmp_path / "list.json", {"runs": 3})], "list.json: runs: expected a list, found 3"),
        ([good, good], "good.json: label, model, data, seed: expected others than in "),
        ([good, tmp_path], "config.json: expected a JSON file, found no such file"),
        ([good, empty], "empty/metrics.jsonl: expected lines with at least step and accuracy"),
        ([good, odd], "odd/metrics.jsonl: expected lines with at least step and accuracy, found: "),
        ([good, run, same], "same: seed: expected another than in "),
    ]:
        with pytest.raises(SystemExit) as stop:
            tables.main([*map(str, paths), "--out", str(tmp_path / "out")])
        assert re.fullmatch("minisoft.lab.tables: error: .*", stop.value.code)
        assert message in stop.value.code and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tables.md", "pass_at_k.png"])
def test_files_of_the_users_are_not_written_over(tmp_path, capsys, name):
    pytest.importorskip("matplotlib")
    path = write(tmp_path / "a.json", result())
    for _ in range(2):  # over its own
        tables.main([str(path)])
    (tmp_path / name).write_bytes(b"\x89PNG mine")
    with pytest.raises(SystemExit, match=f"{name}: expected no such file"):
        tables.main([str(path)])
    assert (tmp_path / name).read_bytes() == b"\x89PNG mine"


def test_module_is_a_command():
    done = python("-m", "minisoft.lab.tables", "no.json")
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (1, 1, "")
