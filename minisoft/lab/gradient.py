"""Where the gradient comes from, and how much of it is signal (section 3; not in the paper).

    python -m minisoft.lab.gradient --model weights/tiny --tokens soft --out soft.json

Measures the gradient of eq. 14 on batches of B problems x G samples, without a problem in common, the model's weights left as
they are, CoT and answer terms separately, in E (with a tied head) and in the rest (the body).  For each of these:

    norm       root mean square over batches of the gradient's Euclidean norm
    cosine     mean over pairs of batches of the cosine between their gradients
    snr        |mean gradient|^2, estimated without bias from pairs of batches, / variance of one batch's gradient; 1 / snr
               is the number of batches whose mean is as much signal as noise
    *_error    standard error, by the jackknife over batches

`ties` says how far the most likely token of a CoT step is from the second: share of positions whose two best logits differ
by less than so much, whose softmax at the temperature of CoT still moves (p_max < 0.999), and which tie exactly if logits
are rounded to bfloat16.  A soft or fuzzy CoT sends gradient into the body at positions that still move only.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from minisoft import data, evaluation
from minisoft.errors import InputError
from minisoft.io import WEIGHTS, checkpoint, datasets
from minisoft.io.atomic import write_json
from minisoft.lab import tables
from minisoft.model import PromptCache
from minisoft.reinforce import ESTIMATORS, Mismatch, advantages, backward, encodings
from minisoft.rollout import ANSWER, COT, Format, Request, rollout
from minisoft.soft import GAMMA, KINDS, NOISES, check_top_k, make_kind, noise_sigma
from minisoft.training.world import keep_memory
from minisoft.verifier.process import WORKERS, Verifier

EMBEDDING = "model.embed_tokens.weight"
GAPS = (1e-4, 1e-3, 1e-2, .1, 1.0)  # differences of logits


def take_gradient(model) -> dict[str, torch.Tensor]:
    """{"E": (n,), "body": (m,)} float32 on the CPU, and the gradients are gone."""
    found = {"E": [], "body": []}
    for name, p in model.named_parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        found["E" if name == EMBEDDING else "body"].append(gradient.flatten().float().cpu())
        p.grad = None
    return {part: torch.cat(pieces) for part, pieces in found.items()}


def measure_batch(args, model, tokenizer, form, kind, problems, template, number: int, verifier) -> dict:
    """One batch: its gradients {(term, part): vector}, mean reward, seconds of its parts, and its records."""
    seconds = {}
    numbers = data.batch(len(problems), args.prompts, args.seed, number)
    with tables.clock(seconds, "rollout"):
        requests = [Request(tokenizer.encode(data.prompt(problems[i].question, template)),
                            ("gradient", args.seed, number, i), range(args.group))
                    for i in numbers]
        records = rollout(model, form, kind, requests, args.cot)
    rewards = [torch.tensor([g["reward"] for g in evaluation.describe(form, record, i, problems[i], verifier)],
                            dtype=torch.float64, device=model.E.device) for i, record in zip(numbers, records)]
    gradients = {}
    for term, roles in (("answer", (ANSWER,)), ("cot", (COT,))):
        with tables.clock(seconds, f"backward_{term}"):
            for reward, record in zip(rewards, records):
                backward(model, kind, record, advantages(args.estimator, reward, record), 1 / (args.prompts * args.group),
                         args.micro_batch, Mismatch(), roles)
        gradients.update({(term, part): vector for part, vector in take_gradient(model).items()})
    return {"gradients": gradients, "reward": torch.stack(rewards).mean().item(), "seconds": seconds, "records": records,
            "informative": torch.stack([(r != r[0]).any().double() for r in rewards]).mean().item()}


def signal(gram: torch.Tensor) -> dict:
    """Inner products (N, N) of the gradients of N batches -> norm, cosine and snr with their standard errors."""
    N = len(gram)

    def of(keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        K, off = gram[keep][:, keep], ~torch.eye(len(keep), dtype=torch.bool)
        norm = K.diagonal().sqrt().clamp_(min=1e-30)
        both = K[off].mean()  # estimates |mean gradient|^2
        return (K / norm[:, None] / norm)[off].mean(), both / (K.diagonal().mean() - both).clamp_(min=1e-30)
    everyone = torch.arange(N)
    values = torch.stack(of(everyone))  # (2,)
    without = torch.stack([torch.stack(of(everyone[everyone != i])) for i in range(N)])  # (N, 2)
    errors = ((N - 1) / N * (without - without.mean(0)).square().sum(0)).sqrt()
    return {"norm": gram.diagonal().mean().sqrt().item(), "cosine": values[0].item(), "cosine_error": errors[0].item(),
            "snr": values[1].item(), "snr_error": errors[1].item()}


def signals(gradients: list[dict]) -> dict:
    """{term: {part: signal}} for the terms answer, cot, both and the parts E, body, all."""
    grams, pieces = {}, lambda term, part: zip(*(g[term, part].split(2**18) for g in gradients))
    for part in ("E", "body"):
        grams["cot", part] = grams["answer", part] = grams["both", part] = 0.0
        for some in zip(pieces("cot", part), pieces("answer", part)):  # in float64 only so much at a time
            cot, answer = (torch.stack(x).double() for x in some)  # (N, 2^18)
            for term, x in (("cot", cot), ("answer", answer), ("both", cot + answer)):
                grams[term, part] = grams[term, part] + x @ x.T  # (N, N)
    for term in ("cot", "answer", "both"):
        grams[term, "all"] = grams[term, "E"] + grams[term, "body"]
    return {term: {part: signal(grams[term, part]) for part in ("E", "body", "all")} for term in ("cot", "answer", "both")}


@torch.no_grad()
def ties(model, kind, records) -> dict:
    """How far the best logit is from the second at the CoT positions of some records."""
    gaps, moving, tied = [], [], []
    for record in records:
        hidden, cache = model.prefill(torch.tensor([record.prompt], device=model.E.device))
        rows = torch.arange(len(record.ids), device=model.E.device)
        h = encodings(model, kind, record, rows, PromptCache(keys=cache.keys, values=cache.values), hidden[:, -1])
        logits = model.logits(h[record.role[:, : h.shape[1]] == COT])  # (positions, V)
        best = logits.topk(2, -1).values
        gaps.append(best[:, 0] - best[:, 1])
        moving.append((logits / kind.tau).softmax(-1).amax(-1) < .999)
        rounded = logits.bfloat16().topk(2, -1).values
        tied.append(rounded[:, 0] == rounded[:, 1])
    gap = torch.cat(gaps)
    return {"positions": len(gap), "gap_below": {str(x): (gap < x).double().mean().item() for x in GAPS},
            "still_moving": torch.cat(moving).double().mean().item(),
            "tied_in_bfloat16": torch.cat(tied).double().mean().item()}


def measure(args, verifier) -> dict:
    """All that the command writes."""
    folder = checkpoint.find(args.model)
    about = checkpoint.read_about(folder)
    model, tokenizer = checkpoint.load(folder, torch.device(args.device), checkpoint.DTYPES["float32"])
    check_top_k(args.top_k, model)
    problems = datasets.load_problems(args.data or about.get("defaults", {}).get("data") or "tiny")
    sigma = noise_sigma(model, args.noise, about, args.gamma)
    kind = make_kind(args.tokens, sigma, args.tau, args.noise, args.top_k)
    form = Format(tokenizer)
    template = datasets.read_prompt(args.prompt) if args.prompt else about.get("prompt", data.PAPER_PROMPT)
    args.cot = args.cot or about.get("defaults", {}).get("cot", 128)
    model.rounded, start, batches = args.logits == "bfloat16", time.perf_counter(), []
    for number in tqdm(range(args.batches), desc="batches", disable=None):
        found = measure_batch(args, model, tokenizer, form, kind, problems, template, number, verifier)
        if number == 0:
            near = ties(model, kind, found["records"])
        del found["records"]
        batches.append(found)
    mean = lambda get: sum(map(get, batches)) / len(batches)
    return {"model": args.model, "tokens": args.tokens, "tau": kind.tau, "sigma": sigma, "noise": args.noise,
            "top_k": args.top_k, "logits": args.logits,
            "estimator": args.estimator, "prompts": args.prompts, "group": args.group, "batches": args.batches,
            "seed": args.seed, "reward": mean(lambda b: b["reward"]), "informative": mean(lambda b: b["informative"]),
            "seconds_per_batch": {name: mean(lambda b: b["seconds"][name]) for name in batches[0]["seconds"]},
            "signal": signals([b["gradients"] for b in batches]),
            "norms": [torch.linalg.vector_norm(torch.cat([b["gradients"]["cot", part] + b["gradients"]["answer", part]
                                                          for part in ("E", "body")]), dtype=torch.float64).item()
                      for b in batches], "ties": near, "seconds": time.perf_counter() - start}


def table(found: dict) -> str:
    show = lambda s, name: f"{s[name]:.4f} ± {s[name + '_error']:.4f}"
    return tables.table([["terms", "part", "norm", "cosine", "snr of a batch"]] + [
        [term, part, f"{s['norm']:.3g}", show(s, "cosine"), show(s, "snr")]
        for term, parts in found["signal"].items() for part, s in parts.items()])


def read_flags(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m minisoft.lab.gradient", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--model", default=str(WEIGHTS / "tiny"), help="folder or hub id (default weights/tiny)")
    group.add_argument("--data", help="problems (default the model's, else tiny)")
    group.add_argument("--prompt", help="file with the prompt, QUESTION where the question goes (default the model's)")
    group.add_argument("--tokens", choices=KINDS, default="soft", help="kind of CoT token (default soft)")
    group.add_argument("--tau", type=float, help="temperature of the CoT (default the paper's; F.3)")
    group.add_argument("--gamma", type=float, help="noise factor: sigma = gamma * noise scale (default that of the model's "
                       f"training, else {GAMMA}; F.1)")
    group.add_argument("--noise", choices=NOISES, default="embedding",
                       help="where soft and fuzzy tokens get their noise (default embedding; F.2)")
    group.add_argument("--top-k", type=int, metavar="K", help="noise on the K best logits, the rest -inf (default all; F.2)")
    group.add_argument("--logits", choices=("float32", "bfloat16"), default="float32",
                       help="bfloat16: logits are rounded to it, in rollout and replay (default float32)")
    group.add_argument("--estimator", choices=ESTIMATORS, default="rloo", help="as in train.py (default rloo)")
    group = parser.add_argument_group("batches")
    group.add_argument("--prompts", type=int, default=16, metavar="B", help="problems a batch (default 16)")
    group.add_argument("--group", type=int, default=32, metavar="G", help="samples of each (default 32)")
    group.add_argument("--batches", type=int, default=24, help="independent batches, at least 3 (default 24)")
    group.add_argument("--cot", type=int, help="CoT budget in tokens (default the model's, else 128)")
    group.add_argument("--seed", type=int, default=0, help="decides problems and draws (default 0)")
    group.add_argument("--micro-batch", type=int, default=16, help="rows per backward pass (default 16)")
    group.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu",
                       help="default cuda where there is one")
    group.add_argument("--out", type=Path, metavar="FILE.json", help="where the numbers go (default: only printed)")
    args = parser.parse_args(argv)
    for name, least in (("prompts", 1), ("group", 2), ("batches", 3), ("micro_batch", 1), ("cot", 1)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, found {getattr(args, name)}")
    if args.gamma is not None and not args.gamma > 0:
        parser.error(f"--gamma: expected a positive number, found {args.gamma}")
    if args.out and not args.out.parent.is_dir():
        parser.error(f"--out: expected a file in a folder that exists, found {args.out}")
    return args


def main(argv=None) -> None:
    args = read_flags(argv)
    try:
        keep_memory()
        with Verifier(workers=WORKERS) as verifier:
            found = measure(args, verifier)
        if args.out:
            write_json(args.out, found)
        print(f"{table(found)}\n{json.dumps(found['ties'])}\n{found['seconds']:.0f} s")
    except (InputError, OSError) as error:
        sys.exit(f"minisoft.lab.gradient: error: {error}")
    except KeyboardInterrupt:
        sys.exit("minisoft.lab.gradient: interrupted")


if __name__ == "__main__":
    main()
