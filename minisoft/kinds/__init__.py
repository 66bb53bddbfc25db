"""Every kind of token by its name: the paper's (`minisoft.soft`), and in this folder other papers',
a file each, and the noise of appendix F.2 (`noise`).  And the table of options: what decides how
tokens are made, and how much is trained, a row each.

A new kind is a class and a line in KINDS and in TAU.  It is built from its own fields: tau, sigma
if it has noise of that size, and any for which NOISE has a row, of the same name.
"""

from dataclasses import fields

from minisoft.errors import expect
from minisoft.kinds.covariance import Covariance
from minisoft.kinds.gumbel import GumbelSoftmax
from minisoft.kinds.multiplex import Multiplex
from minisoft.kinds.noise import HiddenNoise, LogitNoise, TopLogitNoise
from minisoft.kinds.options import TINY, Option
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
TOKENS = Option(
    "tokens",
    str,
    "kind of CoT token: the paper's hard, soft, fuzzy; multiplex (arXiv 2601.08808), gumbel "
    "(SofT-GRPO, arXiv 2511.06411), covariance (minisoft/kinds/)",
    "soft",
    choices=KINDS,
    kept=True,
)
TEMPLATE = Option(
    "template",
    str,
    "file with the prompt, QUESTION for the question, without its last newline; chat: the model's "
    "chat template around the paper's (sec. 4; default the paper's *)",
    kept=True,
)
TAU_OF = Option(
    "tau",
    float,
    f"softmax temperature of the CoT (F.3; default {TAU} *, with --top-k {TAU_TOP_K})",
    least=TINY,
    kept=True,
)
SIGMA = Option(
    "sigma",
    float,
    "the standard deviation of the noise itself, instead of --gamma (F.1)",
    least=TINY,
    kept=True,
)
NOISE = (
    Option(
        "gamma",
        float,
        "noise factor (F.1): sigma = gamma * noise scale of the weights, rms(E) for the embedding",
        GAMMA,
        least=TINY,
        kept=True,
    ),
    Option(
        "noise",
        str,
        "where soft and fuzzy tokens get their noise (F.2)",
        "embedding",
        choices=NOISES,
        kept=True,
    ),
    Option(
        "top_k",
        int,
        "noise on the K best logits, the rest -inf (F.2; default all, or without --noise *)",
        least=1,
        kept=True,
        metavar="K",
    ),
    Option(
        "width",
        int,
        "K: multiplex, tokens drawn a step (default 3 *, its paper's); covariance, noise as of the "
        "mean of K tokens (default 3 *); gumbel, the best tokens that are kept (default 5 *)",
        least=1,
        kept=True,
        metavar="K",
    ),
    Option(
        "top_p",
        float,
        "gumbel: of the best tokens those that together have this probability (default 0.95 *)",
        least=TINY,
        most=1,
        kept=True,
        metavar="P",
    ),
)
COT = Option(
    "cot", int, "CoT budget in tokens (sec. 4; paper: 128 GSM8K, 512 MATH)", 128, least=1, kept=True
)
TRAINING = {  # how much is trained, with the paper's defaults (sec. 4, appendix A)
    row.name: row
    for row in (
        Option(
            "data",
            str,
            "problems: .jsonl, .json or .parquet file, folder of them, tiny, or a hub name",
            "gsm8k",
            kept=True,
        ),
        Option(
            "prompts", int, "B, problems a step over all ranks", 2, least=1, kept=True, metavar="B"
        ),
        Option(
            "group",
            int,
            "G, samples of each problem; at least 2, for the leave-one-out baseline",
            32,
            least=2,
            kept=True,
            metavar="G",
        ),
        Option(
            "steps",
            int,
            "updates; with --resume another number goes on by the cosine of that many: the "
            "learning rate jumps, up for more updates, and a line says how far",
            4000,
            least=1,
            kept=True,
            resumed=True,
        ),
        Option(
            "lr",
            float,
            "peak learning rate (paper: Llama-8B 3e-6, Qwen-3B 8e-6)",
            6e-6,
            least=TINY,
            kept=True,
        ),
        Option(
            "warmup", int, "updates of linear warm-up before the cosine", 20, least=0, kept=True
        ),
        Option(
            "validate_every",
            int,
            "updates between greedy validations, by the run's own kind and hard",
            50,
            least=1,
            kept=True,
            resumed=True,
        ),
    )
}


def options(name: str) -> dict:
    """{option: its default} of those of NOISE that are the kind's own fields."""
    rows = {row.name for row in NOISE}
    return {x.name: x.default for x in fields(KINDS[name]) if x.name in rows}


def default_tau(name: str, top_k: int | None = None) -> float:
    """The temperature of training, unless another is given."""
    return TAU_TOP_K if top_k and KINDS[name] is Mixture else TAU[name]


def make_kind(
    name: str,
    sigma: float | None = None,
    tau: float | None = None,
    noise: str = "embedding",
    top_k: int | None = None,
    **own,
):
    """The kind called `name`.  sigma is for those that have one; noise and top_k say where soft and
    fuzzy tokens get their noise (appendix F.2); tau None is the paper's; own: its `options`, None
    the default.

    Raises InputError for what is out of range, top_k without noise on the logits, options that the
    kind does not have, and no sigma where it has one.
    """
    given = {"tokens": name, "tau": tau, "sigma": sigma, "noise": noise, "top_k": top_k, **own}
    for row in (TOKENS, TAU_OF, SIGMA, *NOISE):
        if given.get(row.name) is not None:
            row.check(given[row.name], row.name)
    expect(top_k is None or noise == "logits", "top-k", "noise on the logits", top_k)
    own = {option: value for option, value in own.items() if value is not None}
    for option, value in own.items():
        expect(option in options(name), option, f"none, of {name} tokens", value)
    kind = KINDS[name]
    own["tau"] = default_tau(name, top_k) if tau is None else tau
    if kind is Mixture:
        kind = NOISES[noise]
        if top_k:
            kind = TopLogitNoise
            own["top"] = top_k
    if "sigma" in {x.name for x in fields(kind)}:
        expect(sigma is not None, "sigma", f"a number, for {name} tokens", sigma)
        own["sigma"] = sigma
    return kind(**own)
