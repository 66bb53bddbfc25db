"""Every kind of token by its name: the paper's (`minisoft.soft`) and those of others
(`minisoft.followups`).

A new kind is a class, called with (tau, sigma), and a line in KINDS and in TAU.
"""

from dataclasses import fields

from minisoft.errors import InputError
from minisoft.followups import Covariance, GumbelSoftmax, Multiplex
from minisoft.soft import Hard, HiddenNoise, LogitNoise, Mixture, TopLogitNoise

PAPER = ("hard", "soft", "fuzzy")  # the paper's three, whatever else there is
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
    sigma: float,
    tau: float | None = None,
    noise: str = "embedding",
    top_k: int | None = None,
    **own,
):
    """The kind called `name`; noise and top_k say where soft and fuzzy tokens get their noise
    (appendix F.2), tau None is the paper's; own: its OPTIONS, None the default.

    Raises InputError for other names, sigma <= 0, tau <= 0, top_k without noise on the logits, and
    options that the kind does not have.
    """
    _expect("tokens", name, f"one of {', '.join(KINDS)}", name in KINDS)
    _expect("noise", noise, f"one of {', '.join(NOISES)}", noise in NOISES)
    _expect("sigma", sigma, "a positive number", sigma > 0)
    wanted = noise == "logits" and top_k is not None and top_k >= 1
    _expect("top-k", top_k, "at least 1, and noise on the logits", top_k is None or wanted)
    own = {option: value for option, value in own.items() if value is not None}
    for option, value in own.items():
        _expect(option.replace("_", "-"), value, f"none, of {name} tokens", option in options(name))
    _expect("width", own.get("width", 1), "at least 1", own.get("width", 1) >= 1)
    _expect("top-p", own.get("top_p", 1), "a number in (0, 1]", 0 < own.get("top_p", 1) <= 1)
    mixes_noise = KINDS[name] is Mixture
    if tau is None:
        tau = TAU_TOP_K if top_k and mixes_noise else TAU[name]
    _expect("tau", tau, "a positive number", tau > 0)
    if mixes_noise and top_k:
        return TopLogitNoise(tau, sigma, top_k)
    return (NOISES[noise] if mixes_noise else KINDS[name])(tau, sigma, **own)


def _expect(field: str, found, expected: str, good: bool) -> None:
    if not good:
        raise InputError(f"{field}: expected {expected}, found {found!r}")
