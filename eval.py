#!/usr/bin/env python3
"""Evaluate a model in the six inference settings of "Soft Tokens, Hard Truths" (section 4).

    python eval.py                                                    # the embedded model, hard-greedy
    python eval.py --model RUN/best --data tiny-test --settings all --samples 32 --out result.json
    torchrun --nproc-per-node 2 eval.py ...                           # problems are shared out over the ranks

The answer is always decoded greedily.  A greedy setting has one sample a problem.  --out FILE.json gets the numbers,
FILE.jsonl beside it every generation.  A default marked * may be replaced by the model folder's minisoft.json.
"""

import argparse
import json
import sys
from pathlib import Path

from minisoft import checkpoint, data, evaluation, report
from minisoft.errors import InputError
from minisoft.parallel import World
from minisoft.reward import Verifier
from minisoft.soft import GAMMA, rms
from minisoft.tokenizer import read_json


def read_flags(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("model and problems")
    group.add_argument("--model", default=str(data.WEIGHTS / "tiny"), help="folder, or hub id (default weights/tiny)")
    group.add_argument("--data", help=".jsonl or .json file, tiny-test, or a hub name (default gsm8k-test *)")
    group.add_argument("--prompt", help="file with the prompt, QUESTION where the question goes (default the paper's *)")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N problems (default all)")
    group = parser.add_argument_group("inference (section 4)")
    group.add_argument("--settings", default="hard-greedy",
                       help=f"all, or some of {','.join(evaluation.SETTINGS)} (default hard-greedy)")
    group.add_argument("--samples", type=int, default=32, help="samples a problem in the sample settings (default 32)")
    group.add_argument("--cot", type=int, help="CoT budget in tokens (default 512 *)")
    group.add_argument("--sigma", type=float, help=f"noise on the CoT input (default what training used *, {GAMMA} rms(E))")
    group.add_argument("--seed", type=int, default=0, help="(seed, setting, problem, sample) decides every draw (default 0)")
    group = parser.add_argument_group("machine")
    group.add_argument("--batch", type=int, default=64, help="rows at once (default 64)")
    group.add_argument("--device", help="cpu or cuda (default cuda where there is one)")
    group.add_argument("--dtype", choices=list(checkpoint.DTYPES), default="float32", help="default float32")
    group.add_argument("--out", type=Path, metavar="FILE.json", help="where the numbers go (default: only printed)")
    args = parser.parse_args(argv)
    for name in ("samples", "batch", "cot", "limit", "sigma"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            parser.error(f"--{name}: expected a positive number, found {getattr(args, name)}")
    if args.out and args.out.suffix != ".json":
        parser.error(f"--out: expected a name ending in .json, found {args.out}")
    return args


def evaluate(args: argparse.Namespace, world: World, score) -> None:
    settings = evaluation.read_settings(args.settings)
    if args.out:
        if str(args.out.with_suffix(".jsonl")) == str(args.data):
            raise InputError(f"--out: expected another name, since {args.data} holds the problems")
        args.out.parent.mkdir(parents=True, exist_ok=True)
    source = checkpoint.find(args.model)
    about = read_json(source / checkpoint.SIDECAR)
    args.data = args.data or ("tiny-test" if about.get("defaults", {}).get("data") == "tiny" else "gsm8k-test")
    problems = data.load_problems(args.data)[: args.limit]
    template = data.read_prompt(args.prompt) if args.prompt else about.get("prompt", data.PAPER_PROMPT)
    model, tokenizer = checkpoint.load(source, world.device, checkpoint.DTYPES[args.dtype])
    sigma = args.sigma or about.get("sigma") or GAMMA * rms(model.E)
    cot = args.cot or about.get("defaults", {}).get("cot", 512)
    results, generations = {}, []
    for setting in settings:
        results[setting], made = evaluation.evaluate(
            model, tokenizer, problems, setting, samples=args.samples, batch=args.batch, cot_tokens=cot, sigma=sigma,
            template=template, seed=args.seed, score=score, world=world)
        generations += [{"setting": setting, **g} for g in made]
    result = {"model": args.model, "data": args.data, "problems": len(problems), "samples": args.samples,
              "seed": args.seed, "sigma": sigma, "cot": cot, "settings": results}
    columns = list(dict.fromkeys(name for r in results.values() for name in r if name.startswith("pass@")))
    rows = [["setting", *columns, "boxed", "CoT tokens"]] + [
        [setting, *(report.percent(r[c]) if c in r else "" for c in columns), report.percent(r["boxed"]),
         f"{r['cot_length']:.1f}"] for setting, r in results.items()]
    world.say(f"{args.model} on {len(problems)} problems of {args.data}\n{report.table(rows)}")
    if args.out and world.main:
        args.out.with_suffix(".jsonl").write_text("".join(json.dumps(g) + "\n" for g in generations), "utf-8")
        checkpoint.write_json(args.out, result)


def main(argv=None) -> None:
    args = read_flags(argv)
    try:
        with World(args.device) as world, Verifier() as verifier:
            evaluate(args, world, verifier.score)
    except (InputError, OSError) as error:
        sys.exit(f"eval.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("eval.py: interrupted, nothing written")


if __name__ == "__main__":
    main()
