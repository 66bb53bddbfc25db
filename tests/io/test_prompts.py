"""Prompts: of a file, and in a model's chat template as transformers renders it."""

import codecs
import json
import shutil
from functools import partial

import pytest
from conftest import refuses, write_json

from minisoft.data import PAPER_PROMPT, prompt
from minisoft.io.prompts import CHAT, read_prompt
from minisoft.io.tokenizer import Tokenizer

QUESTIONS = ["What is 3 + 4?", "  Two\nlines,\n\n'quotes' & <b>\\frac{1}{2}</b>: größer?  "]
# Written here, with what the published templates do.
LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if not date is defined %}
    {%- if strftime_now is defined %}
        {%- set date = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date = "1 Jan 2000" %}{%- endif %}
{%- endif %}
{#- a system message of the user's, or none #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system, messages = messages[0]['content'] | trim, messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\nToday: " + date + "\\n" + system + "<|eot_id|>" }}
{%- if tools is not none %}{{ raise_exception("no tools") }}{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>tools\\n' }}
    {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "system" and not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- message.content }}{{- message.tool_calls | tojson(indent=4) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """{%- set ns = namespace(several=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- set plain = message.content is string and not message.content.startswith('<reply>') %}
    {%- if ns.several and message.role == "user" and plain %}
        {%- set ns.several = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if loop.index0 > ns.last or message.reasoning_content is defined %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- continue %}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}\n"
    "   {% if true %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + eos_token}}"
    "{% endif %}\n\n{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
R1 = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
    "{% endif %}"
    "{% set ns = namespace(is_first=false, system='') %}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{% set ns.system = message['content'] %}{%- endif %}"
    "{%- endfor %}{{bos_token}}{{unk_token}}{{ns.system}}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}"
    "{{'<\uff5cUser\uff5c>' + message['content']}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt and not ns.is_tool %}{{'<\uff5cAssistant\uff5c><think>\\n'}}"
    "{% endif %}"
)
CHATS = {"llama3": [LLAMA3, R1], "qwen": [QWEN25, QWEN3, SMOLLM2], "llama2_model": [LLAMA3]}


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


@pytest.mark.parametrize("name, template", [(k, text) for k in CHATS for text in CHATS[k]])
def test_chat_prompts_and_their_ids_are_those_of_transformers(name, template, folder):
    from transformers import AutoTokenizer

    path = folder(name, template)
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
    tokenizer = Tokenizer(folder("qwen", QWEN25))
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


@pytest.mark.parametrize(
    "template, found",
    [
        (None, "found None"),
        ([{"name": "tool_use", "template": "x"}], "one of them default"),
        ("{{ messages[0].content", "end of template"),
        ("{% if x %}", "endif"),
        ("{{ raise_exception('only\nwith tools') }}", "only with tools"),
        ("{{ messages[0].content + 1 }}", "can only concatenate"),
        ("{{ messages[0].content | upper }}", "once, as it is"),
        ("{{ messages[0].content | tojson }}", "once, as it is"),
        ("QUESTION: {{ messages[0].content }}", "once, as it is"),
        ("{{ messages[0].content * 2 }}", "once, as it is"),
        ("nothing of it", "once, as it is"),
        ("{{ messages.append(1) }}{{ messages[0].content }}", "is unsafe"),
        ("{{ cycler.__init__.__globals__.os.mkdir('exploded') }}", "is unsafe"),
        ("{{ raise_exception.__globals__ }}", "once, as it is"),
        ("{{ messages[0] | attr('__class__') }}", "once, as it is"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_one_line(folder, monkeypatch, template, found):
    path = folder("llama3", template)
    monkeypatch.chdir(path)
    refuses(path, "tokenizer_config.json: chat_template", found, by=chat)
    assert not (path / "exploded").exists()


def test_a_prompt_file(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Frage: QUESTION\nAntwort: größer\n", "utf-8")
    assert read_prompt(str(path)) == "Frage: QUESTION\nAntwort: größer"
    path.write_text("QUESTION<|im_start|>assistant\n\n")  # as a chat template ends
    assert read_prompt(path) == "QUESTION<|im_start|>assistant\n"
    for text, times in (("no place", 0), ("QUESTION QUESTION", 2), ("", 0)):
        path.write_text(text)
        refuses(path, "prompt.txt: ", "QUESTION once", f"found {times}", by=read_prompt)


def test_a_prompt_file_of_an_editor(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_bytes(codecs.BOM_UTF8 + "Größe:\r\nQUESTION\r\n".encode())
    assert read_prompt(path) == "Größe:\nQUESTION"
    path.write_bytes("Say: QUESTION".encode("utf-16"))
    refuses(path, "prompt.txt: expected UTF-8 text, found UTF-16", by=read_prompt)
    refuses(tmp_path / "no.txt", "no.txt: expected a prompt file", by=read_prompt)
