"""Where the gradient comes from, and how much of it is signal (section 3; not in the paper).

    python -m minisoft.lab.gradient --model weights/tiny --tokens soft --out soft.json

Measures the gradient of eq. 14 on batches of B problems x G samples, without a problem in common,
the weights left as they are, CoT and answer terms separately, in E (with a tied head) and in the
rest (the body):

    norm       root mean square over batches of the gradient's Euclidean norm
    cosine     mean over pairs of batches of the cosine between their gradients
    snr        |mean gradient|^2, without bias, / variance of one batch's gradient; the mean of
               1 / snr batches is as much signal as noise
    *_error    standard error, by the jackknife over batches
"""

import argparse
from dataclasses import replace
from statistics import fmean

import torch

from minisoft import data, reinforce
from minisoft.io import checkpoint, datasets
from minisoft.kinds import OPTIONS, TAU_OF, TOKENS
from minisoft.kinds.options import COUNT, DEVICE, Number, Option
from minisoft.lab import command
from minisoft.rollout import ANSWER, COT
from minisoft.run import policy
from minisoft.run.metrics import markdown
from minisoft.run.policy import Policy
from minisoft.run.settings import TRAIN_COT, Flags
from minisoft.run.world import as_program, bar, find_device
from minisoft.verifier.process import WORKERS, Verifier

EMBEDDING = "model.embed_tokens.weight"
TERMS, PARTS = {"cot": COT, "answer": ANSWER}, ("E", "body")
MICRO_BATCH = 16  # rows


class Measurement:
    """The policy and the problems that the flags name."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        folder = checkpoint.find(args.model)
        settings = policy.settings(folder, [args.tokens], Flags.of(args), TRAIN_COT)
        self.policy = Policy.load(folder, args.tokens, settings, find_device(args.device, 0))
        source = args.data or settings.sidecar.get("defaults", {}).get("data") or "tiny"
        self.problems = datasets.load_problems(source)

    def about(self) -> dict:
        """What is measured, as the results have it."""
        flags = {name: x for name, x in vars(self.args).items() if name not in ("device", "out")}
        return flags | self.policy.settings.sidecar_of(self.args.tokens)

    def rollouts(self, key: tuple, number: int, problems: int, samples: int) -> tuple:
        """(the numbered problems of a batch, their Rollouts); key: of the draws."""
        numbers = data.batch(len(self.problems), problems, self.args.seed, number)
        chosen = [(i, self.problems[i]) for i in numbers]
        requests = [self.policy.request(x, (*key, i), range(samples)) for i, x in chosen]
        return chosen, self.policy.rollout(requests)

    def batch(self, number: int, verifier) -> tuple[dict, dict]:
        """The numbered batch: gradients {(term, part): vector}; facts, among them the share of the
        problems whose rewards differ."""
        args, gradients = self.args, {}
        key = ("gradient", args.seed, number)
        chosen, rollouts = self.rollouts(key, number, args.prompts, args.group)
        scored = self.policy.score(rollouts, chosen, verifier)
        rewards = torch.tensor([[g["reward"] for g in of] for of in scored], dtype=torch.float64)
        advantages = reinforce.leave_one_out(rewards)
        for term in reversed(TERMS):
            some = {"micro_batch": MICRO_BATCH, "terms": (TERMS[term],)}
            self.policy.backward(rollouts, list(advantages), 1 / rewards.numel(), **some)
            for part, vector in take_gradient(self.policy.model).items():
                gradients[term, part] = vector
        lengths = [(rollout.role == COT).sum(1).float().mean().item() for rollout in rollouts]
        return gradients, {
            "reward": rewards.mean().item(),
            "informative": (rewards != rewards[:, :1]).any(1).double().mean().item(),
            "advantage_square": advantages.square().mean().item(),
            "cot_length": fmean(lengths),
        }


def take_gradient(model) -> dict[str, torch.Tensor]:
    """{"E": (n,), "body": (m,)} float32 on the CPU, and the gradients are gone."""
    vectors = {part: [] for part in PARTS}
    for name, p in model.named_parameters():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        vectors["E" if name == EMBEDDING else "body"].append(gradient.flatten().float().cpu())
    model.zero_grad()
    return {part: torch.cat(of_part) for part, of_part in vectors.items()}


def signal(gram: torch.Tensor) -> dict[str, float]:
    """Inner products (N, N) of the gradients of N batches -> norm, and cosine, snr and variance of
    a batch with their standard errors (jackknife)."""
    N, names = len(gram), ("cosine", "snr", "variance")
    everyone = torch.arange(N)
    others = [everyone[everyone != i] for i in range(N)]
    without = torch.stack([_of_batches(gram[some][:, some]) for some in others])  # (N, 3)
    errors = ((N - 1) / N * (without - without.mean(0)).square().sum(0)).sqrt()
    found = dict(zip(names, _of_batches(gram).tolist()))
    found |= {f"{name}_error": x for name, x in zip(names, errors.tolist())}
    return {"norm": gram.diagonal().mean().sqrt().item(), **found}


def _of_batches(gram: torch.Tensor) -> torch.Tensor:
    """Cosine, snr, variance (3,) of some batches with these inner products."""
    off = ~torch.eye(len(gram), dtype=torch.bool)
    norm = gram.diagonal().sqrt().clamp_(min=1e-30)
    both = gram[off].mean()  # estimates |mean gradient|^2
    cosine = (gram / norm[:, None] / norm)[off].mean()
    variance = gram.diagonal().mean() - both
    return torch.stack((cosine, both / variance.clamp(min=1e-30), variance))


def signals(gradients: list[dict]) -> dict:
    """{term: {part: signal}} for the terms answer, cot, both and the parts E, body, all."""
    grams = {term: dict.fromkeys(PARTS, 0.0) for term in (*TERMS, "both")}
    for part in PARTS:
        pieces = [zip(*(g[term, part].split(2**18) for g in gradients)) for term in TERMS]
        for some in zip(*pieces, strict=True):  # in float64 a piece at once
            cot, answer = (torch.stack(x).double() for x in some)  # (N, 2^18)
            for term, x in (("cot", cot), ("answer", answer), ("both", cot + answer)):
                grams[term][part] = grams[term][part] + x @ x.T  # (N, N)
    for of in grams.values():
        of["all"] = of["E"] + of["body"]
    return {term: {part: signal(gram) for part, gram in of.items()} for term, of in grams.items()}


def measure(args: argparse.Namespace) -> dict:
    """All that the command writes."""
    of, gradients, facts = Measurement(args), [], []
    with Verifier(workers=WORKERS) as verifier:
        for number in bar(range(args.batches), unit="batch"):
            gradient, fact = of.batch(number, verifier)
            gradients.append(gradient)
            facts.append(fact)
    means = {name: fmean(one[name] for one in facts) for name in facts[0]}
    return {**of.about(), **means, "signal": signals(gradients)}


def table(found: dict) -> str:
    rows = [["terms", "part", "norm", "cosine", "snr of a batch"]]
    for term, parts in found["signal"].items():
        for part, s in parts.items():
            shown = [f"{s[x]:.4f} ± {s[x + '_error']:.4f}" for x in ("cosine", "snr")]
            rows.append([term, part, f"{s['norm']:.3g}", *shown])
    return markdown(rows)


FLAGS = [
    *command.MODEL,
    replace(TOKENS, kept=False),
    TAU_OF,
    *OPTIONS,
    Option("prompts", COUNT, "B, problems a batch", 16),
    Option("group", Number(int, 2), "G, samples of each, at least 2", 32),
    Option("batches", Number(int, 3), "independent batches, at least 3", 24),
    Option("seed", Number(int), "decides problems and draws", 0),
    DEVICE,
    command.OUT,
]


def read_flags(argv=None) -> argparse.Namespace:
    return command.read("gradient", __doc__, FLAGS, argv)


def main(argv=None) -> None:
    command.measure("gradient", __doc__, FLAGS, argv, measure, table)


if __name__ == "__main__":
    as_program(main)
