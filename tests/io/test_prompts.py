"""Prompts: of a file, and in a model's chat template as transformers renders it."""

import codecs
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from conftest import refuses, write_json

from minisoft.data import PAPER_PROMPT, prompt
from minisoft.io.prompts import CHAT, read_prompt
from minisoft.io.tokenizer import Tokenizer

QUESTIONS = ["What is 3 + 4?", "  Two\nlines,\n\n'quotes' & <b>\\frac{1}{2}</b>: größer?  "]
# Written here, with what the published templates do.
CHATS = Path(__file__).parent / "chat_templates"
CHATS = {path.stem: path.read_text("utf-8") for path in sorted(CHATS.glob("*.jinja"))}
FOLDERS = ["llama3 llama3", "llama3 r1", "qwen qwen25", "qwen qwen3", "qwen smollm2"]
FOLDERS += ["qwen smollm3"]


@pytest.fixture
def folder(tokenizer_folders, tmp_path):
    """folder(name, template, ...) -> a copy of a tokenizer's folder with a chat template."""

    def copy(name, template, **config):
        shutil.copytree(tokenizer_folders[name], tmp_path / name, dirs_exist_ok=True)
        path = tmp_path / name / "tokenizer_config.json"
        write_json(path, json.loads(path.read_text()) | {"chat_template": template} | config)
        return tmp_path / name

    return copy


chat = partial(read_prompt, CHAT)


@pytest.mark.parametrize("place", [*FOLDERS, "llama2_model llama3"])
def test_chat_prompts_and_their_ids_are_those_of_transformers(place, folder):
    from transformers import AutoTokenizer

    name, template = place.split()
    path = folder(name, CHATS[template])
    theirs, own, template = AutoTokenizer.from_pretrained(path), Tokenizer(path), chat(path)
    for question in QUESTIONS:
        messages = [{"role": "user", "content": prompt(question)}]
        options = {"add_generation_prompt": True, "enable_thinking": False}
        text = theirs.apply_chat_template(messages, tokenize=False, **options)
        assert prompt(question, template) == text
        expected = theirs.apply_chat_template(messages, **options)["input_ids"]
        assert own.encode(text) == expected
        bos = theirs.bos_token_id
        assert expected.count(bos) == text.count(theirs.bos_token or "\0")


def test_special_tokens_in_a_chat_prompt_are_one_id_each(folder):
    tokenizer = Tokenizer(folder("qwen", CHATS["qwen25"]))
    ids = tokenizer.encode(prompt("1?", chat(tokenizer.folder)))
    assert tokenizer.decode(ids).count("<|im_") == 0 and len(set(ids) & tokenizer.eos_ids) == 1


def test_where_a_chat_template_stands(folder):
    one, other = "{{ messages[0].content }} one", "{{ messages[0].content }} other"
    assert chat(folder("llama3", one)) == f"{PAPER_PROMPT} one"
    several = [{"name": "tool_use", "template": one}, {"name": "default", "template": other}]
    assert chat(folder("llama3", several)) == f"{PAPER_PROMPT} other"
    path = folder("llama3", one)
    (path / "chat_template.jinja").write_text(other)  # goes before, as in transformers
    assert chat(path) == f"{PAPER_PROMPT} other"


NO_CHAT = {
    "end of template": ["{{ messages[0].content"],
    "endif": ["{% if x %}"],
    "only with tools": ["{{ raise_exception('only\nwith tools') }}"],
    "can only concatenate": ["{{ messages[0].content + 1 }}"],
    "is unsafe": ["{{ cycler.__init__.__globals__.os.mkdir('exploded') }}"],
    "once, as it is": ["nothing of it", "QUESTION: {{ messages[0].content }}"],
    "one of them default": [[{"name": "tool_use", "template": "x"}]],
    "found None": [None],
}
NO_CHAT["is unsafe"] += ["{{ messages.append(1) }}{{ messages[0].content }}"]
NO_CHAT["once, as it is"] += [
    f"{{{{ messages[0].content {x} }}}}" for x in ("| upper", "* 2", "| tojson")
]
SECRETS = ["{{ raise_exception.__globals__ }}", "{{ messages[0] | attr('__class__') }}"]
NO_CHAT["once, as it is"] += SECRETS


@pytest.mark.parametrize("found, template", [(k, x) for k, xs in NO_CHAT.items() for x in xs])
def test_a_chat_template_that_cannot_be_used_is_one_line(folder, monkeypatch, template, found):
    path = folder("llama3", template)
    monkeypatch.chdir(path)
    refuses(path, "tokenizer_config.json: chat_template", found, by=chat)
    assert not (path / "exploded").exists()


def test_a_prompt_file(tmp_path):
    """Also an editor's."""
    path = tmp_path / "prompt.txt"
    path.write_text("Frage: QUESTION\nAntwort: größer\n", "utf-8")
    assert read_prompt(str(path)) == "Frage: QUESTION\nAntwort: größer"
    path.write_text("QUESTION<|im_start|>assistant\n\n")  # as a chat template ends
    assert read_prompt(path) == "QUESTION<|im_start|>assistant\n"
    for text, times in (("no place", 0), ("QUESTION QUESTION", 2), ("", 0)):
        path.write_text(text)
        refuses(path, "prompt.txt: ", "QUESTION once", f"found {times}", by=read_prompt)
    path.write_bytes(codecs.BOM_UTF8 + "Größe:\r\nQUESTION\r\n".encode())
    assert read_prompt(path) == "Größe:\nQUESTION"
    path.write_bytes("Say: QUESTION".encode("utf-16"))
    refuses(path, "prompt.txt: expected UTF-8 text, found UTF-16", by=read_prompt)
    refuses(tmp_path / "no.txt", "no.txt: expected a prompt file", by=read_prompt)
