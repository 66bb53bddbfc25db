#!/usr/bin/env python3
"""Train a Llama or Qwen model to reason in soft tokens (arXiv 2509.19170).

    python train.py                                       # the embedded model, minutes on two cores
    python train.py --model FOLDER --data FILE.jsonl --tokens soft            # the paper's settings
    torchrun --nproc-per-node 8 train.py --model FOLDER --data FILE.jsonl     # the same on 8 ranks
    python train.py --out RUN --resume                     # go on with what is in RUN, bit for bit

On a CPU a small model is trained by ranks of one thread, one a core, without torchrun
(minisoft/run/ranks.py), unless OMP_NUM_THREADS is set.
Writes RUN/metrics.jsonl (explained in minisoft/run/metrics.py), config.json, last/ and best/
(Hugging Face folders), state/ and summary.json.  Ctrl-C, SIGTERM and a terminal that is closed save
and stop, with exit status 130, 0 and 0; a second Ctrl-C stops at once.
A default marked * may be replaced by the model folder's minisoft.json, as weights/tiny does.
"""

import argparse
import sys
from pathlib import Path

from minisoft.errors import InputError
from minisoft.io import WEIGHTS, checkpoint
from minisoft.kinds import KINDS, NOISES, OPTIONS, TAU, TAU_TOP_K
from minisoft.reinforce import leave_one_out
from minisoft.run import plan, ranks, settings, track
from minisoft.run.session import Run
from minisoft.run.world import RankError, World, as_program, read_device
from minisoft.soft import GAMMA
from minisoft.verifier.process import WORKERS, Verifier


def train(run: Run) -> None:
    """The algorithm (section 3): REINFORCE with a leave-one-out baseline on B problems, G samples
    of each, an update; with several ranks, each has its part of the B x G samples."""
    B, G = run.args.prompts, run.args.group
    for step in run.steps():  # from where the run stands to its end, or to a signal
        parts = run.samples.parts(step)  # this rank's problems and samples
        with run.clock("rollout"):
            requests = [run.policy.request(x.problem, x.key, x.samples) for x in parts]
            rollouts = run.policy.rollout(requests)  # eqs. 3-6
        with run.clock("reward"):
            scores = run.score(parts, rollouts)  # eq. 11
        with run.clock("backward"):
            advantages = leave_one_out(scores.rewards(B))  # (B, G), eqs. 12-13
            of_rank = run.samples.of_rank(advantages, parts)
            mismatch = run.differentiate(rollouts, of_rank, 1 / (B * G))  # eqs. 9-10, 14-15
        with run.clock("optimizer"):
            update = run.update(mismatch)  # sum over ranks, clip, AdamW
        row = run.measure(scores, mismatch, update)  # of metrics.jsonl
        if run.due(run.args.validate_every):
            row |= run.keep_best()  # greedy, by the run's kind and hard
        run.log(row, scores)
        if run.due(run.args.save_every):
            run.save()
    run.finish()


def read_flags(argv=None) -> tuple[argparse.Namespace, set[str]]:
    """(all flags, names of those that were given)."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --prompt is not --prompts
    )
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, (default, text, how) in flags.items():
            shown = "" if default is None or how.get("action") else f" (default {default})"
            group.add_argument(name, default=default, help=text.replace("%", "%%") + shown, **how)
    args = parser.parse_args(argv)
    args.saved = None  # the update after which RUN/state was saved, in a run that goes on
    for action in parser._actions:  # a second look, without defaults: which flags were given?
        action.default = argparse.SUPPRESS
    return args, set(vars(parser.parse_args(argv)))


NUMBER, WHOLE, SWITCH = {"type": float}, {"type": int}, {"action": "store_true"}
FLAGS = {  # group -> flag -> (default, help, how argparse reads it)
    "model and problems": {
        "--model": (str(WEIGHTS / "tiny"), "folder, or hub id owner/name", {}),
        "--data": (
            None,
            "problems: .jsonl or .json file, tiny, or a hub name such as gsm8k (default gsm8k *)",
            {},
        ),
        "--template": (
            None,
            "file with the prompt, QUESTION for the question, without its last newline (default "
            "the paper's *; sec. 4)",
            {},
        ),
        "--validation": (
            None,
            "problems held out to choose RUN/best (default 10 % of all, at most 200)",
            WHOLE,
        ),
        "--test": (
            None,
            "problems held out for the table before/after (default 10 %, at most 200)",
            WHOLE,
        ),
    },
    "chain of thought (section 3)": {
        "--tokens": (
            "soft",
            "kind of CoT token: the paper's hard, soft, fuzzy; multiplex (arXiv 2601.08808), "
            "gumbel (SofT-GRPO, arXiv 2511.06411), covariance (minisoft/kinds/)",
            {"choices": KINDS},
        ),
        "--tau": (
            None,
            f"softmax temperature of the CoT in training (default {TAU} *, with --top-k "
            f"{TAU_TOP_K}; F.3)",
            NUMBER,
        ),
        "--gamma": (
            None,
            "noise factor: sigma = gamma * noise scale, rms(E) for the embedding (default "
            f"{GAMMA} *; F.1)",
            NUMBER,
        ),
        "--noise": (
            None,
            "where soft and fuzzy tokens get their noise (default embedding *; F.2)",
            {"choices": NOISES},
        ),
        "--top-k": (
            None,
            "noise on the K best logits, the rest -inf (default all, or without --noise *; F.2)",
            {**WHOLE, "metavar": "K"},
        ),
        "--width": (
            None,
            "K: multiplex, tokens drawn a step (default 3 *, its paper's); covariance, noise as "
            "of the mean of K tokens (default 3 *); gumbel, the best tokens that are kept (default "
            "5 *, its top-k)",
            {**WHOLE, "metavar": "K"},
        ),
        "--top-p": (
            None,
            "gumbel: of the best tokens those that together have this probability (default 0.95 *)",
            {**NUMBER, "metavar": "P"},
        ),
        "--cot": (None, "budget in tokens (default 128 *; paper: 128 GSM8K, 512 MATH)", WHOLE),
        "--eval-cot": (None, "the same in validation and test (default 512 *)", WHOLE),
    },
    "REINFORCE (appendix A)": {
        "--prompts": (
            None,
            "B, problems a step over all ranks (default 2 *)",
            {**WHOLE, "metavar": "B"},
        ),
        "--group": (None, "G, samples of each problem (default 32 *)", {**WHOLE, "metavar": "G"}),
        "--steps": (
            None,
            "updates (default 4000 *); with --resume another number goes on by the cosine of that "
            "many: the learning rate jumps, up for more updates, and a line says how far",
            WHOLE,
        ),
        "--lr": (
            None,
            "peak learning rate (default 6e-6 *; paper: Llama-8B 3e-6, Qwen-3B 8e-6)",
            NUMBER,
        ),
        "--warmup": (None, "updates of linear warm-up before the cosine (default 20 *)", WHOLE),
        "--betas": ([0.9, 0.95], "AdamW; open in the paper", {"type": float, "nargs": 2}),
        "--weight-decay": (0.0, "AdamW; open in the paper", NUMBER),
        "--max-grad-norm": (
            1.0,
            "a gradient whose norm is larger is scaled down to it; open in the paper",
            NUMBER,
        ),
    },
    "run": {
        "--out": (None, "RUN, the folder to write (default runs/DATE-TIME)", {"type": Path}),
        "--resume": (False, "go on with what is in RUN", SWITCH),
        "--seed": (0, "(seed, step, problem, sample) decides every draw", WHOLE),
        "--validate-every": (
            None,
            "updates between greedy validations, by the run's own kind and hard (default 50 *)",
            WHOLE,
        ),
        "--save-every": (100, "updates between saves of RUN/last and RUN/state", WHOLE),
        "--keep": (2, "states in RUN/state, the newest ones", WHOLE),
        "--show-every": (20, "updates between printed sample rollouts, 0 never", WHOLE),
        "--track": (
            "none",
            "send the numbers of metrics.jsonl to a tracker too (extras of these names; "
            "tensorboard: RUN/tensorboard)",
            {"choices": track.TRACKERS},
        ),
        "--plain": (
            False,
            "by the definitions of minisoft/*.py alone: the same numbers within rounding, slowly",
            SWITCH,
        ),
    },
    "machine": {
        "--device": (None, "cpu or cuda (default cuda where there is one)", {}),
        "--dtype": (
            None,
            "of the transformer (default bfloat16 on GPUs, float32 on CPUs); bfloat16 has float32 "
            "master weights and logits, and a larger replay mismatch",
            {"choices": list(checkpoint.DTYPES)},
        ),
        "--micro-batch": (
            None,
            "rows per backward pass; does not change the gradient (default from the memory there "
            "is, at most 16 on CPUs, 64 on GPUs)",
            WHOLE,
        ),
        "--eval-batch": (64, "rows at once in validation", WHOLE),
        "--shard": (
            "auto",
            "keep float32 masters and AdamW's moments in pieces, one on each rank; auto: above "
            f"{plan.SHARDED_ABOVE / 1e9:.0f}e9 parameters",
            {"choices": ["auto", "yes", "no"]},
        ),
        "--plan": (
            None,
            "only print how much memory each of so many ranks would need (--device cuda needs no "
            "GPU, --model no weights)",
            {**WHOLE, "metavar": "RANKS"},
        ),
        "--patience": (30.0, "minutes that ranks wait for each other before giving up", NUMBER),
    },
}


def print_plan(args: argparse.Namespace) -> None:
    """--plan: no GPU and no weights are needed."""
    source = checkpoint.find(args.model)
    folder = checkpoint.read_about(source)
    settings.fill(args, folder, read_device(args.device).type)
    own = {name: getattr(args, name) for name in OPTIONS}
    flags = settings.Flags(args.template, noise=args.noise, top_k=args.top_k, own=own)
    flags.check([args.tokens])
    print(plan.text(args, source, settings.resolve(folder, flags, args.cot)))


def run_as_rank(args: argparse.Namespace, facts: dict, variant) -> None:
    """The part of a run that is this rank's."""
    with World(args.device, args.patience) as world, Verifier(workers=WORKERS) as verifier:
        with Run(args, world, verifier, facts) as run:
            if variant:
                variant.adapt(run)
            train(run)


def main(argv=None, variant=None) -> None:
    """variant: None, or what `minisoft.lab.variants` changes: `facts`, and `adapt(run)`."""
    args, given = read_flags(argv)
    facts = variant.facts if variant else {}
    try:
        if args.plan is not None:
            print_plan(args)
            return
        if args.resume:
            args = settings.resumed(args, given, facts)
        with ranks.several(ranks.fitting(args) if argv is None else 1):  # as a program
            run_as_rank(args, facts, variant)
    except (InputError, FloatingPointError, OSError, RankError) as error:
        sys.exit(f"train.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted")


if __name__ == "__main__":
    as_program(main)
