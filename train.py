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
from dataclasses import replace
from pathlib import Path

from minisoft.errors import InputError
from minisoft.io import WEIGHTS, checkpoint
from minisoft.kinds import COT, NOISE, TAU_OF, TEMPLATE, TOKENS, TRAINING
from minisoft.kinds.options import TINY, Option, parse
from minisoft.reinforce import leave_one_out
from minisoft.run import plan, policy, ranks, settings, track
from minisoft.run.session import Run
from minisoft.run.world import RankError, World, as_program, read_device
from minisoft.verifier.process import WORKERS, Verifier


def train(run: Run) -> None:
    """The algorithm (section 3): REINFORCE with a leave-one-out baseline on B problems, G samples
    of each, an update; with several ranks, each has its part of the B x G samples."""
    B, G, seed = run.args.prompts, run.args.group, run.args.seed
    for step in run.steps():  # from where the run stands to its end, or to a signal
        parts = run.samples.parts(step)  # this rank's problems and samples
        with run.clock("rollout"):
            requests = [
                run.policy.request(x.problem, (seed, step, x.number), x.samples) for x in parts
            ]
            rollouts = run.policy.rollout(requests)  # eqs. 3-6
        with run.clock("reward"):
            scores = run.score(parts, rollouts)  # eq. 11
        with run.clock("backward"):
            advantages = leave_one_out(scores.rewards(B))  # (B, G), eqs. 12-13
            own = run.samples.own(advantages, parts)
            mismatch = run.differentiate(rollouts, own, 1 / (B * G))  # eqs. 9-10, 14-15
        with run.clock("optimizer"):
            update = run.update(mismatch)  # sum over ranks, clip, AdamW
        row = run.measure(scores, mismatch, update)  # of metrics.jsonl
        if run.due(run.args.validate_every):
            row |= run.keep_best()  # greedy, by the run's kind and hard
        run.log(row, scores)
        if run.due(run.args.save_every):
            run.save()
    run.finish()


FLAGS = {
    "model and problems": [
        Option("model", str, "folder, or hub id owner/name", str(WEIGHTS / "tiny")),
        TRAINING["data"],
        TEMPLATE,
        Option(
            "validation",
            int,
            "problems held out to choose RUN/best (default 10 % of all, at most 200)",
            least=0,
        ),
        Option(
            "test",
            int,
            "problems held out for the table before/after (default 10 %, at most 200)",
            least=0,
        ),
    ],
    "chain of thought (section 3)": [
        replace(TOKENS, kept=False),
        TAU_OF,
        *NOISE,
        COT,
        replace(
            COT, name="eval_cot", help="the same in validation and test", default=settings.EVAL_COT
        ),
    ],
    "REINFORCE (appendix A)": [
        *[TRAINING[name] for name in ("prompts", "group", "steps", "lr", "warmup")],
        Option("betas", float, "AdamW; open in the paper", [0.9, 0.95], least=0, most=1, nargs=2),
        Option("weight_decay", float, "AdamW; open in the paper", 0.0, least=0),
        Option(
            "max_grad_norm",
            float,
            "a gradient whose norm is larger is scaled down to it; open in the paper",
            1.0,
            least=TINY,
        ),
    ],
    "run": [
        Option("out", Path, "RUN, the folder to write (default runs/DATE-TIME)", resumed=True),
        Option("resume", bool, "go on with what is in RUN", False, resumed=True),
        Option("seed", int, "(seed, step, problem, sample) decides every draw", 0),
        TRAINING["validate_every"],
        Option(
            "save_every",
            int,
            "updates between saves of RUN/last and RUN/state",
            100,
            least=1,
            resumed=True,
        ),
        Option("keep", int, "states in RUN/state, the newest ones", 2, least=1, resumed=True),
        Option(
            "show_every",
            int,
            "updates between printed sample rollouts, 0 never",
            20,
            least=0,
            resumed=True,
        ),
        Option(
            "track",
            str,
            "send the numbers of metrics.jsonl to a tracker too (extras of these names; "
            "tensorboard: RUN/tensorboard)",
            "none",
            choices=track.TRACKERS,
            resumed=True,
        ),
        Option(
            "plain",
            bool,
            "by the definitions of minisoft/*.py alone: the same numbers within rounding, slowly",
            False,
            resumed=True,
        ),
    ],
    "machine": [
        Option("device", str, "cpu or cuda (default cuda where there is one)", resumed=True),
        Option(
            "dtype",
            str,
            "of the transformer (default bfloat16 on GPUs, float32 on CPUs); bfloat16 has float32 "
            "master weights and logits, and a larger replay mismatch",
            choices=tuple(checkpoint.DTYPES),
        ),
        Option(
            "micro_batch",
            int,
            "rows per backward pass; does not change the gradient (default from the memory there "
            "is, at most 16 on CPUs, 64 on GPUs)",
            least=1,
            resumed=True,
        ),
        Option("eval_batch", int, "rows at once in validation", 64, least=1, resumed=True),
        Option(
            "shard",
            str,
            "keep float32 masters and AdamW's moments in pieces, one on each rank; auto: above "
            f"{plan.SHARDED_ABOVE / 1e9:.0f}e9 parameters",
            "auto",
            choices=("auto", "yes", "no"),
            resumed=True,
        ),
        Option(
            "plan",
            int,
            "only print how much memory each of so many ranks would need (--device cuda needs no "
            "GPU, --model no weights)",
            least=1,
            metavar="RANKS",
        ),
        Option(
            "patience",
            float,
            "minutes that ranks wait for each other before giving up",
            30.0,
            least=1e-3,
            most=1e6,
            resumed=True,
        ),
    ],
}
RESUMED = {row.name for rows in FLAGS.values() for row in rows if row.resumed}


def read_flags(argv=None) -> tuple[argparse.Namespace, set[str]]:
    """(all flags, names of those that were given).  Raises InputError."""
    args, given = parse(FLAGS, argv, description=__doc__, allow_abbrev=False)  # no --prompt
    args.saved = None  # the update after which RUN/state was saved, in a run that goes on
    args.prompt = None  # the text of --template chat, likewise
    return args, given


def print_plan(args: argparse.Namespace) -> None:
    """--plan: no GPU and no weights are needed."""
    source = checkpoint.find(args.model)
    settings.fill(args, checkpoint.read_about(source), read_device(args.device).type)
    flags = settings.Flags.of(args)
    print(plan.text(args, source, policy.settings(source, [args.tokens], flags, args.cot)))


def run_as_rank(args: argparse.Namespace, facts: dict, variant) -> None:
    """The part of a run that is this rank's."""
    with World(args.device, args.patience) as world, Verifier(workers=WORKERS) as verifier:
        with Run(args, world, verifier, facts) as run:
            if variant:
                variant.adapt(run)
            train(run)


def main(argv=None, variant=None) -> None:
    """variant: None, or what `minisoft.lab.variants` changes: `facts`, and `adapt(run)`."""
    facts = variant.facts if variant else {}
    try:
        args, given = read_flags(argv)
        if args.plan is not None:
            print_plan(args)
            return
        if args.resume:
            args = settings.resumed(args, given - RESUMED, given & RESUMED, facts)
        with ranks.several(ranks.fitting(args) if argv is None else 1):  # as a program
            run_as_rank(args, facts, variant)
    except (InputError, FloatingPointError, OSError, RankError) as error:
        sys.exit(f"train.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted")


if __name__ == "__main__":
    as_program(main)
