"""The model card: README.md of RUN/best and RUN/last, ready for the hub."""

import json
import subprocess
import textwrap
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from minisoft.data import ANSWER_TOKENS
from minisoft.kinds.options import ROOT

NAME = "README.md"
LEFT_OUT = {"out", "resume", "saved", "prompt", "plan", "patience", "track"}  # of the flags
LICENCE = ("license", "license_name", "license_link")
TEXT = """---
{head}
---

# {base}, trained with {tokens} tokens

{base}, {step} updates of REINFORCE further: its chains of thought were made of {tokens} tokens
([Soft Tokens, Hard Truths](https://arxiv.org/abs/2509.19170)), its problems are those of {data}.

{results}

## How it was trained

By minisoft{commit}, with these flags:

{flags}

What its chain of thought is made with is in `minisoft.json`:
{settings}.

## How to use it

With hard tokens it is an ordinary model of transformers (here NAME is this folder, or its name on
the hub):

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = (x.from_pretrained(NAME) for x in (AutoTokenizer, AutoModelForCausalLM))
prompt = {prompt}.replace("QUESTION", "What is 3 + 4?")
plain = not prompt.startswith(tokenizer.bos_token or "\\0")  # a chat template writes it itself
ids = tokenizer(prompt, add_special_tokens=plain, return_tensors="pt")
text = tokenizer.decode(model.generate(**ids, max_new_tokens={cot}, do_sample=False)[0])
```

With {tokens} tokens: `python eval.py --model NAME --data gsm8k-test --settings all`, by minisoft.
"""


def read_head(folder: Path) -> dict:
    """The YAML head of a model's own card, {} without one that can be read."""
    if not (folder / NAME).is_file():
        return {}
    from huggingface_hub import metadata_load

    with suppress(Exception):  # a licence that nobody can read is none
        return metadata_load(folder / NAME) or {}
    return {}


def text(args: Namespace, before: dict, sidecar: dict, table: str = "") -> str:
    """The card of a model; before: the head of the card of what it was trained from; sidecar: its
    minisoft.json; table: greedy accuracy before and after."""
    from huggingface_hub import ModelCardData

    base = before.get("base_model") if "minisoft" in (before.get("tags") or ()) else None
    if not Path(args.model).is_dir():
        base = args.model  # a hub id
    head = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["minisoft", "reinforcement-learning", f"{sidecar['tokens']}-tokens"],
        **{name: before[name] for name in LICENCE if name in before},
    )
    hidden = ("prompt", "defaults", "base", "data", "step")
    settings = [f"{name} {value}" for name, value in sidecar.items() if name not in hidden]
    return TEXT.format(
        head=head.to_yaml(),
        base=sidecar["base"] if base is None else base,
        results=table or "It was saved while it was trained.",
        commit=_commit(),
        flags=_flags(args),
        settings=textwrap.fill(", ".join(settings), 100),
        prompt=json.dumps(sidecar["prompt"], ensure_ascii=False),
        cot=args.eval_cot + ANSWER_TOKENS,
        **{name: sidecar[name] for name in ("tokens", "step", "data")},
    )


def _flags(args: Namespace) -> str:
    """The command with all that decided the run; of files their names alone."""
    words = ["python train.py"]
    for name, value in vars(args).items():
        if name not in LEFT_OUT and value is not None and value is not False:
            values = value if isinstance(value, list) else [value]
            shown = [] if value is True else [Path(str(each)).name for each in values]
            words.append(" ".join([f"--{name.replace('_', '-')}", *shown]))
    lines = textwrap.wrap(" ".join(words), 92, break_on_hyphens=False)
    return textwrap.indent(" \\\n    ".join(lines), "    ")


def _commit() -> str:
    """ " at commit ...", "" where this is no repository."""
    command = [
        "git",
        "-C",
        str(ROOT),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
        "--abbrev=40",
    ]
    with suppress(OSError, subprocess.SubprocessError):
        if (ROOT / ".git").exists():
            found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
            return f" at commit {found.stdout.strip()}"
    return ""
