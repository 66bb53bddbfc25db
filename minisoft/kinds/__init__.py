"""Every kind of token by its name: the paper's (`minisoft.soft`), and in this folder other papers',
a file each, and the noise of appendix F.2 (`noise`).

A new kind is a class and a line in KINDS and in TAU.  It is built from its own fields: tau, sigma
if it has noise of that size, and those of OPTIONS that it has.
"""

from dataclasses import fields

from minisoft.errors import expect
from minisoft.kinds.covariance import Covariance
from minisoft.kinds.gumbel import GumbelSoftmax
from minisoft.kinds.multiplex import Multiplex
from minisoft.kinds.noise import HiddenNoise, LogitNoise, TopLogitNoise
from minisoft.soft import PAPER, Hard, Mixture  # noqa: F401 (PAPER: for those who list names)

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
OPTIONS = {"width": int, "top_p": float}  # what kinds may have besides tau and sigma


def options(name: str) -> dict:
    """{option: its default} of those that a kind has."""
    return {x.name: x.default for x in fields(KINDS[name]) if x.name in OPTIONS}


def make_kind(
    name: str,
    sigma: float | None = None,
    tau: float | None = None,
    noise: str = "embedding",
    top_k: int | None = None,
    **own,
):
    """The kind called `name`.  sigma is for those that have one; noise and top_k say where soft and
    fuzzy tokens get their noise (appendix F.2); tau None is the paper's; own: its OPTIONS, None the
    default.

    Raises InputError for other names, sigma <= 0 or none where the kind has one, tau <= 0, top_k
    without noise on the logits, and options that the kind does not have.
    """
    expect(name in KINDS, "tokens", f"one of {', '.join(KINDS)}", name)
    expect(noise in NOISES, "noise", f"one of {', '.join(NOISES)}", noise)
    wanted = noise == "logits" and top_k is not None and top_k >= 1
    expect(top_k is None or wanted, "top-k", "at least 1, and noise on the logits", top_k)
    own = {option: value for option, value in own.items() if value is not None}
    for option, value in own.items():
        flag = option.replace("_", "-")
        expect(option in options(name), flag, f"none, of {name} tokens", value)
    expect(own.get("width", 1) >= 1, "width", "at least 1", own.get("width", 1))
    expect(0 < own.get("top_p", 1) <= 1, "top-p", "a number in (0, 1]", own.get("top_p", 1))
    kind = KINDS[name]
    own["tau"] = TAU[name] if tau is None else tau
    if kind is Mixture:
        kind = NOISES[noise]
        if top_k:
            kind = TopLogitNoise
            own |= {"top": top_k, "tau": TAU_TOP_K if tau is None else tau}
    expect(own["tau"] > 0, "tau", "a positive number", own["tau"])
    if "sigma" in {x.name for x in fields(kind)}:
        expect(sigma is not None and sigma > 0, "sigma", "a positive number", sigma)
        own["sigma"] = sigma
    return kind(**own)
