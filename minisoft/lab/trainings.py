"""What the study trains, as data; a new kind of token is a line in TRAININGS.

LADDER are learning rates.  `rates` are tried first, then those beside the best where that lies at
the edge of what was tried, all for as many updates; of EARLIER, a sweep of an older study, the
values are taken instead where it has them.
"""

from dataclasses import dataclass

from minisoft.io import WEIGHTS
from minisoft.kinds import PAPER

LADDER = ("2.5e-5", "5e-5", "1e-4", "2e-4", "4e-4", "8e-4", "1.6e-3", "3.2e-3")
EARLIER = WEIGHTS / "tiny/study/sweep.json"


@dataclass(frozen=True)
class Training:
    """flags: of train.py and minisoft.lab.gradient, the kind of token first; seeds: the
    number of runs."""

    flags: tuple[str, ...]
    seeds: int
    rates: tuple[str, ...] = LADDER[2:4]

    @property
    def tokens(self) -> str:
        return self.flags[1]


TRAININGS = {
    "hard": Training(("--tokens", "hard"), 5, LADDER[2:6]),
    "soft": Training(("--tokens", "soft"), 5, LADDER[2:6]),
    "fuzzy": Training(("--tokens", "fuzzy"), 3, LADDER[2:6]),
    "top-5": Training(("--tokens", "soft", "--noise", "logits", "--top-k", "5"), 3),  # F.2
    "multiplex": Training(("--tokens", "multiplex"), 5),
    "covariance": Training(("--tokens", "covariance"), 5),
    "gumbel": Training(("--tokens", "gumbel"), 3),
}
LATER = tuple(name for name in TRAININGS if name not in PAPER)  # but for top-5 not the paper's
