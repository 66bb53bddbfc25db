"""What a run measures: a line a step in metrics.jsonl, also for wandb, trackio or tensorboard
(RUN/tensorboard); readable samples, seconds."""

import json
import resource
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import torch

from minisoft.io.atomic import write_text, writing

TRACKERS = ("none", "wandb", "trackio", "tensorboard")


@contextmanager
def clock(seconds: dict, name):
    """seconds[name] = how long the block took, on the GPU too."""
    start = time.perf_counter()
    yield
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    seconds[name] = time.perf_counter() - start


class MetricsFile:
    """metrics.jsonl, one object a step, each to a tracker too; opening it drops what lies after
    step `last`, which a resumed run does again, and says of damaged lines that it drops them."""

    def __init__(self, path: Path, last: int, tracker: Generator):
        self.path, self.tracker = path, tracker
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
        kept = [line for line in lines if (step := _step(line)) is not None and step <= last]
        if damaged := sum(_step(line) is None for line in lines[:-1]):
            print(f"{path}: {damaged} damaged lines are left out", file=sys.stderr)
        write_text(path, "".join(line + "\n" for line in kept))
        next(tracker, None)  # it begins

    def write(self, metrics: dict) -> None:
        with writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        with suppress(StopIteration):  # of a tracker that has failed
            self.tracker.send(metrics)

    def close(self) -> None:
        next(self.tracker, None)  # it ends


def tracker(name: str, out: Path, config: dict, first: int, say) -> Generator[None, dict, None]:
    """--track: begins with `next`, takes each line of metrics.jsonl by `send`, ends by `next`.
    first: the number of the first update that comes.  wandb and trackio get a run of RUN's name in
    their project `minisoft`.  A tracker that raises is said in one line, and ends; whoever sends
    more meets StopIteration, as with "none"."""
    if name == "none":
        return
    try:
        board = name == "tensorboard"
        module = import_module("torch.utils.tensorboard" if board else name)
        about = {"project": "minisoft", "name": out.resolve().name, "config": config}
        run = module.SummaryWriter(out / name, purge_step=first) if board else module.init(**about)
        while row := (yield):
            numbers = {key: x for key, x in row.items() if key not in ("step", "verifier")}
            if board:
                for key, x in numbers.items():
                    run.add_scalar(key, x, row["step"])
            else:
                run.log(numbers, step=row["step"])
        run.close() if board else run.finish()
    except Exception as error:
        say(f"--track {name}: it has failed, the run goes on: {error!r:.200}")


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


def sample_text(generation: dict) -> str:
    """A rollout for people: question, shadow CoT, answer, gold, reward."""
    lines, longest = [], {"question": 300, "cot": 600, "answer": 80, "gold": 80, "reward": 9}
    for name, most in longest.items():
        text = str(generation[name])
        if len(text) > most:
            text = f"{text[: most // 2]} [...] {text[-most // 2 :]}"
        lines.append(f"  {name:10}{text}")
    return "\n".join(lines)


def markdown(rows: list[list[str]]) -> str:
    """Rows of cells as a Markdown table, the first row its head."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
