"""What a run measures: a line a step in metrics.jsonl, readable samples, seconds and memory."""

import json
import math
import os
import resource
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from minisoft.io.atomic import write_text, writing
from minisoft.run.world import from_launcher

CGROUP = Path("/sys/fs/cgroup")
METRICS = {
    "step": "number of the update, from 1",
    "reward": "mean reward of the B x G samples: 100 right, 10 boxed, 0 neither (eq. 11); or "
    "--reward's",
    "reward_std": "standard deviation of these rewards (divided by B G - 1)",
    "accuracy": "share of samples that the verifier calls right",
    "boxed": "share of samples with a readable boxed answer",
    "truncated": "share of samples that spent the CoT budget",
    "cot_length": "mean number of CoT tokens",
    "answer_length": "mean number of answer tokens",
    "entropy": "of the next token at temperature 1, nats, mean over CoT positions, then samples",
    "support": "of what is fed: effective number of tokens 1 / sum p^2, mean over CoT positions, "
    "then samples; p the weights of the mixture before noise on the embedding (multiplex: counts / "
    "K; covariance: |w| / sum |w|); 1 of hard tokens",
    "largest_weight": "the largest of these p, a mean like that",
    "share_soft": "share of CoT positions whose support is above 1.5, a mean like that",
    "informative": "share of the B problems whose rewards differ: the others have advantage 0",
    "grad_norm": "norm of the summed gradient before clipping",
    "share_E": "norm of the gradient in E (and a tied head) / grad_norm",
    "replay_mismatch": "mean |log-prob replayed - at rollout| per action, rows with advantage (the "
    "first problem's where there are none; --plain: all rows)",
    "replay_mismatch_max": "the largest of these",
    "lr": "learning rate of the update",
    "seconds": "of the whole step; seconds_rollout, _reward, _backward, _optimizer: of its parts",
    "verifier": "how many of the step's answers were decided how (Verifier.counts)",
    "validation": "greedy pass@1 of the run's kind on the validation problems, which chooses "
    "RUN/best (every --validate-every steps)",
    "validation_hard": "hard-greedy pass@1 on the same problems",
    "memory_gib": "peak memory of this process so far, GiB (GPU memory on CUDA)",
}


@contextmanager
def clock(seconds: dict[str, float], name: str):
    """seconds[name] = how long the block took, on the GPU too."""
    start = time.perf_counter()
    yield
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    seconds[name] = time.perf_counter() - start


class MetricsFile:
    """metrics.jsonl, one object a step; opening it drops what lies after step `last`, which a
    resumed run does again, and what is damaged: but for a last line that a crash has cut it says
    so."""

    def __init__(self, path: Path, last: int):
        self.path = path
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        kept = [line for line in lines if (step := _step(line)) is not None and step <= last]
        if damaged := sum(_step(line) is None for line in lines[:-1]):
            print(f"{path}: {damaged} damaged lines are left out", file=sys.stderr)
        write_text(path, "".join(line + "\n" for line in kept))

    def write(self, metrics: dict) -> None:
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")


def _step(line: str) -> int | None:
    """The step of a line of metrics.jsonl; None of one that a crash has cut or damaged."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far, GiB: of the GPU's allocator on CUDA, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def memory_bytes(device: torch.device) -> float:
    """All the memory there is, free or not, so that a run always meets the same: of the GPU, or a
    rank's part of the RAM."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    ram = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(ram, container_limit("memory.max")) / from_launcher("LOCAL_WORLD_SIZE", 1, least=1)


def container_limit(name: str) -> float:
    """Bytes of a container's memory.max, cores of its cpu.max (cgroup v2); infinite without one."""
    with suppress(OSError, ValueError):  # none is called max
        quota, *period = (CGROUP / name).read_text().split()
        return float(quota) / float(*period or [1])
    return math.inf


def percent(fraction: float) -> str:
    return f"{fraction:.1%}"


def sample_text(generation: dict) -> str:
    """A rollout for people: question, shadow CoT, answer, gold, reward."""
    return (
        f"  question  {_shorten(generation['question'], 300)}\n"
        f"  CoT      {_shorten(generation['cot'], 600)}\n"
        f"  answer    {_shorten(generation['answer'], 80)}   "
        f"gold {_shorten(generation['gold'], 80)}   reward {generation['reward']}"
    )


def _shorten(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    return text[: length // 2] + " [...] " + text[-length // 2 :]


def markdown(rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table, the first row its head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        lines.append("| " + " | ".join(cells) + " |")
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
