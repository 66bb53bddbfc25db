"""What the study trains and what it tests with, as data; a new kind of token is a line in
TRAININGS."""

from dataclasses import dataclass

from minisoft.kinds import PAPER

PROBLEMS = ("tiny-test", "tiny-long")
SKILLS = ("tiny-facts", "tiny-sorting", "tiny-drills", "tiny-references")


@dataclass(frozen=True)
class Training:
    """flags: of train.py and minisoft.lab.gradient, the kind of token first; lr: of a sweep
    (weights/tiny/study/sweep.json); seeds: the number of runs."""

    flags: tuple[str, ...]
    lr: str
    seeds: int

    @property
    def tokens(self) -> str:
        return self.flags[1]


TRAININGS = {
    "hard": Training(("--tokens", "hard"), "1e-4", 5),
    "soft": Training(("--tokens", "soft"), "2e-4", 5),
    "fuzzy": Training(("--tokens", "fuzzy"), "2e-4", 3),
    "top-5": Training(("--tokens", "soft", "--noise", "logits", "--top-k", "5"), "2e-4", 3),  # F.2
    "multiplex": Training(("--tokens", "multiplex"), "1e-4", 5),
    "covariance": Training(("--tokens", "covariance"), "2e-4", 5),
    "gumbel": Training(("--tokens", "gumbel"), "1e-4", 3),
}
LATER = tuple(name for name in TRAININGS if name not in PAPER)  # but for top-5 not the paper's
