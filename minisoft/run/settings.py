"""One resolver of "a flag, else the model's minisoft.json, else the paper".

`resolve` decides how tokens are made, for training and evaluation alike; `fill` decides how much
is trained.  Rules of `resolve`, each a test:

    template, cot  the flag, else the folder's, else the paper's
    noise          where it is: the flag, else where the folder's training had it, else embedding
    top_k          the flag; without --noise else the folder's; else none
    gamma          the flag; else the folder's, if noise and top_k are as in its training; else 0.33
    sigma          --sigma; else the folder's, as gamma, if --gamma is not given; else gamma * noise
                   scale of the weights
    tau            of a kind: the flag; else the folder's for the kind it was trained with, if noise
                   and top_k are as there; else the paper's
    others         those of kinds.NOISE that only some kinds have: the flag; else the folder's for
                   the kind it was trained with; else the kind's own
"""

import os
import time
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path

from minisoft.data import PAPER_PROMPT
from minisoft.errors import InputError, expect
from minisoft.io.datasets import EMBEDDED, HUB
from minisoft.io.prompts import CHAT, read_prompt
from minisoft.io.state import read_config
from minisoft.kinds import COT, KINDS, NOISE, TRAINING, default_tau, make_kind, options
from minisoft.soft import GAMMA, Hard, Mixture, noise_scale

TRAIN_COT, EVAL_COT = COT.default, 512  # CoT budgets in tokens (section 4)
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}  # of the transformer, where --dtype is not given


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
    own: dict = field(default_factory=dict)  # those of kinds.NOISE that only some kinds have

    @classmethod
    def of(cls, args: Namespace) -> "Flags":
        """Those among the flags of a program; a --tau of train.py is that of its --tokens."""
        given = {name: getattr(args, name, None) for name in ("template", "cot", "sigma")}
        given |= {row.name: getattr(args, row.name) for row in NOISE}
        own = {name: given.pop(name) for name in [*given] if name not in cls.__dataclass_fields__}
        tau = args.tau or {}
        return cls(**given, tau=tau if isinstance(tau, dict) else {args.tokens: tau}, own=own)

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
    own: dict = field(default_factory=dict)  # as in Flags
    base: dict = field(default_factory=dict)  # what the folder says

    def for_model(self, model) -> "Settings":
        """With sigma, for the weights of this folder.  Raises InputError where noise is asked for
        on more logits than there are."""
        V = model.config.vocab_size
        for name, found in (("--top-k", self.top_k), ("--width", self.own.get("width"))):
            expect(not found or found <= V, name, f"at most the vocabulary's {V}", found)
        if self.sigma is not None:
            return self
        return replace(self, sigma=self.gamma * noise_scale(model, self.noise))

    def kind(self, name: str):
        """The kind of token called `name`.  Raises InputError for noise in a place of another."""
        noisy = issubclass(KINDS[name], Mixture)
        if self.noise != "embedding" and noisy and KINDS[name] is not Mixture:
            raise InputError(f"--noise: expected embedding for {name} tokens, found {self.noise}")
        own = self.options(name)
        return make_kind(name, self.sigma, self.tau[name], self.noise, self.top_k, **own)

    def options(self, name: str) -> dict:
        """{option: value} of those of kinds.NOISE that are a kind's fields."""
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


def resolve(folder: dict, flags: Flags, budget: int, source: Path | None = None) -> Settings:
    """The settings for a model whose minisoft.json is `folder`; budget: the paper's CoT budget;
    source: where that lies, for a chat template.  Raises InputError for what does not go together.
    """
    trained = (folder.get("noise", "embedding"), folder.get("top_k"))
    noise = flags.noise or trained[0]
    top_k = flags.top_k or (None if flags.noise else trained[1])
    expect(not top_k or noise == "logits", "--top-k", "noise on the logits", top_k)
    as_trained = (noise, top_k) == trained
    tau = {folder["tokens"]: folder.get("tau")} if as_trained and "tokens" in folder else {}
    tau |= flags.tau
    trained_with = folder if as_trained else {}
    gamma = flags.gamma or trained_with.get("gamma", GAMMA)
    sigma = flags.sigma or (None if flags.gamma else trained_with.get("sigma"))
    template = folder.get("prompt", PAPER_PROMPT)
    if flags.template:
        template = read_prompt(flags.template, source)
    return Settings(
        template=template,
        cot=flags.cot or folder.get("defaults", {}).get("cot", budget),
        noise=noise,
        top_k=top_k,
        gamma=None if flags.sigma else gamma,
        tau={name: tau.get(name) or default_tau(name, top_k) for name in KINDS},
        sigma=sigma,
        own=flags.own,
        base=folder,
    )


def fill(args: Namespace, folder: dict, device: str) -> None:
    """train.py's flags that were not given: from the folder's minisoft.json, else the paper's; the
    dtype that of the device, "cpu" or "cuda"."""
    defaults = folder.get("defaults", {})
    paper = {name: row.default for name, row in TRAINING.items()}
    paper |= {"cot": TRAIN_COT, "eval_cot": EVAL_COT, "dtype": DTYPE[device]}
    for name, usual in paper.items():
        if getattr(args, name) is None:
            value = defaults.get("cot" if name == "eval_cot" else name, usual)
            of_kind = value.get(args.tokens, usual) if isinstance(value, dict) else value
            setattr(args, name, of_kind)
    args.out = args.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def resumed(args: Namespace, fixed: set, free: set, variant: dict) -> Namespace:
    """The flags of the run in args.out, with those that may change taken from the command line.
    fixed, free: names of the flags that the user gave, those that may change apart; variant: see
    `minisoft.lab.variants`.  Raises InputError for a fixed one that is not the run's."""
    if "out" not in free:
        raise InputError("--resume: expected --out RUN with the run to go on with, found no --out")
    config = read_config(args.out)
    moved = {"model", "data", "template"} if config.get("saved") else set()  # its state has hashes
    moved -= {"template"} if args.template == CHAT else set()
    if config.get("variant", {}) != variant:
        found = f"{variant or 'none'}"
        expected = f"the run's variant {config.get('variant') or 'none'}"
        raise InputError(f"{args.out}: --resume: expected {expected}, found {found}")
    changed = []
    for name in sorted(fixed - moved):
        before, now = config.get(name), getattr(args, name)
        if str(before) not in (str(now), anywhere(name, now)):
            changed.append(f"{name} (was {before}, now {now})")
    if changed:
        expected = "expected the flags of the run, found other values for"
        raise InputError(f"{args.out}: --resume: {expected} {', '.join(changed)}")
    for name in set(vars(args)) - {"out", "resume"} - free - (fixed & moved):
        setattr(args, name, config.get(name, getattr(args, name)))
    return args


def anywhere(flag: str, value):
    """The value of a flag, if it is a path then so that it is the same path after `cd`."""
    named = value in {"data": {**EMBEDDED, **HUB}, "template": [CHAT]}.get(flag, ())
    if flag in ("model", "data", "template") and value and not named and os.path.exists(value):
        return os.path.abspath(value)
    return value
