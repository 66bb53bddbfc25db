"""What a run of train.py is made of, and where it stands: at its beginning, or where a saved state
left it."""

from argparse import Namespace
from dataclasses import dataclass, fields, replace
from pathlib import Path

from minisoft.data import ANSWER_TOKENS
from minisoft.engine.replay import recompute_layers
from minisoft.errors import InputError
from minisoft.io import atomic, checkpoint, datasets, state
from minisoft.kinds import OPTIONS
from minisoft.run import memory, policy
from minisoft.run.evaluate import check_prompts, lengthened
from minisoft.run.files import Base, Files, check_unused
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
    sources: dict[str, str]  # `Base.hashes` of what it began with
    step: int = 0  # updates that are done
    best: float = -1.0  # pass@1 on the validation problems
    best_step: int | None = None  # the updates after which it was reached
    before: dict | None = None  # the table's first column, None if not yet measured
    seconds: float = 0.0  # of all updates


@dataclass
class Setup:
    """What a run is made of; `optimizer` and `progress` change with every update."""

    policy: Policy
    samples: Samples
    optimizer: Optimizer
    progress: Progress
    files: Files


def set_up(args: Namespace, world: World, variant: dict) -> Setup:
    """Read all that the flags name; args is filled in.  Raises InputError, and then a new run has
    written nothing."""
    base = Base.read(args.model, world)
    fill(args, base.about, world.device.type)
    args.out = Path(world.from_main(lambda: str(args.out)))  # clocks of ranks may differ
    files = Files(args, world, base, variant)
    if args.resume:
        files.claim()
    else:
        files.write(lambda: check_unused(args))
    problems = world.in_turn(lambda: datasets.load_problems(args.data))
    samples = world.all_or_none(lambda: Samples(args, world, problems))
    loaded = world.all_or_none(lambda: load_policy(args, base, world))
    world.all_or_none(lambda: check_texts(args, base, loaded, samples, world))
    sources = world.all_or_none(lambda: base.hashes(problems, loaded.settings.template))
    saved = state.newest(args.out / "state", world, args.saved) if args.resume else None
    progress = Progress(loaded.settings.sigma, sources)
    if saved:
        progress = Progress(**{x.name: saved.facts[x.name] for x in fields(Progress)})
        check_sources(args, base, progress.sources, sources)
    loaded = loaded.of_kind(args.tokens, sigma=progress.sigma)
    optimizer = make_optimizer(args, loaded, world)
    if saved:
        args.saved = progress.step
        optimizer.load(saved.read, progress.step)
        check_steps(args, progress.step, optimizer.schedule, world)
    choose_micro_batch(args, loaded, optimizer, world)
    if not args.resume:
        files.claim()
    files.open(progress.step, progress.sigma)
    introduce(args, loaded, samples, world)
    return Setup(loaded, samples, optimizer, progress, files)


def load_policy(args: Namespace, base: Base, world: World) -> Policy:
    """Says what it changes of how the model was trained."""
    tau = {} if args.tau is None else {args.tokens: args.tau}
    own = {name: getattr(args, name) for name in OPTIONS}
    flags = Flags(args.template, args.cot, args.noise, args.top_k, args.gamma, None, tau, own)
    settings = policy.settings(base.folder, [args.tokens], flags, args.cot)
    device, dtype = world.device, checkpoint.DTYPES[args.dtype]
    loaded = Policy.load(base.folder, args.tokens, settings, device, dtype, args.plain)
    changed = loaded.settings.changes(args.tokens)
    if changed:
        world.say(f"{base.folder}: its training is not continued alike: {', '.join(changed)}")
    return loaded


def check_texts(args, base: Base, loaded: Policy, samples: Samples, world: World) -> None:
    """The prompts of the training, and of validation and test with their own budget."""
    form, settings = loaded.form, loaded.settings
    texts = lengthened(samples.training, settings, form)
    later = replace(settings, cot=args.eval_cot)
    texts += lengthened([*samples.validation, *samples.test], later, form)
    check_prompts(base.folder, loaded.model.config, form.tokenizer, texts, world)


def check_sources(args: Namespace, base: Base, before: dict, now: dict) -> None:
    """Raises InputError where what the run had read has changed."""
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        raise InputError(
            f"{args.out}: --resume: expected what the run began with, found other content of "
            f"{', '.join(changed)} ({args.data}, {base.folder})"
        )


def make_optimizer(args: Namespace, loaded: Policy, world: World) -> Optimizer:
    schedule = Schedule(
        args.lr, args.steps, args.warmup, args.betas, args.weight_decay, args.max_grad_norm
    )
    return Optimizer(loaded.model, schedule, world, in_pieces(args.shard, loaded.model))


def check_steps(args: Namespace, done: int, schedule: Schedule, world: World) -> None:
    """Says what another number of updates does to a run that goes on.  Raises InputError where more
    are done."""
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


def choose_micro_batch(args, loaded: Policy, optimizer: Optimizer, world: World) -> None:
    """--micro-batch, if it was not given, and whether layers are computed again: the same on all
    ranks and, as part of config.json, in a resumed run."""
    positions = args.cot + max(map(len, loaded.form.prefill)) + ANSWER_TOKENS
    machine = memory.Machine(world.device.type, optimizer.pieces)
    there = memory_bytes(world.device)
    rows, again = memory.choose_micro_batch(loaded.model, positions, there, machine)
    if any(world.gather_objects([again])):
        recompute_layers(loaded.model)
    rows = min(world.gather_objects([rows]))
    args.micro_batch = args.micro_batch or rows


def introduce(args: Namespace, loaded: Policy, samples: Samples, world: World) -> None:
    """Says what is trained on what."""
    model = loaded.model
    world.say(
        f"{args.model}: {memory.parameters(model):,} parameters, {model.E.dtype}, "
        f"rms(E) {rms(model.E):.4f}, sigma {loaded.settings.sigma:.4f}\n"
        f"{len(samples.training)} training, {len(samples.validation)} validation, "
        f"{len(samples.test)} test problems of {args.data}\n"
        f"{args.tokens} tokens, B {args.prompts} x G {args.group}, {args.steps} updates, "
        f"lr {args.lr} -> {args.out}"
    )
