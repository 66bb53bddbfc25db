"""minisoft: train Llama and Qwen models to reason in soft tokens ("Soft Tokens, Hard Truths", arXiv 2509.19170).

`import minisoft` loads nothing else; `minisoft.load` and the modules (`minisoft.data`, ...) come when first used.
"""

import importlib

_MODULES = ("bench checkpoint choices data draws errors evaluation figures inside journal linear model optimizer parallel "
            "reinforce report reward rollout soft tokenizer").split()


def __getattr__(name: str):
    if name == "load":
        return importlib.import_module("minisoft.checkpoint").load
    if name in _MODULES:
        return importlib.import_module(f"minisoft.{name}")
    raise AttributeError(f"module 'minisoft' has no attribute {name!r}")
