"""What a run tells: one line a step, metrics.jsonl, readable samples, the table before/after, curves.

    python -m minisoft.report RUN        # draws RUN/curves.png (extra `plot`)

Every number of metrics.jsonl is explained in METRICS.
"""

import json
import resource
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

METRICS = {
    "step": "number of the update, from 1",
    "reward": "mean reward of the step's B x G samples: 100 right, 10 boxed, 0 neither (eq. 11)",
    "accuracy": "share of samples with reward 100", "boxed": "share of samples with a readable boxed answer",
    "truncated": "share of samples that spent the CoT budget",
    "cot_length": "mean number of CoT tokens", "answer_length": "mean number of answer tokens",
    "entropy": "entropy of the next token at temperature 1, nats, mean over CoT positions, then samples",
    "informative": "share of the B problems whose rewards differ: the others have advantage 0",
    "grad_norm": "norm of the summed gradient before clipping",
    "share_E": "norm of the gradient in E (and a tied head) / grad_norm",
    "share_cot": "norm of the gradient of the CoT terms alone / grad_norm (every --shares-every steps)",
    "share_answer": "norm of the gradient of the answer terms alone / grad_norm (the two need not add up to 1)",
    "replay_mismatch": "mean |log-prob replayed - at rollout| per action token of rows with an advantage",
    "replay_mismatch_max": "the largest of these", "lr": "learning rate of the update",
    "seconds": "of the whole step; seconds_rollout, _reward, _backward, _optimizer: of its parts",
    "validation": "hard-greedy pass@1 on the validation problems (every --validate-every steps)",
    "memory_gib": "peak memory of this process so far, GiB (GPU memory on CUDA)",
}


@contextmanager
def clock(seconds: dict[str, float], name: str):
    """seconds[name] = how long the block took."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


class MetricsFile:
    """metrics.jsonl, one object a step; opening it drops whatever lies after step `last` (a resumed run redoes it)."""

    def __init__(self, path: Path, last: int):
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() else []  # the last one may have been cut by a crash
        path.write_text("".join(line + "\n" for line in lines[:last]))

    def write(self, metrics: dict) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")


def peak_memory_gib(device) -> float:
    """Peak memory so far: of the GPU's allocator on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def sample_text(generation: dict) -> str:
    """A rollout for people: question, shadow CoT, answer, gold, reward."""
    shorten = lambda text, n: text if len(text) <= n else text[: n // 2] + " [...] " + text[-n // 2:]
    return (f"  question  {shorten(generation['question'], 300)}\n  CoT      {shorten(generation['cot'], 600)}\n"
            f"  answer    {shorten(generation['answer'], 80)}   gold {shorten(generation['gold'], 80)}   "
            f"reward {generation['reward']}")


percent = "{:.1%}".format  # a fraction for people


def table(rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table, the first row its head."""
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, width)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in width) + "|", *lines[1:]])


def draw_curves(run: Path) -> Path:
    """RUN/metrics.jsonl -> RUN/curves.png: reward and accuracy, CoT length and entropy, gradient norm."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("minisoft.report: drawing needs the extra `plot`: pip install matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    panels = (("accuracy", "validation"), ("reward",), ("cot_length",), ("entropy",), ("grad_norm",), ("share_E",))
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6), layout="constrained")
    for axis, names in zip(axes.flat, panels):
        for name, style in zip(names, ("-", "o--")):
            points = [(m["step"], m[name]) for m in metrics if m.get(name) is not None]
            axis.plot(*zip(*points) if points else ((), ()), style, color="black" if style == "o--" else "0.45",
                      label=name)
        axis.set(xlabel="update", title=" and ".join(names))
        axis.set_yscale("log" if names == ("grad_norm",) else "linear")
        axis.grid(alpha=.3)
    axes.flat[0].legend()
    figure.suptitle(str(run.name))
    figure.savefig(run / "curves.png", dpi=110)
    pyplot.close(figure)
    return run / "curves.png"


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "metrics.jsonl").is_file():
        sys.exit("usage: python -m minisoft.report RUN, RUN a folder with metrics.jsonl written by train.py")
    print(draw_curves(Path(sys.argv[1])))
