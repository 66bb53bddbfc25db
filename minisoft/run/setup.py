"""What a run of train.py is made of, and where it stands: at its beginning, or where a saved state
left it."""

from argparse import Namespace
from dataclasses import dataclass, fields, replace
from pathlib import Path

from minisoft.data import ANSWER_TOKENS, Problem
from minisoft.engine.replay import recompute_layers
from minisoft.errors import InputError, expecting
from minisoft.io import atomic, checkpoint, datasets, state
from minisoft.io.prompts import CHAT
from minisoft.run import memory, policy
from minisoft.run.evaluate import check_prompts, lengthened
from minisoft.run.files import Files, check_unused
from minisoft.run.metrics import memory_bytes
from minisoft.run.optimizer import Optimizer, Schedule
from minisoft.run.plan import in_pieces
from minisoft.run.policy import Policy
from minisoft.run.samples import Samples
from minisoft.run.settings import Flags, fill
from minisoft.run.world import World
from minisoft.soft import rms


@dataclass
class Progress:
    """Where a run stands; RUN/state keeps it (facts.json)."""

    sigma: float  # of the weights that the run began with
    sources: dict[str, str]  # `Files.hashes` of what it began with
    step: int = 0  # updates that are done
    best: float = -1.0  # pass@1 on the validation problems
    best_step: int | None = None  # the updates after which it was reached
    before: dict | None = None  # the table's first column, None if not yet measured
    seconds: float = 0.0  # of all updates


class Setup:
    """What a run is made of: files, samples, policy, optimizer and progress; args is filled in.

    Raises InputError, and then a new run has written nothing.
    """

    def __init__(self, args: Namespace, world: World, variant: dict):
        self.args, self.world = args, world
        self.files = Files(args, world, variant)
        fill(args, self.files.about, world.device.type)
        args.out = Path(world.from_main(lambda: str(args.out)))  # clocks of ranks may differ
        self.files.write(self.files.claim if args.resume else lambda: check_unused(args))
        problems = world.in_turn(lambda: datasets.load_problems(args.data))
        sources = world.all_or_none(lambda: self._read(problems))
        self.progress = Progress(self.policy.settings.sigma, sources)
        saved = state.newest(args.out / "state", world, args.saved) if args.resume else None
        if saved:
            with expecting("the progress that this version saves", args.out / "state"):
                self.progress = Progress(**{x.name: saved.facts[x.name] for x in fields(Progress)})
            self._check_sources(sources)
        self.policy = self.policy.of_kind(args.tokens, sigma=self.progress.sigma)
        schedule = Schedule(
            args.lr, args.steps, args.warmup, args.betas, args.weight_decay, args.max_grad_norm
        )
        sharded = in_pieces(args.shard, self.policy.model)
        self.optimizer = Optimizer(self.policy.model, schedule, world, sharded)
        if saved:
            args.saved = self.progress.step
            self.optimizer.load(saved.read, self.progress.step)
            self._check_steps()
        self._choose_micro_batch()
        if not args.resume:
            self.files.write(self.files.claim)
        self.files.open(self.progress.step, self.progress.sigma)
        self._introduce()

    def _read(self, problems: list[Problem]) -> dict[str, str]:
        """The problems and the model; returns `Files.hashes`."""
        args, world = self.args, self.world
        self.samples = Samples(args, world, problems)
        self.policy = self._load()
        form, settings = self.policy.form, self.policy.settings
        texts = lengthened(self.samples.training, settings, form)
        later = [*self.samples.validation, *self.samples.test]  # which have another budget
        texts += lengthened(later, replace(settings, cot=args.eval_cot), form)
        config = self.policy.model.config
        check_prompts(self.files.model, config, form.tokenizer, texts, world)
        return self.files.hashes(problems, settings.template)

    def _load(self) -> Policy:
        """Says what it changes of how the model was trained."""
        args, folder = self.args, self.files.model
        settings = policy.settings(folder, [args.tokens], Flags.of(args), args.cot)
        if args.template == CHAT:  # which may have the date: what the run began with
            args.prompt = args.prompt or settings.template
            settings = replace(settings, template=args.prompt)
        device, dtype = self.world.device, checkpoint.DTYPES[args.dtype]
        loaded = Policy.load(folder, args.tokens, settings, device, dtype, args.plain)
        changed = ", ".join(loaded.settings.changes(args.tokens))
        if changed:
            self.world.say(f"{folder}: its training is not continued alike: {changed}")
        return loaded

    def _check_sources(self, now: dict[str, str]) -> None:
        """Raises InputError where what the run had read has changed."""
        args, before = self.args, self.progress.sources
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if changed:
            raise InputError(
                f"{args.out}: --resume: expected what the run began with, found other content of "
                f"{', '.join(changed)} ({args.data}, {self.files.model})"
            )

    def _check_steps(self) -> None:
        """Says what another number of updates does to a run that goes on.  Raises InputError where
        more are done."""
        out, steps, done = self.args.out, self.args.steps, self.progress.step
        if steps < done:
            expected = f"expected at least the {done} updates that are done"
            raise InputError(f"{out}: --steps: {expected}, found {steps}")
        before = atomic.read_json(out / "config.json")["steps"]
        if steps not in (done, before):
            schedule = self.optimizer.schedule
            last = replace(schedule, steps=before).learning_rate(done - 1)
            self.world.say(
                f"--steps {before} -> {steps}: the learning rate is that of a cosine over {steps} "
                f"updates from here on: {last:.2e} before, {schedule.learning_rate(done):.2e} now"
            )

    def _choose_micro_batch(self) -> None:
        """--micro-batch, if it was not given, and whether layers are computed again: the same on
        all ranks and, as part of config.json, in a resumed run."""
        model, device = self.policy.model, self.world.device
        positions = self.args.cot + max(map(len, self.policy.form.prefill)) + ANSWER_TOKENS
        machine = memory.Machine(device.type, self.optimizer.pieces)
        there = memory_bytes(device)
        rows, again = memory.choose_micro_batch(model, positions, there, machine)
        if any(self.world.gather_objects([again])):
            recompute_layers(model)
        rows = min(self.world.gather_objects([rows]))
        self.args.micro_batch = self.args.micro_batch or rows

    def _introduce(self) -> None:
        args, model, samples = self.args, self.policy.model, self.samples
        self.world.say(
            f"{args.model}: {memory.parameters(model):,} parameters, {model.E.dtype}, "
            f"rms(E) {rms(model.E):.4f}, sigma {self.progress.sigma:.4f}\n"
            f"{len(samples.training)} training, {len(samples.validation)} validation, "
            f"{len(samples.test)} test problems of {args.data}\n"
            f"{args.tokens} tokens, B {args.prompts} x G {args.group}, {args.steps} updates, "
            f"lr {args.lr} -> {args.out}"
        )
