"""RUN, the folder of a run of train.py: config.json, metrics.jsonl, best/, last/ (Hugging Face
folders), state/ (see `minisoft.io.state`), summary.json and the file `lock`."""

import hashlib
import os
from argparse import Namespace
from pathlib import Path

from minisoft.data import Problem
from minisoft.errors import InputError
from minisoft.io import atomic, checkpoint, state
from minisoft.kinds import OPTIONS
from minisoft.run import card
from minisoft.run.metrics import MetricsFile, tracker
from minisoft.run.optimizer import Optimizer
from minisoft.run.policy import Policy
from minisoft.run.settings import Settings, anywhere
from minisoft.run.world import World

WRITES = ("best", "last", "state", "config.json", "metrics.jsonl", "summary.json")  # and lock


class Files:
    """What a run reads beside its model's weights, and RUN, the folder args.out, where the main
    rank writes; what that raises is raised on all ranks."""

    def __init__(self, args: Namespace, world: World, reward_sha256: str | None):
        self.args, self.world, self.reward_sha256 = args, world, reward_sha256
        self.model = world.in_turn(lambda: checkpoint.find(args.model))
        self.sidecar = world.all_or_none(lambda: checkpoint.read_about(self.model))
        self.exported = world.all_or_none(lambda: checkpoint.read_files(self.model))  # as they are
        self.head = world.all_or_none(lambda: card.read_head(self.model))
        self.lock = self.metrics = None  # of the main rank
        self.users: set[Path] = set()  # cards that are not ours, and were said

    def hashes(self, problems: list[Problem], template: str) -> dict[str, str]:
        """SHA-256 of all that decides what is learnt from, but for the weights."""
        read = {"--data": repr(problems).encode(), "--template": template.encode(), **self.exported}
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in read.items()}
        return hashes | ({"--reward": self.reward_sha256} if self.reward_sha256 else {})

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

    def open(self, step: int, settings: Settings) -> None:
        """Write config.json; metrics.jsonl goes on after update `step`, and so does a tracker."""
        args, world = self.args, self.world
        goes_to = tracker(args.track, args.out, self.write_config(settings), step + 1, world.say)
        path = args.out / "metrics.jsonl"
        self.metrics = world.all_or_none(lambda: world.main and MetricsFile(path, step, goes_to))

    def close(self) -> None:
        for file in filter(None, (self.metrics, self.lock)):
            file.close()

    def write_config(self, settings: Settings) -> dict:
        """RUN/config.json, and what it holds."""
        flags = {
            name: anywhere(name, str(value) if isinstance(value, Path) else value)
            for name, value in vars(self.args).items()
            if name != "resume"
        }
        more = {"sigma": settings.sigma, "world": self.world.size}
        more["reward_sha256"] = self.reward_sha256
        config = {state.MARK: state.VERSION, **flags, **more}
        self.world.from_main(lambda: atomic.write_json(self.args.out / "config.json", config))
        return config

    def save_model(self, name: str, policy: Policy, step: int) -> None:
        """RUN/best or RUN/last.  Raises FloatingPointError for weights that are not finite."""
        bad = [n for n, p in policy.model.named_parameters() if not p.isfinite().all()]
        if bad:
            raise FloatingPointError(
                f"step {step}: weights: expected finite numbers, found NaN or infinity in "
                f"{bad[0]}; nothing was saved{self.resumable()}"
            )
        replaced = {row.name for row in OPTIONS}
        sidecar = {
            **{name: value for name, value in self.sidecar.items() if name not in replaced},
            "prompt": policy.settings.template,
            "base": self.sidecar.get("base", checkpoint.name_of(self.model)),  # of all trainings
            "data": Path(self.args.data).stem,
            "step": step,
            **policy.settings.sidecar_of(self.args.tokens),
        }

        def save() -> None:
            folder = self.args.out / name
            files = self.exported | self.card(folder, sidecar)
            checkpoint.save_model(folder, policy.model, files, sidecar)

        self.world.from_main(save)

    def card(self, folder: Path, sidecar: dict, table: str = "") -> dict[str, bytes]:
        """{name: content} of a model's card; {} where a user's file has that name."""
        path = folder / card.NAME
        if not path.exists() or card.is_ours(card.read_head(folder)):
            return {card.NAME: card.text(self.args, self.head, sidecar, table).encode()}
        if path not in self.users:
            self.users.add(path)
            self.world.say(f"{path}: not written by train.py: it stays, there is no model card")
        return {}

    def finish(self, folder: Path, summary: dict, table: str) -> None:
        """RUN/summary.json, and the table before/after in a model's card; by the main rank."""
        atomic.write_json(self.args.out / "summary.json", summary)
        for name, text in self.card(folder, checkpoint.read_about(folder), table).items():
            atomic.write_text(folder / name, text.decode())

    def save_state(self, progress: dict, settings: Settings, optimizer: Optimizer) -> None:
        """RUN/state, which is what --resume goes on from; progress: the fields of `Progress`."""
        self.world.from_main(lambda: atomic.sync(self.metrics.path))
        folder, pieces = self.args.out / "state", optimizer.pieces
        state.save(folder, progress, optimizer.state(), pieces, self.world, self.args.keep)
        self.args.saved = progress["step"]
        self.write_config(settings)

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
