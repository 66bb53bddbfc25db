"""The model card of what a run leaves."""

import re
import shutil
import subprocess

import pytest
from huggingface_hub import ModelCard
from runs import ROOT, tiny_at

import train
from minisoft.io.atomic import read_json
from minisoft.io.tokenizer import Tokenizer
from minisoft.run import card

FLAGS = "--prompts 2 --group 4 --cot 20 --eval-cot 20 --validation 4 --test 4 --validate-every 1"
FLAGS = f"{FLAGS} --device cpu --steps 1 --warmup 1 --tokens hard --seed 0".split()
HEAD = "---\nlicense: other\nlicense_name: own\nbase_model: someone/else\ntags: [x]\n---\nIts text."


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """RUN of a base that has a card."""
    folder = tmp_path_factory.mktemp("card")
    (tiny_at(folder / "base") / "README.md").write_text(HEAD)
    train.main([*FLAGS, "--out", str(folder / "run"), "--model", str(folder / "base")])
    return folder / "run"


def test_both_cards_load_and_say_how_the_model_was_trained(done):
    for name in ("best", "last"):
        loaded = ModelCard.load(done / name / "README.md")
        head = loaded.data.to_dict()
        expected = {"library_name": "transformers", "pipeline_tag": "text-generation"}
        assert head | expected | {"license": "other", "license_name": "own"} == head
        assert "minisoft" in head["tags"] and "base_model" not in head  # a folder, not of the hub
        assert "Its text." not in loaded.text and str(done.parent) not in loaded.text
        sidecar = read_json(done / name / "minisoft.json")
        words = " ".join(loaded.text.split())
        for flag in "model base,data tiny,tokens hard,seed 0,betas 0.9 0.95".split(","):
            assert f" --{flag} " in words, flag
        assert "eval.py --model NAME --data gsm8k-test --settings hard-greedy,hard-sample" in words
        for field in ("sigma", "tau", "gamma"):
            assert f"{field} {sidecar[field]}" in words
    text = (done / "best/README.md").read_text()
    after = read_json(done / "summary.json")["after"]["hard-greedy"]["pass@1"]
    assert re.search(rf"\| hard-greedy +\| [\d.]+% +\| {100 * after:.1f}% ", text)
    if (ROOT / ".git").exists():
        command = ["git", "rev-parse", "HEAD"]
        assert subprocess.check_output(command, cwd=ROOT, text=True).strip() in text


def test_its_python_runs(done):
    text = (done / "best/README.md").read_text()
    space = {"NAME": str(done / "best")}
    exec(re.search("```python\n(.*?)```", text, re.S)[1], space)
    assert space["ids"]["input_ids"][0].tolist() == Tokenizer(done / "best").encode(space["prompt"])
    assert len(space["text"]) > len(space["prompt"])


A_B = {"base_model": "a/b"}
BASES = [("owner/name", {}, "owner/name"), ("owner/name", A_B, "owner/name")]
BASES += [(".", {**A_B, "tags": ["minisoft"]}, "a/b")]  # of all its trainings


@pytest.mark.parametrize("model, before, expected", [*BASES, (".", {**A_B, "tags": None}, None)])
def test_its_base_is_a_model_of_the_hub_or_none(model, before, expected):
    args, _ = train.read_flags(["--model", model, "--eval-cot", "9"])
    sidecar = {"tokens": "soft", "base": "b", "data": "d", "step": 3, "prompt": 'a "QUESTION"'}
    written = card.text(args, before, sidecar)
    assert ModelCard(written).data.base_model == expected
    assert "license" not in ModelCard(written).data.to_dict()


@pytest.mark.parametrize("text", ["no head", "---\n: [\n---\n", "---\n- a\n---\n", "\0", ""])
def test_a_card_without_a_head_is_none(text, tmp_path):
    assert card.read_head(tmp_path) == {}
    (tmp_path / "README.md").write_text(text)
    assert card.read_head(tmp_path) == {}


def test_a_card_of_the_users_stays(done, tmp_path, capsys):
    """Where the best model is saved again, and at the end; ours is written anew."""
    out = shutil.copytree(done, tmp_path / "run")
    shutil.rmtree(out / "best")
    (out / "best").mkdir()
    (out / "best/README.md").write_text(HEAD)
    train.main(["--out", str(out), "--resume", "--steps", "3"])
    assert (out / "best/README.md").read_text() == HEAD and (out / "best/config.json").exists()
    assert capsys.readouterr().out.count(f"{out / 'best/README.md'}: not written by") == 1
    assert "\n3 updates of" in (out / "last/README.md").read_text()
