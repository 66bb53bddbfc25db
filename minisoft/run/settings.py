"""One resolver of "a flag, else the model's minisoft.json, else the paper": `resolve` of how tokens
are made, in training and evaluation, `fill` of how much is trained.  Where noise and top_k are not
those of the folder's training, its gamma, sigma and tau do not hold; --gamma asks for another
sigma; tau, and options of some kinds, hold for the trained kind.  Each rule is a test."""

import os
import time
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path

from minisoft.data import PAPER_PROMPT
from minisoft.errors import InputError, expect
from minisoft.io import checkpoint
from minisoft.io.datasets import EMBEDDED, HUB
from minisoft.io.prompts import CHAT, read_prompt
from minisoft.io.state import read_config
from minisoft.kinds import (
    COT,
    KINDS,
    OPTIONS,
    SIGMA,
    TRAINING,
    default_tau,
    make_kind,
    noisy,
    options,
)
from minisoft.kinds.options import Option
from minisoft.reinforce import ADVANTAGES
from minisoft.soft import GAMMA, Hard, Mixture, noise_scale

TRAIN_COT, EVAL_COT = COT.default, 512  # CoT budgets in tokens (section 4)
DTYPE_ON = {"cpu": "float32", "cuda": "bfloat16"}  # where --dtype is not given
DTYPE = Option(
    "dtype",
    str,
    "of the transformer (default bfloat16 on GPUs, float32 on CPUs); bfloat16 has float32 master "
    "weights and logits, and a larger replay mismatch",
    choices=checkpoint.DTYPES,
)
PATHS = ("model", "data", "template", "reward")  # flags that may be
REWARD = Option(
    "reward",
    str,
    "Python file whose reward(answer, gold) stands for eq. 11 (default none); accuracy and pass@k "
    "keep to the verifier (minisoft/run/README.md)",
    metavar="FILE",
)
ADVANTAGE = Option(
    "advantage",
    str,
    "rloo: reward less the mean of the other G - 1 (eqs. 12-13); grpo: (reward - mean) / standard "
    "deviation of the G (arXiv 2402.03300)",
    "rloo",
    choices=ADVANTAGES,
)


class Flags(dict):
    """{name: value} of given ones: template, cot, sigma, OPTIONS's, tau ({kind: temperature})"""

    def __init__(self, **given):
        super().__init__({name: x for name, x in given.items() if x is not None})

    @classmethod
    def of(cls, args: Namespace) -> "Flags":
        """Those among the flags of a program; a --tau of train.py is that of its --tokens."""
        names = ("template", "cot", *(row.name for row in (SIGMA, *OPTIONS)))
        tau = args.tau or {}
        tau = tau if isinstance(tau, dict) else {args.tokens: tau}
        return cls(**{name: getattr(args, name, None) for name in names}, tau=tau)

    def check(self, names: list[str]) -> None:
        """Raises InputError for a flag that means nothing to any of these kinds; hard tokens ignore
        noise, so that they may be called beside soft ones."""
        ignored = all(not noisy(name) and KINDS[name] is not Hard for name in names)
        expected = f"without {' and '.join(dict.fromkeys(names))} tokens, which do not use it"
        for row in (*OPTIONS, SIGMA):
            owners = {name for name in KINDS if row.name in options(name)}
            used = owners & {*names} if owners else not ignored
            expect(row.name not in self or used, row.flag, expected, self.get(row.name))


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
    flags: Flags = field(default_factory=Flags)
    sidecar: dict = field(default_factory=dict)  # the folder's minisoft.json

    def for_model(self, model) -> "Settings":
        """With sigma, for these weights.  Raises InputError for noise on more than all logits."""
        V = model.config.vocab_size
        for name, found in (("--top-k", self.top_k), ("--width", self.flags.get("width"))):
            expect(not found or found <= V, name, f"at most the vocabulary's {V}", found)
        if self.sigma is not None:
            return self
        return replace(self, sigma=self.gamma * noise_scale(model, self.noise))

    def kind(self, name: str):
        """The kind of token called `name`.  Raises InputError for noise in a place of another."""
        if self.noise != "embedding" and noisy(name) and KINDS[name] is not Mixture:
            raise InputError(f"--noise: expected embedding for {name} tokens, found {self.noise}")
        own = self.options(name)
        return make_kind(name, self.sigma, self.tau[name], self.noise, self.top_k, **own)

    def options(self, name: str) -> dict:
        """{option: value} of those of kinds.OPTIONS that are a kind's fields."""
        trained = self.sidecar if self.sidecar.get("tokens") == name else {}
        return {x: self.flags.get(x, trained.get(x, usual)) for x, usual in options(name).items()}

    def facts(self) -> dict:
        """What evaluations report."""
        names = ("cot", "noise", "top_k", "gamma", "tau", "sigma")
        facts = {"prompt": self.template, **{name: getattr(self, name) for name in names}}
        return facts | {"options": {name: self.options(name) for name in KINDS if options(name)}}

    def sidecar_of(self, tokens: str) -> dict:
        """What minisoft.json says of a model that was trained so."""
        fields = {name: getattr(self, name) for name in ("noise", "top_k", "gamma")}
        fields = {"tokens": tokens, **fields, "tau": self.tau[tokens], **self.options(tokens)}
        return {**fields, "sigma": self.sigma}

    def changes(self, tokens: str) -> list[str]:
        """What training `tokens` from here changes of how the folder's model was trained."""
        before, now = self.sidecar, self.sidecar_of(tokens)
        names = [name for name in now if name in before and "tokens" in before]
        differ = [name for name in names if now[name] != before[name]]
        return [f"{name} {before[name]} -> {now[name]}" for name in differ]


def resolve(sidecar: dict, flags: Flags, budget: int, source: Path | None = None) -> Settings:
    """The settings for a model with this minisoft.json; budget: the paper's CoT budget; source: its
    folder, for a chat template.  Raises InputError for what does not go together."""
    trained = (sidecar.get("noise", "embedding"), sidecar.get("top_k"))
    noise = flags.get("noise", trained[0])
    top_k = flags.get("top_k", None if "noise" in flags else trained[1])
    expect(not top_k or noise == "logits", "--top-k", "noise on the logits", top_k)
    alike = sidecar if (noise, top_k) == trained else {}
    tau = {alike["tokens"]: alike.get("tau")} if "tokens" in alike else {}
    tau |= flags.get("tau", {})
    gamma = None if "sigma" in flags else flags.get("gamma", alike.get("gamma", GAMMA))
    sigma = flags.get("sigma", None if "gamma" in flags else alike.get("sigma"))
    template = sidecar.get("prompt", PAPER_PROMPT)
    if "template" in flags:
        template = read_prompt(flags["template"], source)
    return Settings(
        template=template,
        cot=flags.get("cot", sidecar.get("defaults", {}).get("cot", budget)),
        noise=noise,
        top_k=top_k,
        gamma=gamma,
        tau={name: tau.get(name) or default_tau(name, top_k) for name in KINDS},
        sigma=sigma,
        flags=flags,
        sidecar=sidecar,
    )


def fill(args: Namespace, sidecar: dict, device: str) -> None:
    """train.py's flags that were not given: minisoft.json's, else the paper's and device's."""
    defaults = sidecar.get("defaults", {})
    paper = {name: row.default for name, row in TRAINING.items()}
    paper |= {"cot": TRAIN_COT, "eval_cot": EVAL_COT, "dtype": DTYPE_ON[device]}
    for name, usual in paper.items():
        if getattr(args, name) is None:
            value = defaults.get("cot" if name == "eval_cot" else name, usual)
            of_kind = value.get(args.tokens, usual) if isinstance(value, dict) else value
            setattr(args, name, of_kind)
    args.out = args.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")


def resumed(args: Namespace, fixed: set, free: set) -> Namespace:
    """The flags of the run in args.out, with those that may change taken from the command line;
    fixed, free: names of those given.  Raises InputError for a fixed one that is not the run's."""
    if "out" not in free:
        raise InputError("--resume: expected --out RUN with the run to go on with, found no --out")
    config = read_config(args.out)
    moved = {*PATHS} if config.get("saved") else set()  # its state has hashes
    moved -= {"template"} if args.template == CHAT else set()
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
    if flag in PATHS and value and not named and os.path.exists(value):
        return os.path.abspath(value)
    return value
