"""The files of a run of train.py.

RUN/ holds config.json, metrics.jsonl, best/, last/ (Hugging Face folders), state/ (see
`minisoft.io.state`), summary.json and the file `lock`.
"""

import hashlib
import os
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from minisoft.data import Problem
from minisoft.errors import InputError
from minisoft.io import atomic, checkpoint, state
from minisoft.kinds import NOISE
from minisoft.run import card, track
from minisoft.run.metrics import MetricsFile
from minisoft.run.optimizer import Optimizer
from minisoft.run.policy import Policy
from minisoft.run.settings import anywhere
from minisoft.run.world import World

WRITES = ("best", "last", "state", "config.json", "metrics.jsonl", "summary.json")  # and lock


class Files:
    """What a run reads beside the weights of its model's folder, and RUN, the folder args.out.

    The main rank writes; what it raises is raised on all ranks.

    variant: what `minisoft.lab.variants` changes, written into config.json and minisoft.json.
    """

    def __init__(self, args: Namespace, world: World, variant: dict):
        self.args, self.world, self.variant = args, world, variant
        self.model = world.in_turn(lambda: checkpoint.find(args.model))
        self.about = world.all_or_none(lambda: checkpoint.read_about(self.model))
        self.exported = world.all_or_none(lambda: checkpoint.read_files(self.model))  # as they are
        self.head = world.all_or_none(lambda: card.read_head(self.model))
        self.lock = self.metrics = self.tracker = None

    def hashes(self, problems: list[Problem], template: str) -> dict[str, str]:
        """SHA-256 of all that decides what is learnt from, but for the weights."""
        read = {"--data": repr(problems).encode(), "--template": template.encode()}
        content = read | self.exported
        return {name: hashlib.sha256(text).hexdigest() for name, text in content.items()}

    def write(self, write) -> None:
        """write() by the main rank; its OSError or InputError is that of all."""
        self.world.all_or_none(lambda: self.world.main and write())

    def claim(self) -> None:
        """RUN belongs to this process, the main rank, from now on.  Raises InputError."""
        out = self.args.out
        out.mkdir(parents=True, exist_ok=True)
        self.lock = state.lock(out / "lock")
        if not self.args.resume:
            return check_unused(self.args)  # once more, since now nobody else comes
        begun = [new.with_suffix("") for new in (out / "state").glob(f"step-*{atomic.NEW}")]
        for path in [*(out / name for name in WRITES), *begun]:
            atomic.recover(path)

    def open(self, step: int, sigma: float) -> None:
        """Write config.json; metrics.jsonl goes on after update `step`, and so does a tracker."""
        args, world = self.args, self.world
        config = self.write_config(sigma)
        path = args.out / "metrics.jsonl"
        self.metrics = world.from_main(lambda: MetricsFile(path, step))
        if world.main and args.track != "none":
            self.tracker = track.tracker(args.track, args.out, config, step + 1, world.say)
            next(self.tracker, None)  # it begins

    def close(self) -> None:
        if self.tracker:
            next(self.tracker, None)  # it ends
        if self.lock:
            self.lock.close()

    def log(self, row: dict) -> None:
        """Write a line of metrics.jsonl; a tracker gets it too."""
        self.write(lambda: self.metrics.write(row))
        if self.tracker:
            with suppress(StopIteration):  # of a tracker that has failed
                self.tracker.send(row)

    def write_config(self, sigma: float) -> dict:
        """RUN/config.json, and what it holds."""
        config = {
            name: anywhere(name, str(value) if isinstance(value, Path) else value)
            for name, value in vars(self.args).items()
            if name != "resume"
        }
        extra = {"sigma": sigma, "world": self.world.size, "variant": self.variant}
        config = {state.MARK: state.VERSION, **config, **extra}
        self.write(lambda: atomic.write_json(self.args.out / "config.json", config))
        return config

    def _sidecar(self, policy: Policy, step: int) -> dict:
        """minisoft.json of what is saved: how the model is to be used."""
        settings, about = policy.settings, self.about
        earlier = ("logits", "terms", "frozen")  # of the variant that the model came from
        replaced = {*earlier, *(row.name for row in NOISE)}
        return {
            **{name: value for name, value in about.items() if name not in replaced},
            "prompt": settings.template,
            "base": about.get("base", checkpoint.name_of(self.model)),  # of all its trainings
            "data": Path(self.args.data).stem,
            "tokens": self.args.tokens,
            "step": step,
            "sigma": settings.sigma,
            "gamma": settings.gamma,
            "tau": policy.kind.tau,
            "noise": settings.noise,
            "top_k": settings.top_k,
            **settings.options(self.args.tokens),
            **self.variant,
        }

    def save_model(self, name: str, policy: Policy, step: int) -> None:
        """RUN/best or RUN/last.  Raises FloatingPointError rather than replace good weights by
        NaN."""
        bad = [n for n, p in policy.model.named_parameters() if not p.isfinite().all()]
        if bad:
            raise FloatingPointError(
                f"step {step}: weights: expected finite numbers, found NaN or infinity in "
                f"{bad[0]}; nothing was saved{self.resumable()}"
            )
        folder, sidecar = self.args.out / name, self._sidecar(policy, step)
        text = card.text(self.args, self.head, sidecar)
        files = {**self.exported, card.NAME: text.encode()}
        self.write(lambda: checkpoint.save_model(folder, policy.model, files, sidecar))

    def finish(self, folder: Path, summary: dict, table: str) -> None:
        """RUN/summary.json, and the table before/after in the card of the model that was tested."""
        sidecar = checkpoint.read_about(folder)
        text = card.text(self.args, self.head, sidecar, table)
        self.write(lambda: atomic.write_json(self.args.out / "summary.json", summary))
        self.write(lambda: atomic.write_text(folder / card.NAME, text))

    def save_state(self, progress: dict, optimizer: Optimizer) -> None:
        """RUN/state, which is what --resume goes on from; progress: the fields of `Progress`."""
        self.write(lambda: atomic.sync(self.metrics.path))
        folder, pieces = self.args.out / "state", optimizer.pieces
        state.save(folder, progress, optimizer.state(), pieces, self.world, self.args.keep)
        self.args.saved = progress["step"]
        self.write_config(progress["sigma"])

    def resumable(self) -> str:
        """What an error says of the states that there are."""
        there = any((self.args.out / "state").glob("step-*[0-9]"))
        return f"; the last saved state in {self.args.out} can be resumed" if there else ""


def check_unused(args: Namespace) -> None:
    """Raises InputError where a new run would write over what it did not write."""
    found = [name for name in WRITES if os.path.lexists(args.out / name)]
    if state.MARK in atomic.read_json(args.out / "config.json"):
        found = ["a run; add --resume to go on with it"]
    elif atomic.lies_in(args.out, Path(args.data)):
        found = [f"one among the problems of {args.data}"]
    if found:
        raise InputError(f"{args.out}: expected an unused folder, found {', '.join(found)}")
