#!/usr/bin/env python3
"""Train a Llama or Qwen model to reason in soft tokens (arXiv 2509.19170).

    python train.py                                       # the embedded model, minutes on two cores
    python train.py --model FOLDER --data FILE.jsonl --tokens soft            # the paper's settings
    python train.py --out RUN --resume                     # go on with what is in RUN, bit for bit

It makes ranks of itself: one a GPU, of all that the machine has and B x G can be shared over; on a
CPU, for a small model, one a core, unless OMP_NUM_THREADS is set.  torchrun is for several nodes.
Writes RUN/metrics.jsonl (explained in minisoft/run/README.md), config.json, last/ and best/
(Hugging Face folders), state/ and summary.json.  Ctrl-C, SIGTERM and a terminal that is closed save
and stop, with exit status 130, 0 and 0; a second Ctrl-C stops at once.
A default marked * may be replaced by the model folder's minisoft.json; that of weights/tiny says
--data tiny, B 16, 60 updates, CoT 80.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from minisoft.errors import InputError
from minisoft.io import WEIGHTS, checkpoint
from minisoft.kinds import COT, OPTIONS, TAU_OF, TEMPLATE, TOKENS, TRAINING
from minisoft.kinds.options import COUNT, DEVICE, NATURAL, SIZE, Number, Option, parse
from minisoft.reinforce import ADVANTAGES
from minisoft.run import metrics, plan, policy, ranks, settings
from minisoft.run.setup import Run, set_up
from minisoft.run.validation import finish, keep_best
from minisoft.run.world import RankError, World, as_program, read_device
from minisoft.verifier.own import verifier_of


def train(run: Run) -> None:
    """The algorithm (section 3): REINFORCE with a leave-one-out baseline on B problems, G samples
    of each, an update; with several ranks, each has its part of the B x G samples."""
    B, G, seed = run.args.prompts, run.args.group, run.args.seed
    for step in run.steps():  # from where the run stands to its end, or to a signal
        parts = run.parts(step)  # this rank's problems and samples
        with run.clock("rollout"):
            requests = [
                run.policy.request(x.problem, (seed, step, x.number), x.samples) for x in parts
            ]
            rollouts = run.policy.rollout(requests)  # eqs. 3-6
        with run.clock("reward"):
            scores = run.score(parts, rollouts)  # eq. 11
        with run.clock("backward"):
            advantage = ADVANTAGES[run.args.advantage]  # eqs. 12-13, or GRPO's
            advantages = advantage(scores.rewards)  # (B, G)
            of_rows = [advantages[x.slot, list(x.samples)] for x in parts]
            mismatch = run.differentiate(rollouts, of_rows, 1 / (B * G))  # eqs. 9-10, 14-15
        with run.clock("optimizer"):
            update = run.update(mismatch)  # sum over ranks, clip, AdamW
        row = run.measure(scores, mismatch, update)  # of metrics.jsonl
        if run.due(run.args.validate_every):
            row |= keep_best(run)  # greedy, by the run's kind and hard
        run.log(row, scores)
        if run.due(run.args.save_every):
            run.save()
    finish(run)


FREE = "may differ with --resume"
FLAGS = {
    "model and problems": [
        Option("model", str, "folder, or hub id owner/name", str(WEIGHTS / "tiny")),
        TRAINING["data"],
        TEMPLATE,
        Option("validation", NATURAL, "held out to choose RUN/best (default 10 %, at most 200)"),
        Option("test", NATURAL, "held out for the table before/after (default 10 %, at most 200)"),
        settings.DTYPE,
    ],
    "chain of thought (section 3)": [
        replace(TOKENS, kept=False),
        TAU_OF,
        *OPTIONS,
        COT,
        replace(COT, name="eval_cot", help="the same in validation", default=settings.EVAL_COT),
    ],
    "REINFORCE (appendix A)": [
        *[TRAINING[name] for name in ("prompts", "group", "lr", "warmup")],
        settings.REWARD,
        settings.ADVANTAGE,
        Option(
            "betas", Number(float, 0, below=1), "AdamW; open in the paper", [0.9, 0.95], nargs=2
        ),
        Option("weight_decay", Number(float, 0), "AdamW; open in the paper", 0.0),
        Option("max_grad_norm", SIZE, "a larger gradient is scaled down; open in the paper", 1.0),
        Option("seed", Number(int), "(seed, step, problem, sample) decides every draw", 0),
    ],
    f"run, {FREE}": [
        Option("out", Path, "RUN, the folder to write (default runs/DATE-TIME)"),
        Option("resume", bool, "go on with what is in RUN", False),
        TRAINING["steps"],
        TRAINING["validate_every"],
        Option("save_every", COUNT, "updates between saves of RUN/last and RUN/state", 100),
        Option("keep", COUNT, "states in RUN/state, the newest ones", 2),
        Option("show_every", NATURAL, "updates between sample rollouts, 0 never", 20),
        Option(
            "track",
            str,
            "send the numbers of metrics.jsonl to a tracker too (extras of these names; "
            "tensorboard: RUN/tensorboard)",
            "none",
            choices=metrics.TRACKERS,
        ),
        Option("plain", bool, "by the definitions alone: same within rounding, slowly", False),
    ],
    f"machine, {FREE}": [
        DEVICE,
        Option(
            "micro_batch",
            COUNT,
            "rows per backward pass; does not change the gradient (default from the memory there "
            "is, at most 16 on CPUs, 64 on GPUs)",
        ),
        Option("eval_batch", COUNT, "rows at once in validation", 64),
        Option(
            "shard",
            str,
            "keep float32 masters and AdamW's moments in pieces, one on each rank; auto: above "
            f"{plan.SHARDED_ABOVE / 1e9:.0f}e9 parameters",
            "auto",
            choices=("auto", "yes", "no"),
        ),
        Option(
            "plan",
            COUNT,
            "only print the memory that each of so many ranks would need, and the seconds of an "
            "update on 1 to 64 (--device cuda needs no GPU, --model no weights)",
            metavar="RANKS",
        ),
        Option("patience", Number(float, 1e-3, 1e6), "minutes that ranks wait for others", 30.0),
    ],
}
RESUMED = {row.name for title, rows in FLAGS.items() if FREE in title for row in rows}


def read_flags(argv=None) -> tuple[argparse.Namespace, set[str]]:
    """(all flags, names of those that were given).  Raises InputError."""
    args, given = parse(FLAGS, argv, description=__doc__, allow_abbrev=False)  # no --prompt
    args.saved = None  # the update after which RUN/state was saved, in a run that goes on
    args.prompt = None  # the text of --template chat, likewise
    return args, given


def print_plan(args: argparse.Namespace) -> None:
    """--plan."""
    source = checkpoint.find(args.model)
    settings.fill(args, checkpoint.read_about(source), read_device(args.device).type)
    flags = settings.Flags.of(args)
    print(plan.text(args, source, policy.settings(source, [args.tokens], flags, args.cot)))


def main(argv=None) -> None:
    try:
        args, given = read_flags(argv)
        if args.plan is not None:
            return print_plan(args)
        if args.resume:
            args = settings.resumed(args, given - RESUMED, given & RESUMED)
        with ranks.several(ranks.fitting(args) if argv is None else 1):  # as a program
            with World(args.device, args.patience) as world, verifier_of(args.reward) as verifier:
                with set_up(args, world, verifier) as run:
                    train(run)
    except (InputError, FloatingPointError, OSError, RankError) as error:
        sys.exit(f"train.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted")


if __name__ == "__main__":
    as_program(main)
