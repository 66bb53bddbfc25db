"""What studies train and what they test with, as data: the miniature's and the paper's; a new kind
of token is a line in TRAININGS."""

from dataclasses import dataclass
from pathlib import Path

from minisoft.io.atomic import read_json

PROBLEMS = ("tiny-test", "tiny-long")
SKILLS = ("tiny-facts", "tiny-sorting", "tiny-drills", "tiny-references")


@dataclass(frozen=True)
class Training:
    """flags: of train.py and minisoft.lab.gradient, the kind of token first; lr: of a sweep
    (weights/tiny/study/sweep.json), "" for that of the model's folder; seeds: the number of
    runs."""

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
MINIATURE = (  # flags of minisoft.lab.study, as are PAPERS
    f"--test {' '.join((*PROBLEMS, *SKILLS))} --steps 60 --limit 200 --samples 32 --batch 512 "
    "-- --save-every 15 --keep 60 --warmup 20 --show-every 0"
)
TESTS = "gsm8k-test math-500 olympiadbench hellaswag mmlu arc-challenge"
PAPERS = [  # the paper's own; MATH/train: the folder of that set's release
    f"--model {model} --data {data} --test {TESTS} --seeds 3 --steps 4000 --eval-cot 512 "
    f"--out runs/{model.split('/')[1]}-{data.split('/')[0]} -- --cot {cot}"
    for model, data, cot in (
        ("meta-llama/Llama-3.2-3B-Instruct", "gsm8k", 128),
        ("meta-llama/Llama-3.2-3B-Instruct", "MATH/train", 512),
        ("meta-llama/Llama-3.2-3B-Instruct", "deepscaler", 512),
        ("meta-llama/Llama-3.1-8B-Instruct", "gsm8k", 128),
        ("Qwen/Qwen2.5-3B-Instruct", "MATH/train", 512),
    )
]


def own(kinds: list[str], model: str) -> dict[str, Training]:
    """Those of a folder or hub id: lr is the paper's for its family, "" for minisoft.json's."""
    config = read_json(Path(model) / "config.json")
    large = config.get("hidden_size", 0) >= 4096 if config else "8b" in model.lower()
    is_qwen = "qwen" in config.get("model_type", model).lower()
    lr = "8e-6" if is_qwen else "3e-6" if large else "6e-6"
    has_one = "lr" in read_json(Path(model) / "minisoft.json").get("defaults", {})
    flags = {kind: ("--tokens", kind) for kind in kinds}
    flags |= {kind: TRAININGS[kind].flags for kind in kinds if kind in TRAININGS}
    return {kind: Training(of, "" if has_one else lr, 3) for kind, of in flags.items()}
