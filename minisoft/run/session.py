"""A run under way: what the loop of train.py asks for, and what lets it be stopped and spread."""

import math
import signal
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch

from minisoft import data
from minisoft.data import Problem
from minisoft.errors import InputError
from minisoft.evaluation import MEASURES, verified
from minisoft.reinforce import Mismatch
from minisoft.reward import BOXED, RIGHT
from minisoft.rollout import Rollout
from minisoft.run import metrics, validation
from minisoft.run.files import Files
from minisoft.run.optimizer import Optimizer
from minisoft.run.policy import Policy
from minisoft.run.problems import Problems
from minisoft.run.world import World, bar, is_out_of_memory

NUMBERS = ("reward", "cot_tokens", "answer_tokens", "truncated", *MEASURES)  # of a sample
SHOWN = ("reward", "accuracy", "cot_length", "grad_norm", "seconds")  # beside the progress bar


@dataclass(frozen=True)
class Part:
    """One rank's part of a problem of a step: slot b of 0..B-1, its number, samples of 0..G-1."""

    slot: int
    number: int
    problem: Problem
    samples: range


@dataclass(frozen=True)
class Scores:
    """What a step's samples reached: rewards (B, G) and table (B G, NUMBERS and the verifier's
    reward), float64, of all ranks; this rank's generations; how the verifier decided."""

    rewards: torch.Tensor
    table: torch.Tensor
    generations: list[dict]
    counts: Counter


@dataclass
class Progress:
    """Where a run stands; RUN/state keeps it (facts.json)."""

    sources: dict[str, str]  # `Files.hashes` of what it began with
    sigma: float  # of the weights that it began with
    step: int = 0  # updates that are done
    best: float = -1.0  # pass@1 on the validation problems
    best_step: int | None = None  # the updates after which it was reached
    before: dict | None = None  # the table's first column, None if not yet measured
    seconds: float = 0.0  # of all updates


@dataclass
class Run:
    """A run as `minisoft.run.setup` makes it; a context manager.  Ranks do everything in the same
    order; what can fail on one fails on all (`World.all_or_none`), so that nobody waits."""

    args: Namespace
    world: World
    verifier: object
    files: Files
    problems: Problems
    policy: Policy
    optimizer: Optimizer
    progress: Progress
    seconds_of: dict[str, float] = field(default_factory=dict)  # of the parts of a step
    stopped_by: int = 0  # the signal that asked, 0 if none has

    def __enter__(self) -> "Run":
        asked = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as it is under nohup
            asked.append(signal.SIGHUP)
        self.handlers = {number: signal.signal(number, self._ask) for number in asked}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.files.close()

    def _ask(self, number: int, _) -> None:
        if number == self.stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = number
        text = "stopping after this step (Ctrl-C once more to stop at once)"
        print(f"\n{text}", file=sys.stderr)

    def steps(self) -> Iterator[int]:
        """The updates from where the run stands to its end; a signal saves and ends it."""
        args, world, progress = self.args, self.world, self.progress
        if progress.before is None:
            progress.before = validation.evaluate(self, self.problems.test)
            validation.keep_best(self)  # the untrained model is a candidate
        elif progress.step == args.steps:  # no validation follows: is the best one there?
            validation.keep_best(self)
        steps = {"total": args.steps, "initial": progress.step, "unit": "step"}
        with bar(**steps, disable=not world.main) as self.bar:
            while progress.step < args.steps:
                self.seconds_of = {}
                yield progress.step
                stopping = max(world.gather_objects([self.stopped_by]))  # all ranks stop together
                if stopping and progress.step < args.steps:
                    if not self.due(args.save_every):
                        self.save()
                    again = f"python train.py --out {args.out} --resume"
                    world.say(f"stopped after step {progress.step}; to go on: {again}")
                    raise SystemExit(130 if stopping == signal.SIGINT else 0)

    def due(self, every: int) -> bool:
        """Is something done now that is done after every so many updates, and after the last?"""
        return self.progress.step % every == 0 or self.progress.step == self.args.steps

    def clock(self, name: str):
        """Inside, seconds of a part of the step are measured."""
        return metrics.clock(self.seconds_of, f"seconds_{name}")

    def parts(self, step: int) -> list[Part]:
        """This rank's part of the step's B x G samples; (seed, step) decide which problems."""
        args, training = self.args, self.problems.training
        numbers = data.batch(len(training), args.prompts, args.seed, step)
        numbers = self.world.balance(numbers, lambda number: len(training[number].question))
        return [
            Part(slot, numbers[slot], training[numbers[slot]], samples)
            for slot, samples in self.problems.shares
        ]

    def score(self, parts: list[Part], rollouts: list[Rollout]) -> Scores:
        """The rewards of this rank's rows (eq. 11), and what all ranks' samples reached.  Where a
        reward of one's own fails, saves what is not saved and raises InputError."""
        before = Counter(self.verifier.counts)
        numbered = [(part.number, part.problem) for part in parts]
        made = rollouts, numbered, self.verifier
        try:
            of_problems = self.world.all_or_none(lambda: self.policy.score(*made))
        except InputError as error:
            if self.progress.step != (self.args.saved or 0):
                self.save()
            raise InputError(f"{error}{self.files.resumable()}") from None
        generations = [generation for of_problem in of_problems for generation in of_problem]
        counts = sum(self.world.gather_objects([self.verifier.counts - before]), Counter())
        rows = [[*(each[name] for name in NUMBERS), verified(each)] for each in generations]
        table = torch.tensor(self.world.gather_objects(rows), dtype=torch.float64)
        return Scores(table[:, 0].view(self.args.prompts, -1), table, generations, counts)

    def differentiate(self, rollouts: list[Rollout], advantages: list, scale: float) -> Mismatch:
        """The backward passes; returns the mismatch of all ranks' actions.  Where any rank's memory
        is too small, all do theirs again with half as many rows at a time, or InputError is raised.
        """
        args, number, plain = self.args, self.progress.step + 1, self.policy.plain
        for last_try in (False, True):
            options, mismatch = {} if plain else {"micro_batch": args.micro_batch}, None
            try:
                with self.optimizer.summing():
                    mismatch = self.policy.backward(rollouts, advantages, scale, **options)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            of_ranks = self.world.gather_objects([mismatch])
            if None not in of_ranks:
                total, tokens, largest = zip(*(vars(one).values() for one in of_ranks))
                return Mismatch(sum(total), sum(tokens), max(largest))
            self.optimizer.discard()
            torch.cuda.empty_cache()
            if last_try or args.micro_batch == 1 or plain:
                found = "--plain, all rows" if plain else f"{args.micro_batch} rows"
                raise InputError(
                    f"step {number}: --micro-batch: expected backward passes that fit into "
                    f"the memory, found {found} at a time too many; set a smaller --micro-batch "
                    "(without --plain) or --cot, --dtype bfloat16, --shard yes or more ranks"
                )
            args.micro_batch //= 2
            rows = f"{args.micro_batch} rows a backward pass"
            self.world.say(f"step {number}: out of memory; from now on {rows}")

    def update(self, mismatch: Mismatch) -> dict:
        """Sum the gradient over ranks, clip it, AdamW, next step; returns grad_norm, share_E and
        lr.  Raises FloatingPointError where the gradient is not finite, and changes nothing."""
        progress, norm = self.progress, self.optimizer.collect()
        if not norm < float("inf"):
            names = list(dict.fromkeys(self.world.gather_objects(self.optimizer.not_finite())))
            finite = "are finite" if math.isfinite(mismatch.total) else "are not"
            raise FloatingPointError(
                f"step {progress.step + 1}: gradient norm: expected a finite number, found {norm} "
                f"(log-probabilities {finite}; first of {len(names)} parameters: "
                f"{', '.join(names[:2])}); nothing was changed{self.files.resumable()}"
            )
        in_E = self.optimizer.grad_norm("model.embed_tokens.weight")
        lr = self.optimizer.update(progress.step, norm)
        progress.step += 1
        return {"grad_norm": norm, "share_E": in_E / norm if norm else 0.0, "lr": lr}

    def measure(self, scores: Scores, mismatch: Mismatch, update: dict) -> dict:
        """A line of metrics.jsonl (README.md has what each number is)."""
        mean = dict(zip(NUMBERS, scores.table.mean(0).tolist()))
        rewards, verdicts = scores.rewards, scores.table[:, -1]
        seconds = sum(self.seconds_of.values())
        self.progress.seconds += seconds
        return {
            "step": self.progress.step,
            "reward": mean["reward"],
            "reward_std": rewards.std().item(),
            "accuracy": (verdicts == RIGHT).double().mean().item(),
            "verifier": dict(sorted(scores.counts.items())),
            "boxed": (verdicts >= BOXED).double().mean().item(),
            "truncated": mean["truncated"],
            "cot_length": mean["cot_tokens"],
            "answer_length": mean["answer_tokens"],
            **{name: mean[name] for name in MEASURES},
            "informative": (rewards != rewards[:, :1]).any(1).double().mean().item(),
            **update,
            "replay_mismatch": mismatch.total / mismatch.tokens,
            "replay_mismatch_max": mismatch.largest,
            "seconds": seconds,
            **self.seconds_of,
            "memory_gib": metrics.peak_memory_gib(self.world.device),
        }

    def log(self, row: dict, scores: Scores) -> None:
        """Write a line of metrics.jsonl; the progress bar; now and then a sample."""
        show_every, step = self.args.show_every, self.progress.step
        self.world.from_main(lambda: self.files.metrics.write(row))
        if show_every and step % show_every == 0:
            sample = metrics.sample_text(scores.generations[0])
            self.world.say(f"step {step}, a rollout:\n{sample}")
        self.bar.set_postfix({name: row[name] for name in SHOWN}, refresh=False)
        self.bar.update()

    def save(self) -> None:
        """RUN/last and RUN/state; after checking that all ranks agree."""
        self.world.check_identical(self.policy.model.parameters())
        self.files.save_model("last", self.policy, self.progress.step)
        self.files.save_state(asdict(self.progress), self.policy.settings, self.optimizer)
