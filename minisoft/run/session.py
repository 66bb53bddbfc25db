"""A run of train.py on real machines: set-up, lock, resume, signals, validation, saving.

train.py has the algorithm; here is what lets it be killed, resumed, and spread over ranks.
RUN/ holds config.json, metrics.jsonl, best/, last/ (Hugging Face folders), state/ (see
`minisoft.io.state`), summary.json and the file `lock`.
"""

import hashlib
import math
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from minisoft import engine, reinforce, rollout
from minisoft.data import ANSWER_TOKENS, Format, Problem
from minisoft.engine import memory
from minisoft.engine.replay import recompute_layers
from minisoft.errors import InputError
from minisoft.evaluation import SOFTNESS, Setting
from minisoft.io import atomic, checkpoint, datasets, state
from minisoft.io.journal import Journal
from minisoft.kinds import NOISE
from minisoft.reinforce import Mismatch
from minisoft.reward import BOXED, RIGHT
from minisoft.rollout import Decoding, Request, Rollout
from minisoft.run import metrics, track
from minisoft.run.evaluate import Evaluator, check_prompts, lengthened
from minisoft.run.optimizer import Optimizer, Schedule
from minisoft.run.plan import in_pieces
from minisoft.run.samples import COLUMNS, Part, Samples, Scores
from minisoft.run.settings import Flags, anywhere, fill, resolve
from minisoft.run.world import World, is_out_of_memory
from minisoft.soft import rms

WRITES = ("best", "last", "state", "config.json", "metrics.jsonl", "summary.json")  # and lock


class Run:
    """All that a run consists of: model, problems, kind of token, optimizer, files.

    Everything that ranks do together is done by all of them in the same order; what can fail on
    one of them fails on all (`World.all_or_none`), so that nobody waits.
    variant: what `minisoft.lab.variants` changes, written into config.json and minisoft.json.
    """

    def __init__(self, args: Namespace, world: World, verifier, variant: dict | None = None):
        self.args, self.world, self.verifier, self.variant = args, world, verifier, variant or {}
        if args.resume:
            self._claim()
        self.source = world.in_turn(lambda: checkpoint.find(args.model))
        self.folder = world.all_or_none(lambda: checkpoint.read_about(self.source))
        self.files = world.all_or_none(lambda: checkpoint.read_files(self.source))
        fill(args, self.folder, world.device.type)
        args.out = Path(world.from_main(lambda: str(args.out)))  # clocks of ranks may differ
        if not args.resume:
            world.from_main(lambda: check_unused(args))
        self._read()
        saved = state.newest(args.out / "state", world, args.saved) if args.resume else None
        self._begin(saved)
        self._choose_micro_batch()
        if not args.resume:
            self._claim()
        config = world.from_main(self._write_config)
        path = args.out / "metrics.jsonl"
        self.metrics = world.from_main(lambda: metrics.MetricsFile(path, self.step))
        self.tracker = None
        if world.main and args.track != "none":
            self.tracker = track.tracker(args.track, args.out, config, self.step + 1, world.say)
            next(self.tracker, None)  # it begins
        self.seconds_of: dict[str, float] = {}  # of the parts of a step
        self.stopped_by = 0  # the signal that asked, 0 if none has

    # ------------------------------------------------------------------------------- set-up

    def _claim(self) -> None:
        """RUN belongs to this process from now on."""

        def take() -> None:
            if not self.world.main:
                return
            out = self.args.out
            out.mkdir(parents=True, exist_ok=True)
            self.lock = state.lock(out / "lock")
            if not self.args.resume:
                return check_unused(self.args)  # once more, since now nobody else comes
            begun = [new.with_suffix("") for new in (out / "state").glob(f"step-*{atomic.NEW}")]
            for path in [*(out / name for name in WRITES), *begun]:
                atomic.recover(path)

        self.world.all_or_none(take)

    def _read(self) -> None:
        """The problems and the model."""
        problems = self.world.in_turn(lambda: datasets.load_problems(self.args.data))
        self.samples = self.world.all_or_none(lambda: Samples(self.args, self.world, problems))
        self.world.all_or_none(self._load)
        self.world.all_or_none(self._check_prompts)
        self.sources = self.world.all_or_none(lambda: self._hashes(problems))

    def _load(self) -> None:
        """The model and how it makes tokens."""
        args = self.args
        flags = Flags.of(args)
        flags.check([args.tokens])
        settings = resolve(self.folder, flags, args.cot)
        self.model, self.tokenizer = checkpoint.load(
            self.source, self.world.device, checkpoint.DTYPES[args.dtype]
        )
        if not args.plain:
            engine.accelerate(self.model)
        self.form = Format(self.tokenizer)
        self.settings = settings.for_model(self.model)
        changed = self.settings.changes(args.tokens)
        if changed:
            self.world.say(
                f"{self.source}: its training is not continued alike: {', '.join(changed)}"
            )

    def _check_prompts(self) -> None:
        """Of the training, and of validation and test with their own budget."""
        samples, later = self.samples, replace(self.settings, cot=self.args.eval_cot)
        texts = lengthened(samples.training, self.settings, self.form)
        texts += lengthened([*samples.validation, *samples.test], later, self.form)
        check_prompts(self.source, self.model.config, self.tokenizer, texts, self.world)

    def _hashes(self, problems: list[Problem]) -> dict[str, str]:
        """SHA-256 of all that decides what is learnt from, but for the weights."""
        read = {"--data": repr(problems).encode(), "--template": self.settings.template.encode()}
        content = read | self.files
        return {name: hashlib.sha256(text).hexdigest() for name, text in content.items()}

    def _begin(self, saved: state.State | None) -> None:
        """Where the run stands: at its beginning, or where a saved state left it."""
        args = self.args
        facts = saved.facts if saved else {"step": 0, "sigma": self.settings.sigma}
        self._check_sources(facts.get("sources", self.sources))
        self.settings = replace(self.settings, sigma=facts["sigma"])  # of the first weights
        self.kind = self.settings.kind(args.tokens)
        self.decoding = Decoding(args.cot)
        self.rollout = rollout.rollout if args.plain else engine.rollout
        self.backward = reinforce.backward if args.plain else engine.backward
        schedule = Schedule(
            args.lr, args.steps, args.warmup, args.betas, args.weight_decay, args.max_grad_norm
        )
        sharded = in_pieces(args.shard, self.model)
        self.optimizer = Optimizer(self.model, schedule, self.world, sharded)
        self.step = facts["step"]
        self.best = facts.get("best", -1.0)  # pass@1 on the validation problems
        self.best_step = facts.get("best_step")  # the updates after which it was reached
        self.before = facts.get("before")  # the table's first column, None if not yet measured
        self.seconds = facts.get("seconds", 0.0)
        if saved:
            args.saved = self.step
            self.optimizer.load(saved.read, self.step)
            self._check_steps(schedule)

    def _check_steps(self, schedule: Schedule) -> None:
        """Says what another number of updates does to a run that goes on.  Raises InputError where
        more are done."""
        done, steps = self.step, self.args.steps
        if steps < done:
            expected = f"expected at least the {done} updates that are done"
            raise InputError(f"{self.args.out}: --steps: {expected}, found {steps}")
        before = atomic.read_json(self.args.out / "config.json").get("steps", steps)
        if steps not in (done, before):
            last = replace(schedule, steps=before).learning_rate(done - 1)
            self.world.say(
                f"--steps {before} -> {steps}: the learning rate is that of a cosine over {steps} "
                f"updates from here on: {last:.2e} before, {schedule.learning_rate(done):.2e} now"
            )

    def _check_sources(self, before: dict) -> None:
        """Raises InputError where what the run had read has changed."""
        names = sorted({*before, *self.sources})
        changed = [name for name in names if before.get(name) != self.sources.get(name)]
        if changed:
            raise InputError(
                f"{self.args.out}: --resume: expected what the run began with, found other content "
                f"of {', '.join(changed)} ({self.args.data}, {self.source})"
            )

    def _choose_micro_batch(self) -> None:
        """--micro-batch, if it was not given, and whether layers are computed again: the same on
        all ranks and, as part of config.json, in a resumed run."""
        positions = self.args.cot + max(map(len, self.form.prefill)) + ANSWER_TOKENS
        device = self.world.device
        machine = memory.Machine(device.type, self.optimizer.pieces)
        rows, again = memory.choose_micro_batch(
            self.model, positions, metrics.memory_bytes(device), machine
        )
        if any(self.world.gather_objects([again])):
            recompute_layers(self.model)
        rows = min(self.world.gather_objects([rows]))
        if self.args.micro_batch is None:
            self.args.micro_batch = rows

    def _write_config(self) -> dict:
        """RUN/config.json, and what it holds."""
        config = {
            name: anywhere(name, str(value) if isinstance(value, Path) else value)
            for name, value in vars(self.args).items()
            if name != "resume"
        }
        extra = {"sigma": self.settings.sigma, "world": self.world.size, "variant": self.variant}
        config = {state.MARK: state.VERSION, **config, **extra}
        atomic.write_json(self.args.out / "config.json", config)
        return config

    @property
    def sidecar(self) -> dict:
        """minisoft.json of what is saved: how the model is to be used."""
        settings = self.settings
        ways = {"logits", "terms", "frozen", *(row.name for row in NOISE)}  # of earlier trainings
        kept = {name: x for name, x in self.folder.items() if name not in ways}
        return {
            **kept,
            "prompt": settings.template,
            "base": self.folder.get("base", self.source.resolve().name),  # of all its trainings
            "data": Path(self.args.data).stem,
            "tokens": self.args.tokens,
            "step": self.step,
            "sigma": settings.sigma,
            "gamma": settings.gamma,
            "tau": self.kind.tau,
            "noise": settings.noise,
            "top_k": settings.top_k,
            **settings.options(self.args.tokens),
            **self.variant,
        }

    # ------------------------------------------------------------------------ the whole run

    def __enter__(self) -> "Run":
        asked = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as it is under nohup
            asked.append(signal.SIGHUP)
        self.handlers = {number: signal.signal(number, self._ask) for number in asked}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.tracker:
            next(self.tracker, None)  # it ends
        if self.world.main:
            self.lock.close()

    def _ask(self, number: int, _) -> None:
        if number == self.stopped_by == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = number
        text = "stopping after this step or evaluation (Ctrl-C once more to stop at once)"
        print(f"\n{text}", file=sys.stderr)

    def steps(self) -> Iterator[int]:
        """The updates from where the run stands to its end; a signal saves and ends it."""
        args, world = self.args, self.world
        self._introduce()
        if self.before is None:
            self.before = self.evaluate(self.samples.test)
            self.keep_best()  # the untrained model is a candidate
        if self._step_of_best() is None:
            self._choose_anew()
        with tqdm(
            total=args.steps, initial=self.step, disable=not world.main, unit="step"
        ) as self.bar:
            while self.step < args.steps:
                self.seconds_of = {}
                yield self.step
                stopping = max(world.gather_objects([self.stopped_by]))  # all ranks stop together
                if stopping and self.step < args.steps:
                    if not self.due(args.save_every):
                        self.save()
                    again = f"python train.py --out {args.out} --resume"
                    world.say(f"stopped after step {self.step}; to go on: {again}")
                    raise SystemExit(130 if stopping == signal.SIGINT else 0)

    def _step_of_best(self) -> int | None:
        """The update after which RUN/best was made, as it says."""
        best = self.args.out / "best"
        return self.world.from_main(lambda: checkpoint.read_about(best).get("step"))

    def _choose_anew(self) -> None:
        """RUN/best is not what the run remembers: the model at hand takes its place."""
        if self.best_step is not None:
            expected = f"expected the model after update {self.best_step}"
            found = f"found {self._step_of_best()}: it is chosen anew, from update {self.step} on"
            self.world.say(f"{self.args.out / 'best'}: {expected}, {found}")
            self.best = -1.0
            self.keep_best()

    def due(self, every: int) -> bool:
        """Is something done now that is done after every so many updates, and after the last?"""
        return self.step % every == 0 or self.step == self.args.steps

    def _introduce(self) -> None:
        args, model, samples = self.args, self.model, self.samples
        self.world.say(
            f"{args.model}: {memory.parameters(model):,} parameters, {model.E.dtype}, "
            f"rms(E) {rms(model.E):.4f}, sigma {self.settings.sigma:.4f}\n"
            f"{len(samples.training)} training, {len(samples.validation)} validation, "
            f"{len(samples.test)} test problems of {args.data}\n"
            f"{args.tokens} tokens, B {args.prompts} x G {args.group}, {args.steps} updates, "
            f"lr {args.lr} -> {args.out}"
        )

    def finish(self) -> None:
        """Test the best model, write RUN/summary.json, print the table before/after."""
        if self._step_of_best() != self.best_step:  # of updates that a kill has undone
            self._choose_anew()
        best = self.args.out / ("last" if self.best_step is None else "best")
        if self.best_step is not None:
            self.model.slots = None  # the memory of its rollouts
            self.model = checkpoint.load_model(best, self.world.device, self.model.E.dtype)
            if not self.args.plain:
                engine.accelerate(self.model)
        after = self.evaluate(self.samples.test)
        summary = {
            "before": self.before,
            "after": after,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "validation": self.best if self.samples.validation else None,
            "best_step": self.best_step,
        }
        rows = [["greedy accuracy", "before", "after"]]
        for setting in after:
            passed = [metrics.percent(of[setting]["pass@1"]) for of in (self.before, after)]
            rows.append([setting, *passed])
        try:
            self._by_main(lambda: atomic.write_json(self.args.out / "summary.json", summary))
        finally:
            self.world.say(
                f"\n{len(self.samples.test)} test problems, {self.args.tokens} tokens, "
                f"{self.step} updates in {self.seconds:.0f} s\n"
                f"{metrics.markdown(rows) if after else ''}\n"
                f"model: {best}"
            )

    # ------------------------------------------------------------------- the parts of a step

    @contextmanager
    def clock(self, name: str):
        with metrics.clock(self.seconds_of, f"seconds_{name}"):
            yield

    def requests(self, step: int, parts: list[Part]) -> list[Request]:
        """What is to be rolled out of this rank's part of a step."""
        return self.samples.requests(step, parts, self.form, self.settings.template)

    def score(self, parts: list[Part], rollouts: list[Rollout]) -> Scores:
        """Rewards (eq. 11), and what else all ranks' samples reached."""
        return self.samples.score(parts, rollouts, self.form, self.verifier)

    def differentiate(self, rollouts: list[Rollout], advantages: list, scale: float) -> Mismatch:
        """This rank's backward passes.  Where the memory of any rank is too small, all ranks do
        theirs once more with half as many rows at a time; raises InputError where that is not
        enough."""
        args = self.args
        for last_try in (False, True):
            mismatch = self._try_backward(rollouts, advantages, scale)
            if mismatch is not None:
                return over_ranks(mismatch, self.world)
            self.optimizer.discard()
            torch.cuda.empty_cache()
            if last_try or args.micro_batch == 1 or args.plain:
                found = "--plain, all rows" if args.plain else f"{args.micro_batch} rows"
                raise InputError(
                    f"step {self.step + 1}: --micro-batch: expected backward passes that fit into "
                    f"the memory, found {found} at a time too many; set a smaller --micro-batch "
                    "(without --plain) or --cot, --dtype bfloat16, --shard yes or more ranks"
                )
            args.micro_batch //= 2
            rows = f"{args.micro_batch} rows a backward pass"
            self.world.say(f"step {self.step + 1}: out of memory; from now on {rows}")

    def _try_backward(self, rollouts, advantages, scale: float) -> Mismatch | None:
        """The mismatch of this rank; None where any rank has run out of memory."""
        backward, mismatch = self.backward, None
        if not self.args.plain:
            backward = partial(backward, micro_batch=self.args.micro_batch)
        try:
            with self.optimizer.summing():
                mismatch = backward(self.model, self.kind, rollouts, advantages, scale)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None if any(self.world.gather_objects([mismatch is None])) else mismatch

    def update(self, mismatch: Mismatch) -> dict:
        """Sum the gradient over ranks, clip it, AdamW; returns grad_norm, share_E and lr.  `step`
        is one more then.  Raises FloatingPointError where the gradient is not finite, and changes
        nothing."""
        norm = self.optimizer.collect()
        if not norm < float("inf"):
            raise FloatingPointError(
                f"step {self.step + 1}: gradient norm: expected a finite number, found {norm} "
                f"({self._culprits(mismatch)}); nothing was changed{self._resumable()}"
            )
        in_E = self.optimizer.grad_norm("model.embed_tokens.weight")
        lr = self.optimizer.update(self.step, norm)
        self.step += 1
        return {"grad_norm": norm, "share_E": in_E / norm if norm else 0.0, "lr": lr}

    def _resumable(self) -> str:
        """What an error says of the states that there are."""
        there = any((self.args.out / "state").glob("step-*[0-9]"))
        return f"; the last saved state in {self.args.out} can be resumed" if there else ""

    def _culprits(self, mismatch: Mismatch) -> str:
        """Where NaN or infinities come from, as far as can be told."""
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
        self.seconds += seconds
        return {
            "step": self.step,
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
        show_every = self.args.show_every
        self._by_main(lambda: self.metrics.write(row))
        if self.tracker:
            with suppress(StopIteration):  # of a tracker that was given up
                self.tracker.send(row)
        if show_every and self.step % show_every == 0:
            sample = metrics.sample_text(scores.generations[0])
            self.world.say(f"step {self.step}, a rollout:\n{sample}")
        self.bar.set_postfix(
            reward=f"{row['reward']:.1f}",
            acc=f"{row['accuracy']:.2f}",
            cot=f"{row['cot_length']:.0f}",
            grad=f"{row['grad_norm']:.3g}",
            s=f"{row['seconds']:.2f}",
        )
        self.bar.update()

    # --------------------------------------------------------------- validating and saving

    def evaluate(self, problems: list[Problem]) -> dict[str, dict]:
        """Greedy, hard and by the run's own kind (no noise): {setting: {"pass@1": ..., ...}}."""
        if not problems:
            return {}
        args, journal = self.args, Journal(None, {}, self.world)
        settings = replace(self.settings, cot=args.eval_cot)
        common = (self.verifier, self.world, journal, args.eval_batch, args.plain)
        evaluator = Evaluator(self.model, self.tokenizer, settings, *common)
        kinds = dict.fromkeys(("hard", args.tokens))
        greedy = [Setting(kind, True) for kind in kinds]
        return {str(setting): evaluator.problems(problems, setting, 1, 0)[0] for setting in greedy}

    def keep_best(self) -> dict[str, float]:
        """Validate; RUN/best is the model that is best by greedy decoding of the run's own kind,
        without noise (appendix A).  Returns `validation`, by the own kind, and `validation_hard`;
        {} without validation problems."""
        results = self.evaluate(self.samples.validation)
        if not results:
            return {}
        passed = {name: result["pass@1"] for name, result in results.items()}
        shown = ", ".join(f"{metrics.percent(x)} ({name})" for name, x in passed.items())
        self.world.say(f"step {self.step}: validation {shown}")
        own = passed[f"{self.args.tokens}-greedy"]
        if own > self.best:
            self.best, self.best_step = own, self.step
            self.save_model("best")
        return {"validation": own, "validation_hard": passed["hard-greedy"]}

    def save_model(self, name: str) -> None:
        """RUN/best or RUN/last, by the main rank.  Raises FloatingPointError rather than replace
        good weights by NaN."""
        bad = [n for n, p in self.model.named_parameters() if not p.isfinite().all()]
        if bad:
            raise FloatingPointError(
                f"step {self.step}: weights: expected finite numbers, found NaN or infinity in "
                f"{bad[0]}; nothing was saved{self._resumable()}"
            )
        folder = self.args.out / name
        self._by_main(lambda: checkpoint.save_model(folder, self.model, self.files, self.sidecar))

    def save(self) -> None:
        """RUN/last, then RUN/state, which is what --resume goes on from; after checking that all
        ranks agree."""
        self.world.check_identical(self.model.parameters())
        self.save_model("last")
        self._by_main(lambda: atomic.sync(self.metrics.path))
        facts = {
            "best": self.best,
            "best_step": self.best_step,
            "before": self.before,
            "seconds": self.seconds,
            "sigma": self.settings.sigma,
            "sources": self.sources,
            "step": self.step,
        }
        folder, pieces = self.args.out / "state", self.optimizer.pieces
        state.save(folder, facts, self.optimizer.state(), pieces, self.world, self.args.keep)
        self.args.saved = self.step
        self._by_main(self._write_config)

    def _by_main(self, write) -> None:
        """write() by the main rank; its OSError is that of all."""
        self.world.all_or_none(lambda: self.world.main and write())


def check_unused(args: Namespace) -> None:
    """Raises InputError where a new run would write over what it did not write."""
    found = [name for name in WRITES if os.path.lexists(args.out / name)]
    if state.MARK in atomic.read_json(args.out / "config.json"):
        found = ["a run; add --resume to go on with it"]
    elif anywhere("data", args.data) == os.path.abspath(args.out):
        found = ["the problems"]
    if found:
        raise InputError(f"{args.out}: expected an unused folder, found {', '.join(found)}")


def over_ranks(mismatch: Mismatch, world: World) -> Mismatch:
    """The mismatch of the actions of all ranks."""
    own = [[mismatch.total, mismatch.tokens, mismatch.largest]]
    parts = world.gather(torch.tensor(own, dtype=torch.float64))
    total, tokens, largest = parts.T
    return Mismatch(total.sum().item(), int(tokens.sum()), largest.max().item())
