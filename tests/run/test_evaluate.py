"""Whether a model can take the prompts is known before anything runs."""

import json
from types import SimpleNamespace

import pytest
from conftest import write_json
from runs import config, metrics, tiny_at

import eval as evaluation_program
import train
from minisoft.errors import InputError
from minisoft.io.checkpoint import outline
from minisoft.io.tokenizer import Tokenizer
from minisoft.run.evaluate import check_prompts

QUESTION = "Zoe has 5 tiles. Then 2 more come. How many tiles are there now?"
SMALL = "--prompts 2 --group 2 --validation 1 --test 0 --show-every 0 --device cpu".split()


def tiny_of(folder, positions):
    """The embedded model in folder/m, made for so many positions, and four problems."""
    raw = json.loads((tiny_at(folder / "m") / "config.json").read_text())
    write_json(folder / "m/config.json", {**raw, "max_position_embeddings": positions})
    rows = [json.dumps({"question": QUESTION.replace("5", str(i)), "answer": "7"}) for i in "5678"]
    (folder / "d.jsonl").write_text("\n".join(rows))
    return folder


def test_positions_are_counted_to_the_last(tmp_path):
    folder = tiny_of(tmp_path, 64) / "m"
    shape, tokenizer = outline(folder).config, Tokenizer(folder)
    length = len(tokenizer.encode(QUESTION))
    lines = []
    world = SimpleNamespace(say=lines.append)
    check_prompts(folder, shape, tokenizer, [("short", 1), (QUESTION, 64 - length)], world)
    assert lines == []
    check_prompts(folder, shape, tokenizer, [(QUESTION, 65 - length), ("short", 1)], world)
    assert len(lines) == 1 and "\n" not in lines[0]
    assert "max_position_embeddings: made for 64 positions" in lines[0]
    assert "may take 65," in lines[0] and str(folder) in lines[0]


@pytest.mark.parametrize("cot, eval_cot, lines", [(8, 8, 0), (90, 8, 1), (8, 90, 1)])
def test_a_run_says_at_its_start_that_it_goes_beyond_them(tmp_path, capsys, cot, eval_cot, lines):
    folder = tiny_of(tmp_path, 100)
    flags = ["--steps", "1", "--cot", str(cot), "--eval-cot", str(eval_cot)]
    places = ["--model", str(folder / "m"), "--data", str(folder / "d.jsonl")]
    train.main([*SMALL, *flags, *places, "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert said.count("max_position_embeddings") == lines
    assert said.find("max_position_embeddings") < said.index(" training, ") or not lines


@pytest.mark.parametrize("show", [[], ["--show", "0"]])
def test_an_evaluation_says_it_for_each_model_at_first(tmp_path, monkeypatch, capsys, show):
    folder = tiny_of(tmp_path, 64)
    monkeypatch.chdir(tmp_path)
    models = ["m"] if show else ["a=m", f"b={folder / 'm'}"]
    flags = ["--data", "d.jsonl", "--cot", "40", "--device", "cpu", "--limit", "1", *show]
    evaluation_program.main(["--model", *models, *flags])
    lines = capsys.readouterr().out.splitlines()
    said = [i for i, line in enumerate(lines) if "max_position_embeddings" in line]
    assert said == list(range(len(models)))


def test_options_of_multiple_choice_count_too(tmp_path, capsys):
    folder = tiny_of(tmp_path, 16)
    row = {"question": "How many coins are there now?", "choices": ["5", "ten " * 9], "answer": 0}
    write_json(folder / "c.jsonl", row)
    flags = ["--data", str(folder / "c.jsonl"), "--device", "cpu"]
    evaluation_program.main(["--model", str(folder / "m"), *flags])
    assert capsys.readouterr().out.count("max_position_embeddings: made for 16") == 1


def test_a_token_without_a_row_is_one_line_where_a_prompt_has_it(tmp_path):
    from tokenizers import Tokenizer as Codec

    folder = tiny_of(tmp_path, 1024)
    path = folder / "m/tokenizer.json"
    codec = Codec.from_file(str(path))
    codec.add_special_tokens(["[PAD]"])
    codec.save(str(path))
    shape, tokenizer = outline(folder / "m").config, Tokenizer(folder / "m")
    check_prompts(folder, shape, tokenizer, [(QUESTION, 1)], None)
    with pytest.raises(InputError, match=r"vocab_size: .* 179, .*Then \[PAD\]'; found 179"):
        check_prompts(folder, shape, tokenizer, [("Then [PAD] come.", 1)], None)


def test_a_run_reads_the_same_after_cd(tmp_path, monkeypatch):
    """Relative paths; a folder with the same names, but other things in them, is the new place."""
    folder = tiny_of(tmp_path, 1024)
    (folder / "t.txt").write_text("User: QUESTION Assistant:")
    (folder / "elsewhere/m").mkdir(parents=True)
    (folder / "elsewhere/d.jsonl").write_text('{"question": "?", "answer": "1"}')
    flags = ["--model", "m", "--data", "d.jsonl", "--template", "t.txt"]
    monkeypatch.chdir(folder)
    train.main([*SMALL, *flags, "--cot", "8", "--eval-cot", "8", "--steps", "1", "--out", "run"])
    train.main(["--out", "run", "--resume", "--steps", "2", *flags])  # the same flags once more
    monkeypatch.chdir(folder / "elsewhere")
    train.main(["--out", "../run", "--resume", "--steps", "3"])
    assert [row["step"] for row in metrics(folder / "run")] == [1, 2, 3]
    paths = [config(folder / "run")[name] for name in ("model", "data", "template")]
    assert paths == [str(folder / name) for name in ("m", "d.jsonl", "t.txt")]
