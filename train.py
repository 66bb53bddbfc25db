#!/usr/bin/env python3
"""Train a Llama or Qwen model to reason in soft tokens ("Soft Tokens, Hard Truths", arXiv 2509.19170).

    python train.py                                                      # the embedded model, minutes on two cores
    python train.py --model FOLDER --data FILE.jsonl --tokens soft       # the paper's settings
    torchrun --nproc-per-node 8 train.py --model FOLDER --data FILE.jsonl
    python train.py --out RUN --resume                                   # go on with what is in RUN, bit for bit

Writes RUN/metrics.jsonl (explained in minisoft/report.py), config.json, last/ and, with validation problems, best/
(Hugging Face folders), state/ and summary.json.  Ctrl-C and SIGTERM save and stop, with exit status 130 and 0; a second
Ctrl-C stops at once.
A default marked * may be replaced by the model folder's minisoft.json, as weights/tiny does.
"""

import argparse
import hashlib
import math
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from tqdm import tqdm

from minisoft import data, evaluation
from minisoft.engine import memory
from minisoft.errors import InputError
from minisoft.io import WEIGHTS, atomic, checkpoint, datasets, state
from minisoft.io.atomic import read_json
from minisoft.io.journal import Journal
from minisoft.io.tokenizer import FILES
from minisoft.lab import tables
from minisoft.reinforce import (
    ESTIMATORS,
    TERMS,
    Mismatch,
    advantages,
    backward,
    measure_mismatch,
)
from minisoft.rollout import ANSWER_TOKENS, Format, Request, rollout
from minisoft.soft import (
    GAMMA,
    KINDS,
    NOISES,
    TAU,
    TAU_TOP_K,
    check_top_k,
    make_kind,
    noise_scale,
    rms,
)
from minisoft.training.optimizer import ABOVE, Optimizer
from minisoft.training.world import RankError, World, as_program
from minisoft.verifier.compare import WORKERS, Verifier, only_as_text

DEFAULTS = {"data": "gsm8k", "prompts": 2, "group": 32, "steps": 4000, "cot": 128, "warmup": 20, "validate_every": 100,
            "lr": {"hard": 6e-6, "soft": 6e-6, "fuzzy": 6e-6}}  # the paper's (section 4, appendix A)
MAY_CHANGE = {"steps", "validate_every", "save_every", "keep", "show_every", "shares_every", "micro_batch", "eval_batch",
              "device", "shard", "patience", "out", "resume"}  # flags that may differ when a run goes on
WRITES = ("best", "last", "config.json", "metrics.jsonl", "summary.json")  # in RUN, besides state/ and lock


def read_flags(argv=None) -> tuple[argparse.Namespace, set[str]]:
    """(all flags, names of those that were given)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = lambda group, name, default, text, **kw: group.add_argument(
        name, default=default, help=text.replace("%", "%%") + ("" if kw.get("action") else f" (default {default})"
                                                               if default is not None else ""), **kw)
    group = parser.add_argument_group("model and problems")
    add(group, "--model", str(WEIGHTS / "tiny"), "folder, or hub id owner/name")
    add(group, "--data", None, "problems: .jsonl or .json file, tiny, or a hub name such as gsm8k (default gsm8k *)")
    add(group, "--prompt", None, "file with the prompt, QUESTION where the question goes (default the paper's *, section 4)")
    add(group, "--validation", None, "problems held out to choose RUN/best (default 10 % of all, at most 200)", type=int)
    add(group, "--test", None, "problems held out for the table before/after (default 10 %, at most 200)", type=int)
    group = parser.add_argument_group("chain of thought (section 3)")
    add(group, "--tokens", "soft", "kind of CoT token", choices=KINDS)
    add(group, "--tau", None, f"softmax temperature of the CoT in training (default {TAU}, with --top-k {TAU_TOP_K}; F.3)",
        type=float)
    add(group, "--gamma", GAMMA, "noise factor: sigma = gamma * noise scale, rms(E) for the embedding (F.1)", type=float)
    add(group, "--noise", "embedding", "where soft and fuzzy tokens get their noise (F.2)", choices=NOISES)
    add(group, "--top-k", None, "noise on the K best logits, the rest -inf (default all; F.2)", type=int, metavar="K")
    add(group, "--logits", "float32", "bfloat16: in updates, round logits to it", choices=list(checkpoint.DTYPES))
    add(group, "--cot", None, "CoT budget in tokens (default 128 *; paper: 128 GSM8K, 512 MATH)", type=int)
    group = parser.add_argument_group("REINFORCE (appendix A)")
    add(group, "--prompts", None, "B, problems a step over all ranks (default 2 *)", type=int, metavar="B")
    add(group, "--group", None, "G, samples of each problem (default 32 *)", type=int, metavar="G")
    add(group, "--steps", None, "updates (default 4000 *)", type=int)
    add(group, "--lr", None, "peak learning rate (default 6e-6 *; paper: Llama-8B 3e-6, Qwen-3B 8e-6)", type=float)
    add(group, "--warmup", None, "updates of linear warm-up before the cosine (default 20 *)", type=int)
    add(group, "--betas", [.9, .95], "AdamW; open in the paper", type=float, nargs=2)
    add(group, "--weight-decay", 0., "AdamW; open in the paper", type=float)
    add(group, "--clip", 1., "largest norm of the gradient; open in the paper", type=float)
    add(group, "--estimator", ESTIMATORS[0], "of the gradient, both unbiased: rloo, the paper's; prefix, a baseline from "
        "samples with the same tokens so far (needs whole groups on every rank)", choices=ESTIMATORS)
    add(group, "--terms", "both", "ablation: the log-probabilities that learn, CoT's, answer's or both", choices=list(TERMS))
    group = parser.add_argument_group("run")
    add(group, "--out", None, "RUN, the folder to write (default runs/DATE-TIME)", type=Path)
    add(group, "--resume", False, "go on with what is in RUN", action="store_true")
    add(group, "--seed", 0, "(seed, step, problem, sample) decides every draw", type=int)
    add(group, "--validate-every", None, "updates between greedy validations (default 100 *)", type=int)
    add(group, "--save-every", 100, "updates between saves of RUN/last and RUN/state", type=int)
    add(group, "--keep", 2, "states in RUN/state, the newest ones", type=int)
    add(group, "--show-every", 20, "updates between printed sample rollouts, 0 never", type=int)
    add(group, "--shares-every", 10, "updates between measurements of share_cot and share_answer, 0 never", type=int)
    group = parser.add_argument_group("machine")
    add(group, "--device", None, "cpu or cuda (default cuda where there is one)")
    add(group, "--dtype", "float32", "of the transformer; bfloat16 has float32 master weights and logits, but a larger "
        "replay mismatch", choices=list(checkpoint.DTYPES))
    add(group, "--micro-batch", None, "rows per backward pass; does not change the gradient (default from the memory there "
        "is, at most 16 on CPUs, 64 on GPUs)", type=int)
    add(group, "--eval-batch", 64, "rows at once in validation", type=int)
    add(group, "--shard", "auto", "keep float32 masters and AdamW's moments in pieces, one on each rank; auto: above "
        f"{ABOVE / 1e9:.0f}e9 parameters", choices=["auto", "yes", "no"])
    add(group, "--plan", None, "only print how much memory each of so many ranks would need (--device cuda needs no GPU, "
        "--model no weights)", type=int, metavar="RANKS")
    add(group, "--patience", 30., "minutes that ranks wait for each other before they give up", type=float)
    args = parser.parse_args(argv)
    for action in parser._actions:  # a second look, without defaults: which flags were given?
        action.default = argparse.SUPPRESS
    return args, set(vars(parser.parse_args(argv)))


class Run:
    """All that a run consists of: model, problems, kind of token, optimizer, files."""

    def __init__(self, args: argparse.Namespace, world: World):
        self.world, self.args = world, args
        if args.resume:
            self.claim()
        self.source = world.in_turn(lambda: checkpoint.find(args.model))
        about = world.all_or_none(lambda: checkpoint.read_about(self.source))
        fill_defaults(args, about)
        args.out = Path(world.from_main(lambda: str(args.out)))  # the clocks of the ranks may differ
        if not args.resume and any((args.out / name).exists() for name in ("best", "last", "state")):
            raise InputError(f"{args.out}: expected an unused folder, found a run; add --resume to go on with it")
        problems = world.in_turn(lambda: datasets.load_problems(args.data))
        world.all_or_none(lambda: self.read(problems, about))
        saved = state.newest(args.out / "state", world) if args.resume else None
        facts = saved.facts if saved else {"step": 0, "best": -1.0, "before": None, "seconds": 0.0, "sources": self.sources,
                                           "sigma": args.gamma * noise_scale(self.model, args.noise)}
        self.check_sources(facts["sources"])
        self.sigma = facts["sigma"]
        self.kind = self.make_kind(args.tokens)
        check_top_k(args.top_k, self.model)
        self.optimizer = Optimizer(self.model, args.lr, args.steps, args.warmup, args.betas, args.weight_decay, args.clip,
                                   world, in_pieces(args, self.model))
        self.about = {**about, "prompt": self.template, "base": self.source.resolve().name, "data": Path(args.data).stem,
                      "tokens": args.tokens, "sigma": self.sigma, "gamma": args.gamma, "tau": self.kind.tau,
                      "noise": args.noise, "top_k": args.top_k, "logits": args.logits, "estimator": args.estimator,
                      "terms": args.terms}
        self.step, self.best, self.before, self.seconds = (facts[k] for k in ("step", "best", "before", "seconds"))
        if saved:
            self.optimizer.load(saved.read, self.step)
        self.choose_micro_batch()
        if not args.resume:
            self.claim()
        config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "resume"}
        self.metrics = world.from_main(lambda: self.begin_files({**config, "sigma": self.sigma, "world": world.size}))

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        if self.world.main:
            self.lock.close()

    def claim(self) -> None:
        """RUN belongs to this process from now on."""
        def take():
            self.args.out.mkdir(parents=True, exist_ok=True)
            self.lock = state.lock(self.args.out)
            if self.args.resume:  # a new RUN may be a folder with files of the user's
                half_written = (new.with_suffix("") for new in (self.args.out / "state").glob("step-*.new"))
                for path in (*(self.args.out / name for name in WRITES), *half_written):
                    atomic.recover(path)
        self.world.all_or_none(lambda: take() if self.world.main else None)

    def begin_files(self, config: dict) -> tables.MetricsFile:
        atomic.write_json(self.args.out / "config.json", config)
        return tables.MetricsFile(self.args.out / "metrics.jsonl", self.step)

    def read(self, problems: list[data.Problem], about: dict) -> None:
        """Problems to train, validate and test with, the prompt, the model; `sources`: SHA-256 of all that decides what is
        learnt from, but for the weights."""
        args = self.args
        self.template = datasets.read_prompt(args.prompt) if args.prompt else about.get("prompt", data.PAPER_PROMPT)
        tenth = min(200, len(problems) // 10)
        args.validation, args.test = (tenth if n is None else n for n in (args.validation, args.test))
        if min(args.validation, args.test) < 0:
            raise InputError(f"--validation, --test: expected at least 0, found {args.validation}, {args.test}")
        self.problems, held_out = data.split(problems, args.validation + args.test)
        self.validation, self.test = held_out[: args.validation], held_out[args.validation:]
        data.batch(len(self.problems), args.prompts, 0, 0)  # enough problems?
        if odd := [p.answer for p in problems if only_as_text(p.answer)]:
            self.world.say(f"{len(odd)} of {len(problems)} gold answers are neither numbers nor formulas nor words to the "
                           f"verifier, so that only the same text is right: {', '.join(f'{a!r:.60}' for a in odd[:50])}")
        content = {"--data": repr(problems).encode(), "--prompt": self.template.encode(),
                   **{name: (self.source / name).read_bytes() for name in ("config.json", "generation_config.json", *FILES)
                      if (self.source / name).is_file()}}
        self.sources = {name: hashlib.sha256(text).hexdigest() for name, text in content.items()}
        self.shares = self.world.share(args.prompts, args.group)
        if args.estimator == "prefix" and any(len(samples) < args.group for _, samples in self.shares):
            raise InputError(f"--estimator prefix: expected whole groups on every rank, found {self.world.size} ranks for "
                             f"B {args.prompts}")
        self.model, self.tokenizer = checkpoint.load(self.source, self.world.device, checkpoint.DTYPES[args.dtype])
        self.form = Format(self.tokenizer)

    def check_sources(self, before: dict) -> None:
        """Raises InputError where what the run had read has changed."""
        changed = [name for name in sorted({*before, *self.sources}) if before.get(name) != self.sources.get(name)]
        if changed:
            raise InputError(f"{self.args.out}: --resume: expected what the run began with, found other content of "
                             f"{', '.join(changed)} ({self.args.data}, {self.source})")

    def choose_micro_batch(self) -> None:
        """--micro-batch, if it was not given, and whether layers are computed again: the same on all ranks, and, as part of
        config.json, in a resumed run."""
        positions = self.args.cot + max(map(len, self.form.prefill)) + ANSWER_TOKENS
        rows, recompute = memory.choose_micro_batch(self.model, positions, tables.memory_bytes(self.world.device),
                                                  self.optimizer.pieces, self.world.device.type)
        self.model.recompute = any(self.world.gather_objects([recompute]))
        if self.args.micro_batch is None:
            self.args.micro_batch = min(self.world.gather_objects([rows]))
        if self.args.micro_batch < 1:
            raise InputError(f"--micro-batch: expected at least 1, found {self.args.micro_batch}")

    def save_model(self, name: str) -> None:
        """RUN/best or RUN/last, by the main rank.  Raises FloatingPointError rather than replace good weights by NaN."""
        bad = [name for name, p in self.model.named_parameters() if not p.isfinite().all()]
        if bad:
            raise FloatingPointError(f"step {self.step}: weights: expected finite numbers, found NaN or infinity in "
                                     f"{bad[0]}; nothing was saved; the last saved state in {self.args.out} can be resumed")
        self.world.all_or_none(lambda: self.world.main and checkpoint.save_model(
            self.args.out / name, self.model, self.source, self.about))

    def save(self) -> None:
        """RUN/last, then RUN/state, which is what --resume goes on from; after checking that all ranks agree."""
        self.world.check_identical(self.model.parameters())
        self.save_model("last")
        self.world.all_or_none(lambda: self.world.main and atomic.sync(self.metrics.path))
        state.save(self.args.out / "state", self.step, self.optimizer.state(), self.optimizer.pieces, {
            "best": self.best, "before": self.before, "seconds": self.seconds, "sigma": self.sigma,
            "sources": self.sources}, self.world, self.args.keep)

    def make_kind(self, name: str):
        """The kind called `name` with this run's noise; the trained kind has its own temperature."""
        args = self.args
        return make_kind(name, self.sigma, args.tau if name == args.tokens else None, args.noise, args.top_k)

    def evaluate(self, problems, verifier, *settings: str) -> dict:
        """Greedy settings on held-out problems: {setting: {"pass@1": fraction, ...}}."""
        return {setting: evaluation.evaluate(
            self.model, self.tokenizer, problems, setting, self.make_kind(setting.split("-")[0]), samples=1, seed=0,
            batch=self.args.eval_batch, cot_tokens=self.args.cot, template=self.template, verifier=verifier,
            world=self.world, journal=Journal(None, {}, self.world))[0] for setting in dict.fromkeys(settings) if problems}


def resumed(args: argparse.Namespace, given: set[str]) -> argparse.Namespace:
    """The flags of the run in args.out, with those that may change taken from the command line."""
    if "out" not in given:
        raise InputError("--resume: expected --out RUN with the run to go on with, found no --out")
    if not (args.out / "config.json").is_file():
        raise InputError(f"{args.out}: --resume: expected a run to go on with, found no {args.out / 'config.json'}")
    old = read_json(args.out / "config.json", required=True)
    changed = [f"{name} (was {old.get(name)}, now {getattr(args, name)})" for name in sorted(given - MAY_CHANGE)
               if str(getattr(args, name)) != str(old.get(name))]
    if changed:
        raise InputError(f"{args.out}: --resume: expected the flags of the run, found other values for {', '.join(changed)}")
    for name in set(vars(args)) - {"out", "resume"} - (given & MAY_CHANGE):
        setattr(args, name, old.get(name, getattr(args, name)))
    return args


def in_pieces(args: argparse.Namespace, model) -> bool:
    """Are float32 masters and AdamW's moments kept in pieces?"""
    return args.shard == "yes" or args.shard == "auto" and sum(p.numel() for p in model.parameters()) > ABOVE


def fill_defaults(args: argparse.Namespace, about: dict) -> None:
    """Flags that were not given: from the model folder's minisoft.json, else the paper's."""
    for name, value in {**DEFAULTS, **about.get("defaults", {})}.items():
        if getattr(args, name, "no such flag") is None:
            setattr(args, name, value[args.tokens] if isinstance(value, dict) else value)
    args.out = args.out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    for name in ("prompts", "group", "steps", "cot", "lr", "clip", "eval_batch", "validate_every", "save_every", "keep",
                 "patience", "plan"):
        if getattr(args, name) is not None and not getattr(args, name) > (name == "group"):
            expected = "at least 2 (leave-one-out)" if name == "group" else "a positive number"
            raise InputError(f"--{name.replace('_', '-')}: expected {expected}, found {getattr(args, name)}")


def train_step(run: Run, verifier) -> tuple[dict, list[dict]]:
    """One update (section 3): rollout, reward, advantage, replayed log-probability, summed gradient, step.

    Returns (metrics, this rank's generations).
    """
    args, model, world, seconds, start = run.args, run.model, run.world, {}, time.perf_counter()
    numbers = data.batch(len(run.problems), args.prompts, args.seed, run.step)
    numbers = world.balance(numbers, lambda number: len(run.problems[number].question))
    with tables.clock(seconds, "seconds_rollout"):  # eqs. 3-6
        requests = [Request(run.tokenizer.encode(data.prompt(run.problems[numbers[b]].question, run.template)),
                            (args.seed, run.step, numbers[b]), samples) for b, samples in run.shares]
        rollouts = rollout(model, run.form, run.kind, requests, args.cot)
    with tables.clock(seconds, "seconds_reward"):  # eq. 11
        before = Counter(verifier.counts)
        generations = [generation for (b, _), record in zip(run.shares, rollouts) for generation in evaluation.describe(
            run.form, record, numbers[b], run.problems[numbers[b]], verifier)]
        counts = sum(world.gather_objects([verifier.counts - before]), Counter())
    columns = ("reward", "cot_tokens", "answer_tokens", "entropy", "truncated")
    table = world.gather(torch.tensor([[g[c] for c in columns] for g in generations], dtype=torch.float64))
    rewards = table[:, 0].view(args.prompts, args.group)
    with tables.clock(seconds, "seconds_backward"):  # eqs. 9, 10, 12-15
        weights = [advantages(args.estimator, rewards[b].to(world.device), record)  # each (n,) or (n, S)
                   for (b, _), record in zip(run.shares, rollouts)]
        mismatch, shares = differentiate(run, rollouts, weights)
    grad_norm = run.optimizer.grad_norm()
    if not grad_norm < float("inf"):
        raise FloatingPointError(f"step {run.step + 1}: gradient norm: expected a finite number, found {grad_norm} "
                                 f"({culprits(run, mismatch)}); nothing was changed; the last saved state in {args.out} "
                                 "can be resumed")
    shares["share_E"] = run.optimizer.grad_norm("model.embed_tokens.weight")
    with tables.clock(seconds, "seconds_optimizer"):
        lr = run.optimizer.step(run.step, grad_norm)
    mean = dict(zip(columns, table.mean(0).tolist()))
    return {"step": run.step + 1, "reward": mean["reward"], "accuracy": (rewards == 100).double().mean().item(),
            "verifier": dict(sorted(counts.items())), "boxed": (rewards >= 10).double().mean().item(),
            "truncated": mean["truncated"],
            "cot_length": mean["cot_tokens"], "answer_length": mean["answer_tokens"], "entropy": mean["entropy"],
            "informative": (rewards != rewards[:, :1]).any(1).double().mean().item(), "grad_norm": grad_norm,
            **{name: norm / grad_norm if grad_norm else 0.0 for name, norm in shares.items()},
            "replay_mismatch": mismatch.total / mismatch.tokens, "replay_mismatch_max": mismatch.largest, "lr": lr,
            "seconds": time.perf_counter() - start, **seconds,
            "memory_gib": tables.peak_memory_gib(world.device)}, generations


def differentiate(run: Run, rollouts, weights: list[torch.Tensor]) -> tuple[Mismatch, dict]:
    """Collect the gradient of the loss (eq. 14) over all ranks; now and then also its parts' norms.

    The whole gradient is the sum of its CoT and answer terms, so a step that measures their shares computes them one
    after the other.  Problems whose advantages are all zero send no gradient and are left out.
    """
    measure = run.args.shares_every and run.step % run.args.shares_every == 0
    mismatch, shares = Mismatch(), {}
    for name in ("answer", "cot") if measure and run.args.terms == "both" else (run.args.terms,):
        mismatch = mismatch + passes(run, rollouts, weights, TERMS[name])
        norm = run.optimizer.collect()
        if measure:
            shares[f"share_{name}"] = norm
    if not mismatch.tokens:
        measure_mismatch(run.model, run.kind, rollouts[0], mismatch)
    return mismatch.over_ranks(run.world), shares


def passes(run: Run, rollouts, weights: list[torch.Tensor], terms: tuple[int, ...]) -> Mismatch:
    """This rank's backward passes.  Where the memory of any rank's GPU is too small, all ranks do theirs once more with half
    as many rows at a time; raises InputError where that is not enough."""
    args = run.args
    for last_try in (False, True):
        mismatch, failed = Mismatch(), False
        try:
            for record, weight in zip(rollouts, weights):
                backward(run.model, run.kind, record, weight, 1 / (args.prompts * args.group), args.micro_batch, mismatch,
                         terms)
        except torch.OutOfMemoryError:
            failed = True
        if not any(run.world.gather_objects([failed])):
            return mismatch
        run.optimizer.discard()
        torch.cuda.empty_cache()
        if last_try or args.micro_batch == 1:
            raise InputError(f"step {run.step + 1}: --micro-batch: expected backward passes that fit into the memory of the "
                             f"GPU, found {args.micro_batch} rows at a time too many; set a smaller --micro-batch or --cot, "
                             "--dtype bfloat16, --shard yes or more ranks")
        args.micro_batch //= 2
        run.world.say(f"step {run.step + 1}: out of memory; from now on {args.micro_batch} rows a backward pass")


def culprits(run: Run, mismatch: Mismatch) -> str:
    """Where NaN or infinities come from, as far as can be told."""
    names = [name for names in run.world.gather_objects([run.optimizer.not_finite()]) for name in names]
    finite = "are finite" if math.isfinite(mismatch.total) else "are not"
    return f"log-probabilities {finite}; first of {len(set(names))} parameters: {', '.join(list(dict.fromkeys(names))[:2])}"


def train(run: Run, verifier, stop: dict) -> None:
    """The run, from where it stands to its end, or to a request to stop."""
    args = run.args
    run.world.say(f"{args.model}: {sum(p.numel() for p in run.model.parameters()):,} parameters, {run.model.E.dtype}, "
            f"rms(E) {rms(run.model.E):.4f}, sigma {run.sigma:.4f}\n{len(run.problems)} training, "
            f"{len(run.validation)} validation, {len(run.test)} test problems of {args.data}\n"
            f"{args.tokens} tokens, B {args.prompts} x G {args.group}, {args.steps} updates, lr {args.lr} -> {args.out}")
    if run.before is None:
        run.before = run.evaluate(run.test, verifier, "hard-greedy", f"{args.tokens}-greedy")
    with tqdm(total=args.steps, initial=run.step, disable=not run.world.main, unit="step") as bar:
        while run.step < args.steps:
            run.model.rounded = args.logits == "bfloat16"
            metrics, generations = train_step(run, verifier)
            run.model.rounded = False
            run.step, run.seconds = run.step + 1, run.seconds + metrics["seconds"]
            if run.validation and (run.step % args.validate_every == 0 or run.step == args.steps):
                metrics["validation"] = run.evaluate(run.validation, verifier, "hard-greedy")["hard-greedy"]["pass@1"]
                if metrics["validation"] > run.best:
                    run.save_model("best")
                run.best = max(run.best, metrics["validation"])
                run.world.say(f"step {run.step}: validation {tables.percent(metrics['validation'])} (hard-greedy)")
            run.world.all_or_none(lambda: run.world.main and run.metrics.write(metrics))
            if args.show_every and run.step % args.show_every == 0:
                run.world.say(f"step {run.step}, a rollout:\n{tables.sample_text(generations[0])}")
            bar.set_postfix(reward=f"{metrics['reward']:.1f}", acc=f"{metrics['accuracy']:.2f}",
                            cot=f"{metrics['cot_length']:.0f}", grad=f"{metrics['grad_norm']:.3g}",
                            s=f"{metrics['seconds']:.2f}")
            bar.update()
            stopping = max(run.world.gather_objects([stop["asked"]]))  # all ranks stop together
            if stopping or run.step % args.save_every == 0 or run.step == args.steps:
                run.save()
            if stopping and run.step < args.steps:
                run.world.say(f"stopped after step {run.step}; to go on: python train.py --out {args.out} --resume")
                raise SystemExit(0 if stopping == signal.SIGTERM else 130)


def finish(run: Run, verifier) -> None:
    """Test the best model, write RUN/summary.json, print the table before/after."""
    best = run.args.out / "best"
    if best.is_dir():
        run.model = checkpoint.load_model(best, run.world.device, run.model.E.dtype)
    after = run.evaluate(run.test, verifier, *run.before)
    run.world.all_or_none(lambda: run.world.main and atomic.write_json(run.args.out / "summary.json", {
        "before": run.before, "after": after, "steps": run.step, "seconds": round(run.seconds, 1),
        "validation": run.best if run.validation else None}))
    rows = [["greedy accuracy", "before", "after"]] + [
        [s, tables.percent(run.before[s]["pass@1"]), tables.percent(after[s]["pass@1"])] for s in after]
    run.world.say(f"\n{len(run.test)} test problems, {run.args.tokens} tokens, {run.step} updates in {run.seconds:.0f} s\n"
                  f"{tables.table(rows) if after else ''}\nmodel: {best if best.is_dir() else run.args.out / 'last'}")


def main(argv=None) -> None:
    args, given = read_flags(argv)
    stop = {"asked": 0}  # the signal that asked, 0 if none has

    def ask(signum, frame):
        if signum == stop["asked"] == signal.SIGINT:
            raise KeyboardInterrupt
        stop["asked"] = signum
        print("\nstopping after this step or evaluation (Ctrl-C once more to stop at once)", file=sys.stderr)
    try:
        if args.plan is not None:
            source = checkpoint.find(args.model)
            fill_defaults(args, checkpoint.read_about(source))
            return print(memory.of_run(args, source, args.plan if in_pieces(args, checkpoint.outline(source)) else 1))
        args = resumed(args, given) if args.resume else args
        with World(args.device, args.patience) as world, Verifier(workers=WORKERS) as verifier, Run(args, world) as run:
            signal.signal(signal.SIGINT, ask), signal.signal(signal.SIGTERM, ask)
            train(run, verifier, stop)
            finish(run, verifier)
    except torch.OutOfMemoryError as error:
        sys.exit("train.py: error: out of memory outside the backward passes; set a smaller --group, --cot or --eval-batch, "
                 f"or --dtype bfloat16: {str(error).splitlines()[0]:.200}")
    except (InputError, FloatingPointError, OSError, RankError) as error:
        sys.exit(f"train.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted")


if __name__ == "__main__":
    as_program(main)
