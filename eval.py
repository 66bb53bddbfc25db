#!/usr/bin/env python3
"""Evaluate models in the six inference settings of "Soft Tokens, Hard Truths" (section 4).

    python eval.py                                               # the embedded model, hard-greedy
    python eval.py --model RUN/best --data tiny-test --settings all --samples 32 --out result.json
    python eval.py --model base=M soft=RUN1/best soft=RUN2/best --data gsm8k-test mmlu --out r.json
    python eval.py --model RUN/best --show 3 --settings soft-sample      # look inside one CoT

(seed, setting, problem, sample) decides every draw; --batch and the number of GPUs change nothing.
The answer is always decoded greedily.  A greedy setting has one sample a problem, of the first
seed.  Rows of a multiple-choice file (HellaSwag, ARC, MMLU) are scored instead: accuracy, and NLL
per token of the correct answer.  --out FILE.json gets the numbers, FILE.jsonl beside it every
generation, FILE.md the tables; only what an earlier call wrote is written over; a call that was
killed goes on.  A default marked * may be replaced by the model folder's minisoft.json.  `python -m
minisoft.lab.tables` merges result files, draws figures.
"""

import argparse
import json
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from minisoft import evaluation
from minisoft.data import Choice
from minisoft.errors import InputError, expect
from minisoft.evaluation import SETTINGS
from minisoft.io import WEIGHTS, atomic, datasets
from minisoft.kinds import COT, KINDS, OPTIONS, SIGMA, TAU_OF, TEMPLATE
from minisoft.kinds.options import COUNT, DEVICE, NATURAL, Number, Option, parse, read_pair
from minisoft.run import ranks, show
from minisoft.run.evaluate import Evaluator
from minisoft.run.settings import DTYPE, DTYPE_ON, EVAL_COT, REWARD
from minisoft.run.subjects import Subject, find_all, open_journal, output
from minisoft.run.tables import tables
from minisoft.run.world import RankError, World, as_program
from minisoft.verifier.own import verifier_of

FLAGS = {
    "models and problems": [
        Option(
            "model",
            str,
            "folders or hub ids; those of one NAME are seeds of a row of the tables; without it a "
            "row is called by its training, or its folder, and what differs in the paths",
            [str(WEIGHTS / "tiny")],
            nargs="+",
            metavar="[NAME=]MODEL",
        ),
        Option(
            "data",
            str,
            "problems or multiple choice: files, folders as train.py has, tiny-test, or hub names: "
            f"{', '.join(datasets.HUB)} (default gsm8k-test, of the embedded model tiny-test)",
            nargs="+",
        ),
        TEMPLATE,
        REWARD,
        Option("limit", COUNT, "only the first N problems of each (default all)", metavar="N"),
    ],
    "inference (section 4)": [
        Option("settings", str, f"all, or some of {','.join(SETTINGS)}", "hard-greedy"),
        Option("samples", COUNT, "samples a problem in sample settings", 32),
        replace(COT, help="CoT budget in tokens", default=EVAL_COT),
        Option("seed", Number(int), "of all draws; several: as many runs", [0], nargs="+"),
    ],
    "the CoT's mixtures and noise (section 3, appendix F)": [
        replace(TAU_OF, type=str, nargs="+", metavar="KIND=TAU"),
        *OPTIONS,
        SIGMA,
    ],
    "machine": [
        Option("batch", COUNT, "rows (questions) at once", 64),
        DEVICE,
        DTYPE,
        Option("plain", bool, "by the definitions, slowly, no engine", False),
    ],
    "output": [
        Option("out", Path, "file for the numbers (default: only printed)"),
        Option(
            "show",
            NATURAL,
            "instead of evaluating: print the CoT of problem N (from 0), sample 0, of every model "
            "and setting, and draw it (--out FILE.png, default show-N.png; extra `plot`)",
            metavar="N",
        ),
    ],
}


def read_flags(argv=None) -> argparse.Namespace:
    """Raises InputError."""
    args, _ = parse(FLAGS, argv, description=__doc__)
    expect(not (args.gamma and args.sigma), SIGMA.flag, "none with --gamma", args.sigma)
    suffix = ".json" if args.show is None else ".png"
    is_file = args.out is None or (args.out.suffix == suffix and not args.out.is_dir())
    expect(is_file, "--out", f"the name of a file, ending in {suffix}", str(args.out))
    for name in ("model", "data", "seed"):
        given = getattr(args, name) or []
        expect(len(set(given)) == len(given), f"--{name}", "each once", given)
    if args.show is not None:
        args.out = args.out or Path(f"show-{args.show}.png")
    args.settings = evaluation.read_settings(args.settings, KINDS)
    args.tau = dict(read_pair(text, KINDS, TAU_OF) for text in args.tau or [])
    return args


def run_all(args, subjects: list[Subject], sources: dict, common: dict, file) -> list[dict]:
    """The result of every model x data x seed; each generation becomes a line of `file`.
    common: what all models are evaluated with, fields of Evaluator."""
    results, world, first = [], common["world"], args.seed[0]
    for subject in subjects:
        evaluator = Evaluator(subject.load(args, world.device), **common)
        sha256 = common["verifier"].own_sha256
        for (name, rows), seed in product(sources.items(), args.seed):
            is_choice, run = isinstance(rows[0], Choice), len(results)
            if is_choice and seed != first:
                continue  # nothing is drawn
            result = {
                "model": subject.given,
                "label": subject.label,
                "named": subject.named,
                "data": name,
                "problems": len(rows),
                "samples": args.samples,
                "seed": seed,
                **evaluator.policy.settings.facts(),
                **({"reward": {"file": args.reward, "sha256": sha256}} if sha256 else {}),
                "dtype": args.dtype,
                "settings": {},
            }
            results.append(result)
            if is_choice:
                result["choices"], made = evaluator.choices(rows, run)
                world.all_or_none(partial(write_lines, file, run, "choices", made))
                continue
            for setting in [each for each in args.settings if seed == first or not each.greedy]:
                world.say(f"{subject.label} on {name}, seed {seed}: {setting}")
                summary, made = evaluator.problems(rows, setting, args.samples, seed, run)
                result["settings"][str(setting)] = summary
                world.all_or_none(partial(write_lines, file, run, str(setting), made))
        del evaluator  # and its model, before the next one is loaded
    return results


def write_lines(file, run: int, setting: str, generations: list[dict]) -> None:
    with atomic.writing(file.name):
        for generation in generations:
            file.write(json.dumps({"run": run, "setting": setting, **generation}) + "\n")
        file.flush()


def evaluate(args: argparse.Namespace, world: World, verifier) -> None:
    """The numbers, every generation and the tables, printed and, with --out, written."""
    subjects = world.in_turn(lambda: find_all(args))
    names = args.data or subjects[0].default_data()
    sources = world.in_turn(lambda: {name: datasets.load(name)[: args.limit] for name in names})
    for subject in subjects:
        subject.check([row for rows in sources.values() for row in rows], world)
    journal = open_journal(args, subjects, sources, verifier, world)
    common = {"verifier": verifier, "world": world, "journal": journal, "batch": args.batch}
    writes = args.out and world.main
    new = atomic.beside(args.out.with_suffix(".jsonl"))[1] if writes else Path(os.devnull)
    try:
        with new.open("w", encoding="utf-8") as file:
            results = run_all(args, subjects, sources, common, file)
    except BaseException:
        if writes:
            new.unlink(missing_ok=True)  # the journal has it all
        raise
    text = tables(results)
    world.say(text)

    def finish() -> None:
        os.replace(new, new.with_suffix(""))
        atomic.write_text(args.out.with_suffix(".md"), text + "\n")
        whole = results[0] if len(results) == 1 else {"runs": results}
        atomic.write_text(args.out, json.dumps(whole, indent=2) + "\n")
        beside = ", ".join(args.out.with_suffix(end).name for end in (".jsonl", ".md"))
        world.say(f"written: {args.out}, {beside}")

    world.all_or_none(lambda: writes and finish())
    journal.remove()


def main(argv=None) -> None:
    args = None
    try:
        args = read_flags(argv)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
        count = ranks.fitting(args) if argv is None and args.show is None else 1
        with ranks.several(count), World(args.device, 24 * 60) as world:  # minutes
            args.dtype = args.dtype or DTYPE_ON[world.device.type]
            target = output(args, world) if args.out else nullcontext()
            with target, verifier_of(args.reward) as verifier:
                (evaluate if args.show is None else show.show)(args, world, verifier)
    except (InputError, OSError, RankError) as error:
        sys.exit(f"eval.py: error: {error}")
    except KeyboardInterrupt:
        kept = args and args.out and args.show is None
        more = "; the same command goes on where it stopped" if kept else ""
        sys.exit(f"eval.py: interrupted{more}")


if __name__ == "__main__":
    as_program(main)
