"""The text before a CoT: a file of the user's, or the paper's in a model's own chat template."""

import json
import re
import time
from functools import partial
from pathlib import Path

from minisoft.data import PAPER_PROMPT
from minisoft.errors import expect, expecting
from minisoft.io.added_tokens import read_added
from minisoft.io.atomic import read_json
from minisoft.io.codecs import SPECIAL, class_of
from minisoft.io.rows import decode

CHAT = "chat"  # a --template; a file of this name is ./chat


def read_prompt(source: str | Path, folder: Path | None = None) -> str:
    """`chat`, see `_render`, or a file, without the newline that editors put at its end: a prompt
    that ends in one has an empty line there.  Raises InputError without one QUESTION."""
    if source == CHAT:
        return _render(folder)
    with expecting("a prompt file", source):
        raw = Path(source).read_bytes()
    template = re.sub("\r\n?", "\n", decode(raw, source)).removesuffix("\n")
    times = template.count("QUESTION")
    expect(times == 1, source, "the placeholder QUESTION once", times)
    return template


def _render(folder: Path) -> str:
    """A model's own chat template with the paper's prompt as the user's message, and what begins
    the assistant's, without thinking: as transformers renders it, in a sandbox.  The BOS that the
    tokenizer puts before every text is put before this one too, once, if the template has none."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        raise TemplateError(message)

    where, source = _chat_template(folder)
    # What the assistant says: training masks want it marked (SmolLM3), a prompt is the same.
    source = re.sub(r"(\{%[-+]?\s*(?:end)?)generation(?=\s*[-+]?%\})", r"\1with", source)
    names = read_added(folder, SPECIAL[class_of(folder)], None, ()).names
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # jinja's is for HTML
    sandbox.globals |= {"raise_exception": raise_exception, "strftime_now": time.strftime}
    with expecting("a chat template that can be rendered", where):
        text = sandbox.from_string(source).render(
            messages=[{"role": "user", "content": PAPER_PROMPT}],
            add_generation_prompt=True,
            enable_thinking=False,
            tools=None,
            documents=None,
            **{name: token.content for name, token in names.items() if token},
        )
    once = text.count(PAPER_PROMPT) == text.count("QUESTION") == 1
    expect(once, where, "the user's message once, as it is", text)
    return text


def _chat_template(folder: Path) -> tuple[Path | str, str]:
    """(where it stands, the text)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path, decode(path.read_bytes(), path)
    path = folder / "tokenizer_config.json"
    where, found = f"{path}: chat_template", read_json(path).get("chat_template")
    if isinstance(found, list):
        with expecting("a list of templates, each with its name, one of them default", where):
            found = {each["name"]: each["template"] for each in found}["default"]
    expect(isinstance(found, str), where, "one for --template chat, or chat_template.jinja", found)
    return where, found
