"""The tables of eval.py against numbers by hand."""

from results import CHOICES, GREEDY, SAMPLE, result

from minisoft import kinds
from minisoft.run import tables


def parse(text):
    """Markdown -> for each table {row head: {column head: cell}}."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line[0] == "|"]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        if rows:
            names = 3 if rows[0][1] == "data" else 1
            cells = [dict(zip(rows[0], row, strict=True)) for row in rows]
            found.append({" ".join(row[:names]): of for row, of in zip(rows[2:], cells[2:])})
    return found


def test_one_run_is_written_with_its_interval():
    text = tables.tables([result(choices=CHOICES)])
    hard, choice, generations = parse(text)
    assert hard == {
        "soft": {
            "training": "soft",
            "gsm8k_test: greedy pass@1": "37.5 [30.0, 45.0]",
            "gsm8k_test: sample pass@1": "50.0 [40.0, 90.0]",
            "gsm8k_test: sample pass@4": "80.0 [40.0, 90.0]",
        }
    }
    assert choice["soft"] == {
        "training": "soft",
        "gsm8k_test: accuracy (%)": "25.0 [20.0, 30.0]",
        "gsm8k_test: accuracy_norm (%)": "50.0 [45.0, 55.0]",
        "gsm8k_test: NLL (nats per token)": "1.52 [1.50, 1.55]",
    }
    for how, shown in (("greedy", "100.0 0.0 41.2 0.31"), ("sample", "90.0 10.0 20.0 0.25")):
        assert [*generations[f"soft gsm8k_test hard-{how}"].values()][3:] == shown.split()
    titles = [line for line in text.splitlines() if line.startswith("**")]
    heads = [title.split("**")[1] for title in titles]
    assert heads == ["Hard inference", "Multiple choice", "Generations"]
    assert titles[0].endswith("gsm8k_test: 1 run, 200 problems, 4 samples")
    assert titles[1].endswith("gsm8k_test: 1 run, 200 problems")


def test_seeds_are_merged():
    seeds = []
    for i, p in enumerate((0.40, 0.41, 0.45)):
        settings = {"hard-sample": {**SAMPLE, "pass@1": p, "cot_length": 10 * p}}
        seeds.append(result(seed=i, settings=settings, choices={**CHOICES, "nll": 2 + p}))
    text = tables.tables(seeds)
    hard, choice, generations = parse(text)
    deviation = ((2**2 + 1**2 + 3**2) / 2) ** 0.5
    assert hard["soft"]["gsm8k_test: sample pass@1"] == f"42.0 ± {deviation:.1f}"
    assert hard["soft"]["gsm8k_test: sample pass@4"] == "80.0 ± 0.0"
    assert choice["soft"]["gsm8k_test: NLL (nats per token)"] == "2.42 ± 0.03"
    assert generations["soft gsm8k_test hard-sample"]["CoT length (tokens)"] == "4.2 ± 0.3"
    assert "gsm8k_test: 3 runs, 200 problems, 4 samples" in text and "greedy" not in text


def test_layout_order_and_missing_cells():
    fuzzy = {"fuzzy-greedy": GREEDY}
    runs = [
        result("soft"),
        result("base", data="math.json", settings={"hard-greedy": GREEDY}),
        result("hard", settings=fuzzy, samples=8, choices=None),
        result("base", settings={"hard-sample": SAMPLE}),
        result("short", settings={"hard-greedy": {"pass@1": 0.3}}),
    ]
    hard, fuzzy, generations = parse(tables.tables(runs))
    assert list(hard) == ["soft", "base", "short"] and list(fuzzy) == ["hard"]
    assert list(hard["base"].items()) == [
        ("training", "base"),
        ("gsm8k_test: greedy pass@1", ""),
        ("gsm8k_test: sample pass@1", "50.0 [40.0, 90.0]"),
        ("gsm8k_test: sample pass@4", "80.0 [40.0, 90.0]"),
        ("math: greedy pass@1", "37.5 [30.0, 45.0]"),
    ]
    assert hard["soft"]["math: greedy pass@1"] == ""
    assert hard["short"]["gsm8k_test: greedy pass@1"] == "30.0"
    assert [*generations["short gsm8k_test hard-greedy"].values()][3:] == [""] * 4
    assert tables.tables([]) == ""


def test_data_sets_of_one_name_stay_apart():
    hard, _ = parse(tables.tables([result(data="a/test.jsonl"), result(data="b/test.jsonl")]))
    assert {"a/test.jsonl: greedy pass@1", "b/test.jsonl: greedy pass@1"} <= set(hard["soft"])


def test_a_kind_of_token_that_is_not_the_papers(monkeypatch):
    """Has a table of its own; without it the paper's three are as they were."""
    before = tables.tables([result()])
    monkeypatch.setitem(kinds.KINDS, "firm", kinds.KINDS["soft"])
    monkeypatch.setitem(kinds.TAU, "firm", 0.1)
    assert tables.tables([result()]) == before
    of_firm = {"firm-greedy": GREEDY, "firm-sample": SAMPLE}
    firm, generations = parse(tables.tables([result("firm", settings=of_firm)]))
    assert firm["firm"]["gsm8k_test: sample pass@4"] == "80.0 [40.0, 90.0]"
    assert len(generations) == 2
