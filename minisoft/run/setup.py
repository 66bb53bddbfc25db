"""A run of train.py is made: at its beginning, or where a saved state left it."""

from argparse import Namespace
from dataclasses import fields, replace
from pathlib import Path

from minisoft.data import ANSWER_TOKENS
from minisoft.engine.replay import recompute_layers
from minisoft.errors import InputError, expecting
from minisoft.io import atomic, checkpoint, datasets, state
from minisoft.io.prompts import CHAT
from minisoft.run import plan
from minisoft.run.evaluate import check_prompts, lengthened
from minisoft.run.files import Files, check_unused
from minisoft.run.optimizer import Optimizer, Schedule
from minisoft.run.policy import Policy
from minisoft.run.policy import settings as settings_of
from minisoft.run.problems import Problems
from minisoft.run.session import Progress, Run
from minisoft.run.settings import Flags, fill
from minisoft.run.world import World
from minisoft.soft import rms


def set_up(args: Namespace, world: World, verifier) -> Run:
    """The run that args say, which are filled in.  Raises InputError, a new run's RUN untouched."""
    files = Files(args, world, verifier.own_sha256)
    fill(args, files.sidecar, world.device.type)
    args.out = Path(world.from_main(lambda: str(args.out)))  # clocks of ranks may differ
    world.from_main(files.claim if args.resume else lambda: check_unused(args))
    read = world.in_turn(lambda: datasets.load_problems(args.data))
    problems = world.all_or_none(lambda: Problems(args, world, read))
    policy = world.all_or_none(lambda: load(args, world, files, problems))
    sources = files.hashes(read, policy.settings.template)
    progress = Progress(sources, policy.settings.sigma)
    saved = state.newest(args.out / "state", world, args.saved) if args.resume else None
    if saved:
        with expecting("the progress that this version saves", args.out / "state"):
            progress = Progress(**{x.name: saved.facts[x.name] for x in fields(Progress)})
        check_sources(args, files, progress.sources, sources)
        policy = policy.of_kind(args.tokens, sigma=progress.sigma)
    schedule = Schedule(**{x.name: getattr(args, x.name) for x in fields(Schedule)})
    optimizer = Optimizer(policy.model, schedule, world, plan.in_pieces(args.shard, policy.model))
    if saved:
        args.saved = progress.step
        optimizer.load(saved.read, progress.step)
        check_steps(args, world, schedule, progress.step)
    choose_micro_batch(args, world, policy, optimizer.pieces)
    if not args.resume:
        world.from_main(files.claim)
    files.open(progress.step, policy.settings)
    introduce(args, world, problems, policy)
    return Run(args, world, verifier, files, problems, policy, optimizer, progress)


def load(args: Namespace, world: World, files: Files, problems: Problems) -> Policy:
    """The model; says what changes of its training.  Raises InputError."""
    settings = settings_of(files.model, [args.tokens], Flags.of(args), args.cot)
    if args.template == CHAT:  # which may have the date: what the run began with
        args.prompt = args.prompt or settings.template
        settings = replace(settings, template=args.prompt)
    dtype = checkpoint.DTYPES[args.dtype]
    loaded = Policy.load(files.model, args.tokens, settings, world.device, dtype, args.plain)
    form, config = loaded.form, loaded.model.config
    texts = lengthened(problems.training, settings, form)
    later = [*problems.validation, *problems.test]  # which have another budget
    texts += lengthened(later, replace(settings, cot=args.eval_cot), form)
    if changed := ", ".join(loaded.settings.changes(args.tokens)):
        world.say(f"{files.model}: its training is not continued alike: {changed}")
    check_prompts(files.model, config, form.tokenizer, texts, world)
    return loaded


def check_sources(args: Namespace, files: Files, before: dict, now: dict) -> None:
    """Raises InputError where what the run had read has changed; see `Files.hashes`."""
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        raise InputError(
            f"{args.out}: --resume: expected what the run began with, found other content of "
            f"{', '.join(changed)} ({args.data}, {files.model})"
        )


def check_steps(args: Namespace, world: World, schedule: Schedule, done: int) -> None:
    """Says what another number of updates changes.  Raises InputError where more are done."""
    if args.steps < done:
        expected = f"expected at least the {done} updates that are done"
        raise InputError(f"{args.out}: --steps: {expected}, found {args.steps}")
    before = atomic.read_json(args.out / "config.json")["steps"]
    if args.steps not in (done, before):
        last = replace(schedule, steps=before).learning_rate(done - 1)
        world.say(
            f"--steps {before} -> {args.steps}: the learning rate is that of a cosine over "
            f"{args.steps} updates from here on: {last:.2e} before, "
            f"{schedule.learning_rate(done):.2e} now"
        )


def choose_micro_batch(args: Namespace, world: World, policy: Policy, pieces: int) -> None:
    """--micro-batch, if it was not given, and whether layers are computed again: the same on all
    ranks and, as part of config.json, in a resumed run."""
    positions = args.cot + max(map(len, policy.form.prefill)) + ANSWER_TOKENS
    there, device = plan.memory_bytes(world.device), world.device.type
    chosen = plan.choose_micro_batch(policy.model, positions, there, device, pieces)
    rows, again = zip(*world.gather_objects([chosen]))
    if any(again):
        recompute_layers(policy.model)
    args.micro_batch = args.micro_batch or min(rows)


def introduce(args: Namespace, world: World, problems: Problems, policy: Policy) -> None:
    model = policy.model
    copies = f" ({problems.copies} duplicates, kept together)" if problems.copies else ""
    world.say(
        f"{args.model}: {plan.parameters(model):,} parameters, {model.E.dtype}, "
        f"rms(E) {rms(model.E):.4f}, sigma {policy.settings.sigma:.4f}\n"
        f"{len(problems.training)} training, {len(problems.validation)} validation, "
        f"{len(problems.test)} test problems of {args.data}{copies}\n"
        f"{args.tokens} tokens, B {args.prompts} x G {args.group}, {args.steps} updates, "
        f"lr {args.lr} -> {args.out}"
    )
