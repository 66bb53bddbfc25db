#!/usr/bin/env python3
"""Evaluate models in the six inference settings of "Soft Tokens, Hard Truths" (section 4), or on multiple choice.

    python eval.py                                                    # the embedded model, hard-greedy
    python eval.py --model RUN/best --data tiny-test --settings all --samples 32 --out result.json
    python eval.py --model base=M soft=RUN1/best soft=RUN2/best --data gsm8k-test math-500 mmlu --out result.json
    python eval.py --model RUN/best --show 3 --settings soft-sample   # look inside one chain of thought
    torchrun --nproc-per-node 2 eval.py ...                           # problems are shared out over the ranks

The answer is always decoded greedily.  A greedy setting has one sample a problem.  Rows of a multiple-choice file
(HellaSwag, ARC, MMLU) are scored instead: accuracy, and NLL per token of the correct answer.  --out FILE.json gets the
numbers, FILE.jsonl beside it every generation, FILE.md the tables; a call that was killed goes on where it stopped.
Neither --batch nor the number of ranks changes a result.  A default marked * may be replaced by the model folder's
minisoft.json.  `python -m minisoft.lab.tables` merges result files and draws figures.
"""

import argparse
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from minisoft import data, evaluation
from minisoft.errors import InputError, expecting
from minisoft.io import WEIGHTS, checkpoint, datasets
from minisoft.io.atomic import write_text
from minisoft.io.journal import Journal
from minisoft.lab import inside, tables
from minisoft.rollout import Format, Request, rollout
from minisoft.soft import (
    GAMMA,
    KINDS,
    NOISES,
    TAU,
    TAU_TOP_K,
    check_top_k,
    make_kind,
    noise_sigma,
)
from minisoft.training.world import RankError, World, as_program
from minisoft.verifier.process import WORKERS, Verifier


def read_flags(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("models and problems")
    group.add_argument("--model", nargs="+", default=[str(WEIGHTS / "tiny")], metavar="[NAME=]MODEL",
                       help="folders or hub ids (default weights/tiny); those with the same NAME are seeds of one row of "
                            "the tables (default: what it was trained from, on and with)")
    group.add_argument("--data", nargs="+", help="problems or multiple choice: .jsonl or .json files, tiny-test, or hub "
                       f"names: {', '.join(datasets.HUB)} (default gsm8k-test, of the embedded model tiny-test)")
    group.add_argument("--prompt", help="file with the prompt, QUESTION where the question goes (default the paper's *)")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N problems of each (default all)")
    group = parser.add_argument_group("inference (section 4)")
    group.add_argument("--settings", default="hard-greedy",
                       help=f"all, or some of {','.join(evaluation.SETTINGS)} (default hard-greedy)")
    group.add_argument("--samples", type=int, default=32, help="samples a problem in the sample settings (default 32)")
    group.add_argument("--cot", type=int, help="CoT budget in tokens (default 512 *)")
    group.add_argument("--seed", type=int, nargs="+", default=[0],
                       help="(seed, setting, problem, sample) decides every draw; several seeds are several runs, "
                       "the greedy settings in the first only (default 0)")
    group = parser.add_argument_group("the CoT's mixtures and noise (section 3, appendix F)")
    group.add_argument("--tau", nargs="+", default=[], metavar="KIND=TAU",
                       help=f"softmax temperature of a kind, such as fuzzy=0.01 (default {TAU} *, with --top-k "
                            f"{TAU_TOP_K}; F.3)")
    group.add_argument("--noise", choices=NOISES,
                       help="where soft and fuzzy tokens get their noise (default embedding *; F.2)")
    group.add_argument("--top-k", type=int, metavar="K",
                       help="noise on the K best logits, the rest -inf (default all, or without --noise *; F.2)")
    sigma = group.add_mutually_exclusive_group()
    sigma.add_argument("--gamma", type=float, help=f"noise factor: sigma = gamma * noise scale; the scale of the "
                       f"embedding is rms(E), of a trained model that of its base (default {GAMMA} *; F.1)")
    sigma.add_argument("--sigma", type=float, help="the standard deviation of the noise itself")
    group = parser.add_argument_group("machine")
    group.add_argument("--batch", type=int, default=64, help="rows (questions) at once (default 64)")
    group.add_argument("--device", help="cpu or cuda (default cuda where there is one)")
    group.add_argument("--dtype", choices=list(checkpoint.DTYPES), default="float32", help="default float32")
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="FILE.json", help="where the numbers go (default: only printed)")
    group.add_argument("--show", type=int, metavar="N",
                       help="instead of evaluating: print the CoT of problem N (from 0), sample 0, step by step in every "
                            "setting, and write it as a page (--out FILE.html, default show-N.html); --samples and --limit "
                            "do not matter, of --seed the first is taken")
    args = parser.parse_args(argv)
    for name in ("samples", "batch", "cot", "limit", "sigma", "gamma", "top_k"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < float("inf"):
            parser.error(f"--{name.replace('_', '-')}: expected a positive number, found {getattr(args, name)}")
    suffix = ".html" if args.show is not None else ".json"
    if args.out and (args.out.suffix != suffix or args.out.is_dir()):
        parser.error(f"--out: expected the name of a file, ending in {suffix}, found {args.out}")
    for name in ("model", "data", "seed"):
        given = getattr(args, name) or []
        if len(set(given)) < len(given):
            parser.error(f"--{name}: expected each once, found {' '.join(map(str, given))}")
    args.settings = evaluation.read_settings(args.settings)
    args.tau = read_tau(args.tau)
    return args


def read_tau(texts: list[str]) -> dict[str, float]:
    """["fuzzy=0.01"] -> {"fuzzy": 0.01}."""
    found = {}
    for text in texts:
        kind, _, value = text.partition("=")
        with expecting(f"KIND=TAU with one of {', '.join(KINDS)} and a number", f"--tau {text}"):
            found[KINDS[KINDS.index(kind)]] = float(value)
    return found


@dataclass
class Subject:
    """A model under test: its folder, what its minisoft.json says, its row in the tables."""

    given: str
    folder: Path
    about: dict
    label: str

    @classmethod
    def find(cls, text: str) -> "Subject":
        name, equals, path = text.partition("=")
        given = path if equals and not Path(text).exists() else text
        folder = checkpoint.find(given)
        about = checkpoint.read_about(folder)
        trained = [str(about[field]) for field in ("base", "data", "tokens") if "tokens" in about and field in about]
        usual = {"gamma": GAMMA, "noise": "embedding", "top_k": None, "logits": "float32", "estimator": "rloo",
                 "terms": "both"}
        unusual = [f"{field} {about[field]}" for field in usual if about.get(field, usual[field]) != usual[field]]
        return cls(given, folder, about, name if given != text else ", ".join([" ".join(trained), *unusual]) if trained
                   else folder.resolve().name)

    def identity(self) -> list:
        """Changes when a file of the folder does."""
        return [self.given, *sorted([path.name, path.stat().st_size, path.stat().st_mtime_ns]
                                    for path in self.folder.iterdir() if path.is_file())]

    def inference(self, args: argparse.Namespace) -> dict:
        """What decides inference, from flags, else minisoft.json, else the paper: prompt, cot, where the noise is, gamma
        (None with --sigma), and tau of every kind of token.  What training chose holds only where it had its noise."""
        about = self.about
        noise = args.noise or about.get("noise", "embedding")
        top_k = args.top_k or (None if args.noise else about.get("top_k"))
        if top_k and noise != "logits":
            raise InputError(f"--top-k: expected noise on the logits, found {top_k} with noise on the {noise}")
        as_trained = (noise, top_k) == (about.get("noise", "embedding"), about.get("top_k"))
        gamma = None if args.sigma else args.gamma or (about.get("gamma") if as_trained else None) or GAMMA
        tau = {about["tokens"]: about.get("tau")} if as_trained and "tokens" in about else {}
        tau = {**tau, **args.tau}
        return {"prompt": datasets.read_prompt(args.prompt) if args.prompt else about.get("prompt", data.PAPER_PROMPT),
                "cot": args.cot or about.get("defaults", {}).get("cot", 512),
                "noise": noise, "top_k": top_k, "gamma": gamma,
                "tau": {name: make_kind(name, 1.0, tau.get(name), noise, top_k).tau for name in KINDS}}

    def sigma(self, args: argparse.Namespace, inference: dict, model) -> float:
        """The standard deviation of the noise: --sigma, or gamma times the noise scale, that of its base where trained."""
        check_top_k(inference["top_k"], model)
        return args.sigma or noise_sigma(model, inference["noise"], self.about, inference["gamma"])


def kind_of(setting: str, inference: dict):
    name = setting.split("-")[0]
    return make_kind(name, inference["sigma"], inference["tau"][name], inference["noise"], inference["top_k"])


def default_data(args: argparse.Namespace, subject: Subject) -> list[str]:
    tiny = subject.about.get("defaults", {}).get("data") == "tiny"
    return args.data or ["tiny-test" if tiny else "gsm8k-test"]


def begin(args: argparse.Namespace, world: World) -> tuple[list[Subject], dict, Journal]:
    """(models, {data: rows}, what an earlier call had finished), after looking at everything that can be wrong."""
    subjects = world.in_turn(lambda: [Subject.find(text) for text in args.model])
    for subject in subjects:
        first = next(s for s in subjects if s.label == subject.label)
        differ = [name for name, value in subject.inference(args).items() if value != first.inference(args)[name]]
        if differ:
            raise InputError(f"--model: expected models called {subject.label!r} to differ in the seed only, found other "
                             f"values for {', '.join(differ)} in {first.given} and {subject.given}; give them NAMEs")
    if args.out:
        outputs = {args.out.with_suffix(suffix).resolve() for suffix in (".json", ".jsonl", ".md")}
        for path in [*(args.data or []), *([args.prompt] if args.prompt else [])]:
            if Path(path).resolve() in outputs:
                raise InputError(f"--out: expected another name, since {path} is read and {args.out.stem}.* is written")
    sources = world.in_turn(lambda: {name: datasets.load(name)[: args.limit] for name in default_data(args, subjects[0])})
    decide = {name: vars(args)[name] for name in (
        "settings", "samples", "cot", "seed", "tau", "noise", "top_k", "gamma", "sigma", "dtype", "limit")}
    facts = {**decide, "prompt": args.prompt and datasets.read_prompt(args.prompt), "model": [s.identity() for s in subjects],
             "data": [[name, hashlib.sha256(repr(rows).encode()).hexdigest()] for name, rows in sources.items()]}
    return subjects, sources, Journal(args.out, facts, world)


def run_all(args: argparse.Namespace, world: World, verifier, subjects, sources, journal, keep) -> list[dict]:
    """The result of every model x data x seed; keep(generations) is called with those of each setting."""
    results = []
    for subject in subjects:
        model, tokenizer = checkpoint.load(subject.folder, world.device, checkpoint.DTYPES[args.dtype])
        inference = subject.inference(args)
        inference["sigma"] = subject.sigma(args, inference, model)
        for name, rows in sources.items():
            choice = isinstance(rows[0], data.Choice)
            for seed in args.seed[:1] if choice else args.seed:  # nothing is drawn in multiple choice
                run = len(results)
                common = {"batch": args.batch, "world": world, "journal": journal, "run": run}
                result = {"model": subject.given, "label": subject.label, "data": name, "problems": len(rows),
                          "samples": args.samples, "seed": seed, **inference, "dtype": args.dtype, "settings": {}}
                if choice:
                    result["choices"], made = evaluation.evaluate_choices(model, tokenizer, rows, **common)
                    keep({"run": run, "setting": "choices", **g} for g in made)
                for setting in [] if choice else args.settings:
                    if setting.endswith("greedy") and seed != args.seed[0]:
                        continue  # nothing is drawn
                    world.say(f"{subject.label} on {name}, seed {seed}: {setting}")
                    result["settings"][setting], made = evaluation.evaluate(
                        model, tokenizer, rows, setting, kind_of(setting, inference), samples=args.samples, seed=seed,
                        cot_tokens=inference["cot"], template=inference["prompt"], verifier=verifier, **common)
                    keep({"run": run, "setting": setting, **g} for g in made)
                results.append(result)
        del model  # before the next one is loaded
    return results


def evaluate(args: argparse.Namespace, world: World, verifier) -> None:
    subjects, sources, journal = begin(args, world)
    writes = args.out and world.main
    new = args.out.with_suffix(".jsonl.new") if writes else Path(os.devnull)
    try:
        with new.open("w", encoding="utf-8") as file:
            results = run_all(args, world, verifier, subjects, sources, journal,
                              lambda made: file.writelines(json.dumps(g) + "\n" for g in made))
    except BaseException:
        if writes:
            new.unlink()  # the journal has it all
        raise
    text = tables.tables(results)
    world.say(text)
    if writes:
        os.replace(new, args.out.with_suffix(".jsonl"))
        write_text(args.out.with_suffix(".md"), text + "\n")
        write_text(args.out, json.dumps(results[0] if len(results) == 1 else {"runs": results}, indent=2) + "\n")
        world.say(f"written: {args.out}, {args.out.with_suffix('.jsonl').name}, {args.out.with_suffix('.md').name}")
    journal.remove()


def show(args: argparse.Namespace, world: World, verifier) -> None:
    """Look inside the chain of thought of one problem, sample 0 (the one that an evaluation draws)."""
    if len(args.model) > 1 or len(args.data or []) > 1 or world.size > 1:
        raise InputError("--show: expected one model, one data set and one process, found more")
    subject = Subject.find(args.model[0])
    model, tokenizer = checkpoint.load(subject.folder, world.device, checkpoint.DTYPES[args.dtype])
    inference, problems = subject.inference(args), datasets.load_problems(default_data(args, subject)[0])
    inference["sigma"] = subject.sigma(args, inference, model)
    if not 0 <= args.show < len(problems):
        raise InputError(f"--show: expected a problem from 0 to {len(problems) - 1}, found {args.show}")
    problem, form = problems[args.show], Format(tokenizer)
    prompt = tokenizer.encode(data.prompt(problem.question, inference["prompt"]))
    chains = []
    for setting in args.settings:
        kind, request = kind_of(setting, inference), Request(prompt, (args.seed[0], setting, args.show), range(1))
        record = rollout(model, form, kind, [request], inference["cot"], setting.endswith("greedy"), True)[0]
        chains.append(inside.look(model, form, kind, record, setting,
                                  evaluation.describe(form, record, args.show, problem, verifier)[0]))
        print(inside.as_text(chains[-1]))
    page = args.out or Path(f"show-{args.show}.html")
    write_text(page, inside.as_page(f"{subject.label}, problem {args.show}", chains))
    print(f"written: {page}")


def main(argv=None) -> None:
    args = None
    try:
        args = read_flags(argv)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
        patience = 24 * 60  # ranks meet after a whole setting
        with World(args.device, patience) as world, Verifier(workers=WORKERS) as verifier:
            if args.show is None:
                evaluate(args, world, verifier)
            else:
                show(args, world, verifier)
    except (InputError, OSError, RankError) as error:
        sys.exit(f"eval.py: error: {error}")
    except KeyboardInterrupt:
        kept = args and args.out and args.show is None
        sys.exit("eval.py: interrupted; the same command goes on where it stopped" if kept else "eval.py: interrupted")


if __name__ == "__main__":
    as_program(main)
