"""--track: the numbers of metrics.jsonl, also in wandb, trackio or tensorboard (RUN/tensorboard).
The first two get a run of RUN's name in their project `minisoft`."""

from collections.abc import Generator
from importlib import import_module
from pathlib import Path

TRACKERS = ("none", "wandb", "trackio", "tensorboard")


def tracker(name: str, out: Path, config: dict, first: int, say) -> Generator[None, dict, None]:
    """Begins with `next`, takes each line of metrics.jsonl by `send`, ends by `next`.  first: the
    number of the first update that comes.  A tracker that raises is said in one line, and ends;
    whoever sends more meets StopIteration, as with "none"."""
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
