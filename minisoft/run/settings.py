"""One resolver of "a flag, else the model's minisoft.json, else the paper".

`resolve` decides how tokens are made, for training and evaluation alike; `fill` decides how much
is trained.  Rules of `resolve`, each a test:

    template, cot  the flag, else the folder's, else the paper's
    noise          where it is: the flag, else where the folder's training had it, else embedding
    top_k          the flag; without --noise else the folder's; else none
    gamma          the flag; else the folder's, if noise and top_k are as in its training; else 0.33
    sigma          --sigma; else the folder's sigma, in proportion to gamma, if the noise is where
                   its training had it; else gamma * noise scale of the weights
    tau            of a kind: the flag; else the folder's for the kind it was trained with, if noise
                   and top_k are as there; else the paper's
    width, top_p   of a kind that has them: the flag; else the folder's for the kind it was trained
                   with; else the kind's own
"""

import os
import time
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path

from minisoft.data import PAPER_PROMPT
from minisoft.errors import InputError, expect
from minisoft.io.datasets import EMBEDDED, HUB, read_prompt
from minisoft.io.state import read_config
from minisoft.kinds import KINDS, NOISES, make_kind, options
from minisoft.soft import GAMMA, Hard, Mixture, noise_scale

TRAIN_COT, EVAL_COT = 128, 512  # CoT budgets in tokens (section 4)
PAPER = {  # section 4, appendix A
    "data": "gsm8k",
    "prompts": 2,
    "group": 32,
    "steps": 4000,
    "warmup": 20,
    "validate_every": 50,
    "lr": 6e-6,
}
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}  # of the transformer, where --dtype is not given
AT_LEAST_1 = (
    "prompts steps cot eval_cot eval_batch validate_every save_every keep plan micro_batch top_k "
    "width samples batch limit"
).split()
RANGES = {  # of the numbers that train.py and eval.py take, ends included
    **dict.fromkeys(AT_LEAST_1, (1, 1e12)),
    **dict.fromkeys("validation test warmup show_every show weight_decay".split(), (0, 1e12)),
    **dict.fromkeys("lr max_grad_norm gamma sigma".split(), (1e-30, 1e30)),
    "group": (2, 1e12),  # leave-one-out
    "top_p": (1e-30, 1),
    "patience": (1e-3, 1e6),
}
MAY_CHANGE = set(  # flags that may differ when a run goes on
    "steps validate_every save_every keep show_every micro_batch eval_batch device shard patience "
    "out resume plain track".split()
)


@dataclass(frozen=True)
class Flags:
    """What the user said; None where nothing was.  template: a file; tau: {kind: temperature}."""

    template: str | None = None
    cot: int | None = None
    noise: str | None = None
    top_k: int | None = None
    gamma: float | None = None
    sigma: float | None = None
    tau: dict[str, float] = field(default_factory=dict)
    own: dict = field(default_factory=dict)  # kinds.OPTIONS

    def check(self, names: list[str]) -> None:
        """Raises InputError for a flag that means nothing to any of these kinds.  Hard tokens
        ignore noise, so that they may be called beside soft ones."""
        noisy = any(issubclass(KINDS[name], (Mixture, Hard)) for name in names)
        expected = f"without {' and '.join(dict.fromkeys(names))} tokens, which do not use it"
        for each in ("noise", "top_k", "gamma", "sigma"):
            value = getattr(self, each)
            expect(value is None or noisy, flag(each), expected, value)
        for each, value in self.own.items():
            used = any(each in options(name) for name in names)
            expect(value is None or used, flag(each), expected, value)


@dataclass(frozen=True)
class Settings:
    """How tokens are made.  gamma is None where sigma was given, sigma until `for_model`."""

    template: str
    cot: int
    noise: str
    top_k: int | None
    gamma: float | None
    tau: dict[str, float]  # of every kind
    sigma: float | None = None
    own: dict = field(default_factory=dict)  # kinds.OPTIONS that were said
    base: dict = field(default_factory=dict)  # what the folder says

    def for_model(self, model) -> "Settings":
        """With sigma, for the weights of this folder.  Raises InputError where noise is asked for
        on more logits than there are."""
        V = model.config.vocab_size
        for name, found in (("--top-k", self.top_k), ("--width", self.own.get("width"))):
            expect(not found or found <= V, name, f"at most the vocabulary's {V}", found)
        if self.sigma is not None:
            return self
        trained_there = self.noise == self.base.get("noise", "embedding")
        if "sigma" in self.base and trained_there:
            sigma = self.base["sigma"] * (self.gamma / self.base.get("gamma", GAMMA))
        else:
            sigma = self.gamma * noise_scale(model, self.noise)
        return replace(self, sigma=sigma)

    def kind(self, name: str):
        """The kind of token called `name`.  Raises InputError for noise in a place of another."""
        noisy = issubclass(KINDS[name], Mixture)
        if self.noise != "embedding" and noisy and KINDS[name] is not Mixture:
            raise InputError(f"--noise: expected embedding for {name} tokens, found {self.noise}")
        own = self.options(name)
        return make_kind(name, self.sigma, self.tau[name], self.noise, self.top_k, **own)

    def options(self, name: str) -> dict:
        """{option: value} of those of kinds.OPTIONS that a kind has."""
        trained = self.base if self.base.get("tokens") == name else {}
        return {x: self.own.get(x) or trained.get(x, usual) for x, usual in options(name).items()}

    def facts(self) -> dict:
        """What evaluations report."""
        names = ("cot", "noise", "top_k", "gamma", "tau", "sigma")
        facts = {"prompt": self.template, **{name: getattr(self, name) for name in names}}
        return facts | {"options": {name: self.options(name) for name in KINDS if options(name)}}

    def changes(self, tokens: str) -> list[str]:
        """What training `tokens` from here changes of how the folder's model was trained."""
        if "tokens" not in self.base:
            return []
        now = {"tokens": tokens, "noise": self.noise, "top_k": self.top_k, "gamma": self.gamma}
        if tokens == self.base["tokens"]:
            now |= {"tau": self.tau[tokens], **self.options(tokens)}
        before = {name: self.base.get(name, value) for name, value in now.items()}
        return [
            f"{name} {before[name]} -> {now[name]}" for name in now if before[name] != now[name]
        ]


def resolve(folder: dict, flags: Flags, budget: int) -> Settings:
    """The settings for a model whose minisoft.json is `folder`; budget: the paper's CoT budget.
    Raises InputError for what does not go together."""
    trained = (folder.get("noise", "embedding"), folder.get("top_k"))
    noise = flags.noise or trained[0]
    expect(noise in NOISES, "minisoft.json: noise", f"one of {', '.join(NOISES)}", noise)
    top_k = flags.top_k or (None if flags.noise else trained[1])
    expect(not top_k or noise == "logits", "--top-k", "noise on the logits", top_k)
    as_trained = (noise, top_k) == trained
    tau = {folder["tokens"]: folder.get("tau")} if as_trained and "tokens" in folder else {}
    tau |= flags.tau
    for value in tau.values():  # in float32 logits / tau must be finite
        inside = value is None or 1e-30 <= value <= 1e30
        expect(inside, "tau", "a number from 1e-30 to 1e+30", value)
    gamma = flags.gamma or (folder.get("gamma") if as_trained else None) or GAMMA
    template = read_prompt(flags.template) if flags.template else folder.get("prompt", PAPER_PROMPT)
    return Settings(
        template=template,
        cot=flags.cot or folder.get("defaults", {}).get("cot", budget),
        noise=noise,
        top_k=top_k,
        gamma=None if flags.sigma else gamma,
        tau={name: make_kind(name, 1.0, tau.get(name), noise, top_k).tau for name in KINDS},
        sigma=flags.sigma,
        own=flags.own,
        base=folder,
    )


def fill(args: Namespace, folder: dict, device: str) -> None:
    """train.py's flags that were not given: from the folder's minisoft.json, else the paper's; the
    dtype that of the device, "cpu" or "cuda".  Raises InputError for numbers that cannot be used.
    """
    args.dtype = args.dtype or DTYPE[device]
    for name, value in {**PAPER, **folder.get("defaults", {})}.items():
        if getattr(args, name, "not a flag") is None:
            of_kind = value.get(args.tokens, PAPER[name]) if isinstance(value, dict) else value
            setattr(args, name, of_kind)
    budget = folder.get("defaults", {}).get("cot")
    for name, paper in (("cot", TRAIN_COT), ("eval_cot", EVAL_COT)):
        if getattr(args, name) is None:
            setattr(args, name, budget or paper)
    args.out = args.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    check_ranges(args)


def check_ranges(args: Namespace) -> None:
    """Raises InputError for a number that is out of its range."""
    for name in {*RANGES} & {*vars(args)}:
        (least, most), value = RANGES[name], getattr(args, name)
        expected = f"a number from {least:g} to {most:g}"
        expect(value is None or least <= value <= most, flag(name), expected, value)


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def resumed(args: Namespace, given: set[str], variant: dict) -> Namespace:
    """The flags of the run in args.out, with those that may change taken from the command line.
    given: names of the flags that the user gave; variant: see `minisoft.lab.variants`."""
    if "out" not in given:
        raise InputError("--resume: expected --out RUN with the run to go on with, found no --out")
    config = read_config(args.out)
    moved = {"model", "data", "template"} if config.get("saved") else set()  # its state has hashes
    if config.get("variant", {}) != variant:
        found = f"{variant or 'none'}"
        expected = f"the run's variant {config.get('variant') or 'none'}"
        raise InputError(f"{args.out}: --resume: expected {expected}, found {found}")
    changed = []
    for name in sorted(given - MAY_CHANGE - moved):
        before, now = config.get(name), getattr(args, name)
        if str(before) not in (str(now), anywhere(name, now)):
            changed.append(f"{name} (was {before}, now {now})")
    if changed:
        expected = "expected the flags of the run, found other values for"
        raise InputError(f"{args.out}: --resume: {expected} {', '.join(changed)}")
    for name in set(vars(args)) - {"out", "resume"} - (given & (MAY_CHANGE | moved)):
        setattr(args, name, config.get(name, getattr(args, name)))
    return args


def anywhere(flag: str, value):
    """The value of a flag, if it is a path then so that it is the same path after `cd`."""
    named = flag == "data" and value in {**EMBEDDED, **HUB}
    if flag in ("model", "data", "template") and value and not named and os.path.exists(value):
        return os.path.abspath(value)
    return value
