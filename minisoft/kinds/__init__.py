"""Every kind of token by its name, the paper's (`minisoft.soft`) and those of this folder, and the
table of options: what decides how tokens are made, and how much is trained, a row each.

A new kind is a class and a line in KINDS and in TAU.  It is built from its own fields: tau, sigma
if it has noise of that size, and any for which OPTIONS has a row, of the same name.
"""

from dataclasses import fields
from functools import partial

from minisoft.errors import expect
from minisoft.kinds.covariance import Covariance
from minisoft.kinds.gumbel import GumbelSoftmax
from minisoft.kinds.multiplex import Multiplex
from minisoft.kinds.noise import HiddenNoise, LogitNoise, TopLogitNoise
from minisoft.kinds.options import COUNT, NATURAL, SHARE, SIZE, Number, Option
from minisoft.soft import GAMMA, PAPER, Hard, Mixture  # noqa: F401 (PAPER: for others)

KINDS = {
    "hard": Hard,
    "soft": Mixture,
    "fuzzy": Mixture,
    "multiplex": Multiplex,
    "covariance": Covariance,
    "gumbel": GumbelSoftmax,
}
TAU = {"hard": 1.0, "soft": 0.5, "fuzzy": 0.0001}  # section 4: training temperatures
TAU |= {"multiplex": 1.0, "covariance": 1.0, "gumbel": 0.1}  # see the classes
TAU_TOP_K = 1.0  # appendix F.2: tau with noise on the k best logits
NOISES = {"embedding": Mixture, "hidden": HiddenNoise, "logits": LogitNoise}  # of soft and fuzzy
kept = partial(Option, kept=True)  # a model's folder may have another default
TOKENS = kept(
    "tokens",
    str,
    "kind of CoT token: the paper's hard, soft, fuzzy; multiplex (arXiv 2601.08808), gumbel "
    "(SofT-GRPO, arXiv 2511.06411), covariance (minisoft/kinds/)",
    "soft",
    choices=KINDS,
)
TEMPLATE = kept(
    "template",
    str,
    "prompt file, QUESTION in it (sec. 4; default the paper's *); chat: the paper's in the model's "
    "own chat template",
)
TAU_OF = kept("tau", SIZE, f"softmax temperature (F.3; default {TAU} *, with --top-k {TAU_TOP_K})")
SIGMA = kept("sigma", SIZE, "the noise's standard deviation, instead of --gamma (F.1)")
OPTIONS = (
    kept("gamma", SIZE, "sigma = gamma rms(E), or another noise scale of the weights (F.1)", GAMMA),
    kept("noise", str, "where soft and fuzzy tokens get noise (F.2)", "embedding", choices=NOISES),
    kept("top_k", COUNT, "noise on the TOP_K best logits (F.2; default all, or no --noise *)"),
    kept(
        "width",
        COUNT,
        "K: tokens that multiplex draws a step (default 3 *); covariance has the noise of the mean "
        "of K tokens (default 3 *); gumbel keeps the K best (default 5 *)",
        metavar="K",
    ),
    kept("top_p", SHARE, "gumbel: keep the best with this probability together (default 0.95 *)"),
)
COT = kept("cot", COUNT, "CoT budget in tokens (sec. 4; paper: 128 GSM8K, 512 MATH)", 128)
DATA = "problems: .jsonl, .json or .parquet file, folder of them, tiny, or a hub name"
STEPS = (
    "updates; with --resume another number goes on by the cosine of that many: the learning rate "
    "jumps, up for more updates, and a line says how far"
)
TRAINING = {  # how much is trained, with the paper's defaults (sec. 4, appendix A)
    row.name: row
    for row in (
        kept("data", str, DATA, "gsm8k"),
        kept("prompts", COUNT, "B, problems a step over all ranks", 2, metavar="B"),
        kept("group", Number(int, 2), "G, samples of each problem, at least 2", 32, metavar="G"),
        kept("steps", COUNT, STEPS, 4000),
        kept("lr", SIZE, "peak learning rate (paper: Llama-8B 3e-6, Qwen-3B 8e-6)", 6e-6),
        kept("warmup", NATURAL, "updates of linear warm-up before the cosine", 20),
        kept("validate_every", COUNT, "updates between greedy validations, own kind and hard", 50),
    )
}


def noisy(name: str) -> bool:
    """Has the kind noise of standard deviation sigma?"""
    return "sigma" in {x.name for x in fields(KINDS[name])}


def options(name: str) -> dict:
    """{option: its default} of those of OPTIONS that are the kind's own fields."""
    rows = {row.name for row in OPTIONS}
    return {x.name: x.default for x in fields(KINDS[name]) if x.name in rows}


def default_tau(name: str, top_k: int | None = None) -> float:
    """The temperature of training, unless another is given."""
    return TAU_TOP_K if top_k and KINDS[name] is Mixture else TAU[name]


def make_kind(name: str, sigma=None, tau=None, noise="embedding", top_k=None, **own):
    """The kind called `name`.  sigma is for those that have one; noise and top_k say where soft and
    fuzzy tokens get their noise (appendix F.2); own: its `options`; None is the default.  Raises
    InputError for what is out of range, missing, or not an option of that kind."""
    given = {"tau": tau, "sigma": sigma, "noise": noise, "top_k": top_k, **own}
    TOKENS.check(name, "tokens")
    for row in (TAU_OF, SIGMA, *OPTIONS):
        if given.get(row.name) is not None:
            row.check(given[row.name], row.name)
    expect(top_k is None or noise == "logits", "top-k", "noise on the logits", top_k)
    for option, value in own.items():
        expect(value is None or option in options(name), option, f"none, of {name} tokens", value)
    kind = KINDS[name]
    if kind is Mixture:
        kind = TopLogitNoise if top_k else NOISES[noise]
    given["tau"] = tau or default_tau(name, top_k)
    taken = {x.name: given.get(x.name) for x in fields(kind)}
    expect(sigma or "sigma" not in taken, "sigma", f"a number, for {name} tokens", sigma)
    return kind(**{x: value for x, value in taken.items() if value is not None})
