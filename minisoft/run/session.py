"""A run of train.py on real machines: what its loop asks for, step by step.

train.py has the algorithm; here is what lets it be stopped, resumed, and spread over ranks.
"""

import math
import signal
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import torch

from minisoft.data import Problem
from minisoft.errors import InputError
from minisoft.evaluation import SOFTNESS, Setting
from minisoft.io import checkpoint
from minisoft.io.journal import Journal
from minisoft.reinforce import Mismatch
from minisoft.reward import BOXED, RIGHT
from minisoft.rollout import Rollout
from minisoft.run import metrics
from minisoft.run.evaluate import Evaluator
from minisoft.run.samples import COLUMNS, Part, Scores
from minisoft.run.setup import Setup
from minisoft.run.world import World, bar, is_out_of_memory


class Run:
    """A run under way; variant: see `Files`.

    Everything that ranks do together is done by all of them in the same order; what can fail on
    one of them fails on all (`World.all_or_none`), so that nobody waits.
    """

    def __init__(self, args: Namespace, world: World, verifier, variant: dict | None = None):
        self.args, self.world, self.verifier = args, world, verifier
        made = Setup(args, world, variant or {})
        self.policy, self.samples, self.optimizer = made.policy, made.samples, made.optimizer
        self.progress, self.files = made.progress, made.files
        self.seconds_of: dict[str, float] = {}  # of the parts of a step
        self.stopped_by = 0  # the signal that asked, 0 if none has

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
            progress.before = self.evaluate(self.samples.test)
            self.keep_best()  # the untrained model is a candidate
        elif progress.step == args.steps:  # no validation follows: is the best one there?
            self.keep_best()
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

    def score(self, parts: list[Part], rollouts: list[Rollout]) -> Scores:
        """The rewards of this rank's rows (eq. 11), and what all ranks' samples reached."""
        before = Counter(self.verifier.counts)
        numbered = [(part.number, part.problem) for part in parts]
        of_problems = self.policy.score(rollouts, numbered, self.verifier)
        generations = [generation for of_problem in of_problems for generation in of_problem]
        counts = sum(self.world.gather_objects([self.verifier.counts - before]), Counter())
        rows = [[generation[column] for column in COLUMNS] for generation in generations]
        table = self.world.gather(torch.tensor(rows, dtype=torch.float64))
        return Scores(table, generations, counts)

    def differentiate(self, rollouts: list[Rollout], advantages: list, scale: float) -> Mismatch:
        """This rank's backward passes.  Where the memory of any rank is too small, all ranks do
        theirs once more with half as many rows at a time; raises InputError where that is not
        enough."""
        args, number, plain = self.args, self.progress.step + 1, self.policy.plain
        for last_try in (False, True):
            mismatch = self._try_backward(rollouts, advantages, scale)
            if mismatch is not None:
                return over_ranks(mismatch, self.world)
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

    def _try_backward(self, rollouts, advantages, scale: float) -> Mismatch | None:
        """The mismatch of this rank; None where any rank has run out of memory."""
        options = {} if self.policy.plain else {"micro_batch": self.args.micro_batch}
        mismatch = None
        try:
            with self.optimizer.summing():
                mismatch = self.policy.backward(rollouts, advantages, scale, **options)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None if any(self.world.gather_objects([mismatch is None])) else mismatch

    def update(self, mismatch: Mismatch) -> dict:
        """Sum the gradient over ranks, clip it, AdamW; returns grad_norm, share_E and lr.  `step`
        is one more then.  Raises FloatingPointError where the gradient is not finite, and changes
        nothing."""
        progress, norm = self.progress, self.optimizer.collect()
        if not norm < float("inf"):
            raise FloatingPointError(
                f"step {progress.step + 1}: gradient norm: expected a finite number, found {norm} "
                f"({self._culprits(mismatch)}); nothing was changed{self.files.resumable()}"
            )
        in_E = self.optimizer.grad_norm("model.embed_tokens.weight")
        lr = self.optimizer.update(progress.step, norm)
        progress.step += 1
        return {"grad_norm": norm, "share_E": in_E / norm if norm else 0.0, "lr": lr}

    def _culprits(self, mismatch: Mismatch) -> str:
        """Where NaN or infinities come from, as far as can be seen."""
        by_rank = self.world.gather_objects([self.optimizer.not_finite()])
        names = list(dict.fromkeys(name for names in by_rank for name in names))
        finite = "are finite" if math.isfinite(mismatch.total) else "are not"
        first = f"first of {len(names)} parameters: {', '.join(names[:2])}"
        return f"log-probabilities {finite}; {first}"

    def measure(self, scores: Scores, mismatch: Mismatch, update: dict) -> dict:
        """A line of metrics.jsonl (see `metrics.METRICS`)."""
        mean = dict(zip(COLUMNS, scores.table.mean(0).tolist()))
        rewards = scores.rewards(self.args.prompts)
        seconds = sum(self.seconds_of.values())
        self.progress.seconds += seconds
        return {
            "step": self.progress.step,
            "reward": mean["reward"],
            "reward_std": rewards.std().item(),
            "accuracy": (rewards == RIGHT).double().mean().item(),
            "verifier": dict(sorted(scores.counts.items())),
            "boxed": (rewards >= BOXED).double().mean().item(),
            "truncated": mean["truncated"],
            "cot_length": mean["cot_tokens"],
            "answer_length": mean["answer_tokens"],
            "entropy": mean["entropy"],
            **{name: mean[name] for name in SOFTNESS},
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
        self.files.log(row)
        if show_every and step % show_every == 0:
            sample = metrics.sample_text(scores.generations[0])
            self.world.say(f"step {step}, a rollout:\n{sample}")
        self.bar.update()
        self.bar.set_postfix(
            reward=f"{row['reward']:.1f}",
            acc=f"{row['accuracy']:.2f}",
            cot=f"{row['cot_length']:.0f}",
            grad=f"{row['grad_norm']:.3g}",
            s=f"{row['seconds']:.2f}",
        )

    def evaluate(self, problems: list[Problem]) -> dict[str, dict]:
        """Greedy, hard and by the run's kind (no noise): {setting: {"pass@1": ..., ...}}."""
        if not problems:
            return {}
        args, journal = self.args, Journal(None, {}, self.world)
        policy = self.policy.of_kind(args.tokens, cot=args.eval_cot)
        evaluator = Evaluator(policy, self.verifier, self.world, journal, args.eval_batch)
        greedy = [Setting(kind, True) for kind in dict.fromkeys(("hard", args.tokens))]
        return {str(setting): evaluator.problems(problems, setting, 1, 0)[0] for setting in greedy}

    def keep_best(self) -> dict[str, float]:
        """Validate; RUN/best is the model that is best by greedy decoding of the run's kind,
        without noise (appendix A).  Returns `validation`, by that kind, and `validation_hard`; {}
        without validation problems."""
        results = self.evaluate(self.samples.validation)
        if not results:
            return {}
        progress = self.progress
        passed = {name: result["pass@1"] for name, result in results.items()}
        shown = ", ".join(f"{metrics.percent(x)} ({name})" for name, x in passed.items())
        self.world.say(f"step {progress.step}: validation {shown}")
        by_kind = passed[f"{self.args.tokens}-greedy"]
        best = self.args.out / "best"
        there = self.world.from_main(lambda: checkpoint.read_about(best).get("step"))
        lost = there != progress.best_step  # or of updates that a kill has undone
        if lost and by_kind <= progress.best:
            expected = f"expected the model after update {progress.best_step}, found {there}"
            self.world.say(f"{best}: {expected}: it is chosen anew from here on")
        if lost or by_kind > progress.best:
            progress.best = by_kind
            progress.best_step = progress.step
            self.files.save_model("best", self.policy, progress.step)
        return {"validation": by_kind, "validation_hard": passed["hard-greedy"]}

    def save(self) -> None:
        """RUN/last and RUN/state; after checking that all ranks agree."""
        self.world.check_identical(self.policy.model.parameters())
        self.files.save_model("last", self.policy, self.progress.step)
        self.files.save_state(asdict(self.progress), self.optimizer)

    def finish(self) -> None:
        """Test the best model, write RUN/summary.json, print the table before/after."""
        progress, out = self.progress, self.args.out
        best = out / ("last" if progress.best_step is None else "best")
        if progress.best_step is not None:
            self.policy.model.slots = None  # the memory of its rollouts
            self.policy = self.world.all_or_none(lambda: self.policy.with_weights(best))
        before, after = progress.before, self.evaluate(self.samples.test)
        summary = {
            "before": before,
            "after": after,
            "steps": progress.step,
            "seconds": round(progress.seconds, 1),
            "validation": progress.best if self.samples.validation else None,
            "best_step": progress.best_step,
        }
        rows = [["greedy accuracy", "before", "after"]]
        for setting in after:
            passed = [metrics.percent(of[setting]["pass@1"]) for of in (before, after)]
            rows.append([setting, *passed])
        title = f"{len(self.samples.test)} test problems, {self.args.tokens} tokens, "
        title += f"{progress.step} updates"
        table = metrics.markdown(rows) if after else ""
        try:
            self.files.finish(best, summary, f"{title}:\n\n{table}" if after else "")
        finally:
            seconds = f"in {progress.seconds:.0f} s"
            self.world.say(f"\n{title} {seconds}\n{table}\nmodel: {best}")


def over_ranks(mismatch: Mismatch, world: World) -> Mismatch:
    """The mismatch of the actions of all ranks."""
    of_rank = [[mismatch.total, mismatch.tokens, mismatch.largest]]
    total, tokens, largest = world.gather(torch.tensor(of_rank, dtype=torch.float64)).T
    return Mismatch(total.sum().item(), int(tokens.sum()), largest.max().item())
