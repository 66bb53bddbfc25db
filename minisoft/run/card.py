"""The model card: README.md of RUN/best and RUN/last, ready for the hub."""

import json
import shlex
import subprocess
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from minisoft.data import ANSWER_TOKENS
from minisoft.kinds.options import ROOT

NAME = "README.md"
LEFT_OUT = ("out", "resume", "saved", "prompt", "plan", "patience", "track")  # of the flags
TEXT = """---
{head}
---

# {base}, trained with {tokens} tokens

{step} updates of REINFORCE on {data}, with chains of thought made of {tokens} tokens ([Soft Tokens,
Hard Truths](https://arxiv.org/abs/2509.19170)), by minisoft{commit}:

    {flags}

`minisoft.json` has the prompt and how tokens are made: {settings}.

{table}

With hard tokens it is an ordinary model of transformers (NAME: this folder, or its hub id):

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = (x.from_pretrained(NAME) for x in (AutoTokenizer, AutoModelForCausalLM))
prompt = {prompt}.replace("QUESTION", "What is 3 + 4?")
plain = not prompt.startswith(tokenizer.bos_token or "\\0")  # a chat template writes it itself
ids = tokenizer(prompt, add_special_tokens=plain, return_tensors="pt")
text = tokenizer.decode(model.generate(**ids, max_new_tokens={cot}, do_sample=False)[0])
```

With {tokens} tokens, by minisoft:

    python eval.py --model NAME --data gsm8k-test --settings {tokens}-greedy,{tokens}-sample
"""


def read_head(folder: Path) -> dict:
    """The YAML head of a model's own card, {} without one that can be read."""
    from huggingface_hub import metadata_load

    with suppress(Exception):  # no card, or a licence that nobody can read
        return metadata_load(folder / NAME) or {}
    return {}


def is_ours(head: dict) -> bool:
    """Has a card with this head come from here?"""
    return "minisoft" in (head.get("tags") or ())


def text(args: Namespace, before: dict, sidecar: dict, table: str = "") -> str:
    """A model's card; before: the head of its base's; sidecar: minisoft.json; table: accuracy."""
    from huggingface_hub import ModelCardData

    base = args.model  # a hub id, or a folder
    if Path(base).is_dir():
        base = before.get("base_model") if is_ours(before) else None
    head = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["minisoft", "reinforcement-learning", f"{sidecar['tokens']}-tokens"],
        **{name: value for name, value in before.items() if name.startswith("license")},
    )
    hidden = ("prompt", "defaults", "base", "data", "step")
    settings = [f"{name} {value}" for name, value in sidecar.items() if name not in hidden]
    at = f" at commit {now}" if (now := commit()) else ""
    values = sidecar | {"base": base or sidecar["base"], "table": table, "commit": at}
    values |= {"head": head.to_yaml(), "flags": _flags(args), "settings": ", ".join(settings)}
    values |= {"cot": args.eval_cot + ANSWER_TOKENS, "prompt": json.dumps(sidecar["prompt"])}
    return TEXT.format(**values)


def _flags(args: Namespace) -> str:
    """The command with all that decided the run; of files their names alone."""
    words = ["python", "train.py"]
    for name, value in vars(args).items():
        if name not in LEFT_OUT and value is not None and value is not False:
            values = value if isinstance(value, list) else [value]
            shown = [] if value is True else [Path(str(each)).name for each in values]
            words += [f"--{name.replace('_', '-')}", *shown]
    return shlex.join(words)


def commit() -> str:
    """Of the repository, "-dirty" behind it where code differs from it, "" where this is none."""
    command = "git describe --always --dirty --exclude=* --abbrev=40".split()
    with suppress(OSError, subprocess.SubprocessError):
        if (ROOT / ".git").exists():
            return subprocess.check_output(command, cwd=ROOT, text=True).strip()
    return ""
