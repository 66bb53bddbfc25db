"""Parts of `minisoft.lab.gpu` that compare numbers with those of another machine or dtype: logits
and gradients; and what all parts share.

A part is a function of a Report, to which it adds what it has checked and measured.
"""

import gc
from argparse import Namespace
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean, median

import torch
import torch.nn.functional as F

from minisoft import data, engine, evaluation
from minisoft.data import Format
from minisoft.io import WEIGHTS, checkpoint, datasets
from minisoft.lab.gradient import EMBEDDING
from minisoft.model import Config, Transformer
from minisoft.reinforce import Mismatch, leave_one_out
from minisoft.rollout import Decoding, Request, Rollout
from minisoft.soft import rms
from minisoft.training.optimizer import Optimizer, Schedule
from minisoft.training.settings import TRAIN_COT, Flags, resolve
from minisoft.training.world import World
from minisoft.verifier.process import WORKERS, Verifier

TINY = WEIGHTS / "tiny"
TOKENS = {  # name -> kind of token, where its noise is, K
    "hard": ("hard", None, None),
    "soft": ("soft", None, None),
    "fuzzy": ("fuzzy", None, None),
    "hidden": ("soft", "hidden", None),
    "logits": ("soft", "logits", None),
    "top-5": ("soft", "logits", 5),
}
NO_BIAS = (False, False, False)
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES = {  # small shapes of what checkpoints are like
    "grouped heads": Config(300, 64, 160, 3, 8, 2, 16, 1e-5, 1e4, {}, True, *NO_BIAS, False),
    "untied": Config(300, 64, 160, 3, 4, 4, 16, 1e-5, 1e4, {}, False, *NO_BIAS, False),
    "Llama 3": Config(300, 64, 160, 3, 4, 2, 16, 1e-5, 5e5, LLAMA3, True, *NO_BIAS, False),
    "Qwen2": Config(300, 64, 160, 3, 4, 2, 16, 1e-6, 1e6, {}, True, True, False, False, False),
    "Qwen3": Config(300, 64, 160, 3, 4, 2, 32, 1e-6, 1e6, {}, True, *NO_BIAS, True),
}
# the difference of logits / rms of all logits: largest, rms.  A wrong mask, rope or norm gives
# about 1; rounding to bfloat16's 8 bits gave up to 0.27 and 0.02 on a CPU.
LOGIT_LIMITS = {"float32": (1e-4, 1e-5), "bfloat16": (0.5, 0.05)}
COSINES = {"float32": (0.9999, 0.9999), "bfloat16": (0.99, 0.97)}  # at least, in E and in the body
SHOWN = (median, fmean, min)
JUDGED = {"float32": (*TOKENS,), "bfloat16": ("hard", "soft")}  # the others are only told
SIZES = {"cpu": (2, 16), "cuda": (3, 32)}  # problems, samples of each
MANY = {"cpu": (5, 16), "cuda": (9, 32)}  # the same, for the median of gradients


@dataclass
class Report:
    """What a part checks and measures.  args: the command's flags; checks: (what, expected, found,
    True, False or None where it is only told); tables: (title, rows); numbers: for --json."""

    args: Namespace
    device: torch.device
    checks: list[tuple] = field(default_factory=list)
    tables: list[tuple[str, list[list[str]]]] = field(default_factory=list)
    numbers: dict = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def held(self) -> bool:
        """Does everything hold that was judged?"""
        return all(ok is not False for *_, ok in self.checks)

    def check(self, what: str, expected: str, found: str, ok: bool | None) -> None:
        """Something was checked, or, with ok None, only looked at."""
        self.checks.append((what, expected, found, ok if ok is None else bool(ok)))

    def skip(self, why: str) -> None:
        self.check("skipped", "", why, None)


def clean(device: torch.device) -> None:
    """Nothing that nobody needs keeps memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


# -------------------------------------------------------------------------------- logits


def logits(report: Report) -> None:
    """Logits on the device against float32 on the CPU, both with the weights as rounded."""
    precision = torch.get_float32_matmul_precision()
    report.check("float32 products, no TF32", "highest", precision, precision == "highest")
    models = {"weights/tiny": checkpoint.load_model(TINY, "cpu", torch.float32)}
    models |= {name: family(config) for name, config in FAMILIES.items()}
    rows = [["model", *(f"{dtype}: {x}" for dtype in LOGIT_LIMITS for x in ("largest", "rms"))]]
    off = {name: [] for name in models}
    for dtype, limits in LOGIT_LIMITS.items():
        found = {name: logits_off(model, report.device, dtype) for name, model in models.items()}
        for name in models:
            off[name] += found[name]
        for what, limit, worst in zip(("largest", "rms"), limits, map(max, zip(*found.values()))):
            what = f"{dtype} logits of {len(models)} models, {what} difference / rms"
            report.check(what, f"<= {limit}", f"{worst:.1e}", worst <= limit)
    rows += [[name, *(f"{x:.1e}" for x in of_model)] for name, of_model in off.items()]
    report.tables.append(("differences of logits / rms of logits", rows))


def family(config: Config) -> Transformer:
    """A small random model, float32 on the CPU."""
    torch.manual_seed(0)
    model = Transformer(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, 0, 0.15) if p.dim() > 1 else torch.nn.init.normal_(p, 1, 0.1)
    return model


@torch.no_grad()
def logits_off(model: Transformer, device: torch.device, dtype: str) -> tuple[float, float]:
    """(largest, rms) difference of logits between the device in `dtype` and float32 on the CPU, in
    rms of the logits; 4 rows of 64 random tokens."""
    ids = torch.randint(model.config.vocab_size, (4, 64), generator=torch.manual_seed(0))
    found = as_dtype(model, device, checkpoint.DTYPES[dtype], like=checkpoint.DTYPES[dtype])
    engine.accelerate(found)
    z = found.logits(found(found.embed(ids.to(device)))).cpu()
    exact = as_dtype(model, torch.device("cpu"), torch.float32, like=checkpoint.DTYPES[dtype])
    expected = exact.logits(exact(exact.embed(ids)))
    off = (z - expected) / rms(expected)
    return off.abs().max().item(), rms(off)


def as_dtype(model: Transformer, device, dtype: torch.dtype, like: torch.dtype) -> Transformer:
    """A plain copy of a model, its weights rounded to `like`, held in `dtype`."""
    with torch.device("meta"):
        copy = Transformer(model.config)
    weights = model.state_dict().items()
    rounded = {name: x.to(device, like, copy=True).to(dtype) for name, x in weights}
    copy.load_state_dict(rounded, assign=True)
    return copy


# ------------------------------------------------------------------------------ gradient


class Subject:
    """A model folder on a device: model (accelerated), form, prompts of the first validation
    problems of `tiny`."""

    def __init__(self, folder: str | Path, device: torch.device, dtype: str, size: tuple[int, int]):
        folder = checkpoint.find(str(folder))
        self.about = checkpoint.read_about(folder)
        self.model, tokenizer = checkpoint.load(folder, device, checkpoint.DTYPES[dtype])
        engine.accelerate(self.model)
        self.form, (B, self.group) = Format(tokenizer), size
        problems = datasets.load_problems("tiny")
        held_out = min(200, len(problems) // 10)
        self.problems = data.split(problems, 2 * held_out)[1][:B]
        template = resolve(self.about, Flags(), TRAIN_COT).template
        texts = [data.prompt(problem.question, template) for problem in self.problems]
        self.prompts = [tokenizer.encode(text) for text in texts]

    def settings(self, name: str):
        _, noise, top_k = TOKENS[name]
        return resolve(self.about, Flags(noise=noise, top_k=top_k), TRAIN_COT).for_model(self.model)

    def kind(self, name: str):
        return self.settings(name).kind(TOKENS[name][0])

    def rollouts(self, name: str, **options) -> list[Rollout]:
        """All prompts, G samples of each, with TOKENS[name]; options as those of engine.stream."""
        requests = [
            Request(prompt, ("gpu", i), range(self.group)) for i, prompt in enumerate(self.prompts)
        ]
        how = Decoding(self.settings(name).cot)
        return engine.rollout(self.model, self.form, self.kind(name), requests, how, **options)

    def advantages(self, rollouts: list[Rollout], verifier) -> list[torch.Tensor]:
        """Of the verifier's rewards; 1, -1, 1, ... where those of a problem are all equal."""
        rewards = []
        for i, rollout in enumerate(rollouts):
            scored = evaluation.describe(self.form, rollout, i, self.problems[i], verifier)
            rewards.append([float(generation["reward"]) for generation in scored])
        rewards = torch.tensor(rewards, dtype=torch.float64)  # (B, G)
        found = leave_one_out(rewards)
        alike = (rewards == rewards[:, :1]).all(1)
        found[alike] = 1.0 - 2.0 * (torch.arange(self.group) % 2).double()
        return list(found)


def moved(rollout: Rollout, device: torch.device) -> Rollout:
    """The same record on another device."""
    tensors = {
        f.name: value.to(device)
        for f in fields(rollout)
        if isinstance(value := getattr(rollout, f.name), torch.Tensor)
    }
    return replace(rollout, **tensors)


def replayed(model: Transformer, kind, rollouts: list, advantages: list) -> tuple[dict, Mismatch]:
    """The gradient as training sums it, {"E": (n,), "body": (m,)} float32, and the mismatch."""
    optimizer = Optimizer(model, Schedule(1e-9, 10, 0), World(str(model.E.device)))
    scale = 1 / sum(map(len, advantages))
    with optimizer.summing():
        mismatch = engine.backward(model, kind, rollouts, advantages, scale, micro_batch=16)
    optimizer.collect()
    vectors = {"E": [], "body": []}
    for name, master in optimizer.masters.items():
        vectors["E" if name == EMBEDDING else "body"].append(master.grad)
        master.grad = None
    return {part: torch.cat(of_part).cpu() for part, of_part in vectors.items()}, mismatch


def gradient(report: Report) -> None:
    """Gradients of recorded rollouts, a problem each: bfloat16 against a float32 model of the same
    rounded weights; float32 against float32 on the CPU, of the first problem.  A few rows make most
    of a gradient, so that single ones differ much; the median is judged."""
    head = (
        "dtype, tokens, mismatch, largest, cosine in E: median, mean, lowest, in the body: median"
    )
    rows = [[*f"{head}, mean, lowest, positions".split(", ")]]
    with Verifier(workers=WORKERS) as verifier:
        for dtype in checkpoint.DTYPES:
            subject = Subject(report.args.model, report.device, dtype, MANY[report.device.type])
            on = torch.device("cpu") if dtype == "float32" else report.device
            reference = as_dtype(subject.model, on, torch.float32, like=torch.float32)
            for name in TOKENS:
                found = compare_gradients(subject, reference, name, verifier)
                report.numbers[f"{dtype} {name}"] = found
                numbers = [f"{found[x]:.1e}" for x in ("mismatch", "largest")]
                cosines = [f"{of(found[x]):.5f}" for x in ("E", "body") for of in SHOWN]
                rows.append([dtype, name, *numbers, *cosines, f"{found['positions']}"])
                judge_gradient(report, dtype, name, found)
    report.tables.append(("replay of recorded rollouts", rows))


def compare_gradients(subject: Subject, reference: Transformer, name: str, verifier) -> dict:
    """Mismatch, positions, and of each problem the cosines in E and in the body with the
    reference's gradient."""
    kind, rollouts = subject.kind(name), subject.rollouts(name)
    advantages = subject.advantages(rollouts, verifier)
    if reference.E.device != subject.model.E.device:
        rollouts, advantages = rollouts[:1], advantages[:1]  # CPUs are slow
    mismatches, cosines = [], {"E": [], "body": []}
    for rollout, of_problem in zip(rollouts, advantages, strict=True):
        own, mismatch = replayed(subject.model, kind, [rollout], [of_problem])
        there = moved(rollout, reference.E.device)
        expected, _ = replayed(reference, kind, [there], [of_problem])
        mismatches.append(mismatch)
        for part, vector in own.items():
            cosine = F.cosine_similarity(vector.double(), expected[part].double(), dim=0)
            cosines[part].append(cosine.item())
    positions = sum(mismatch.tokens for mismatch in mismatches)
    return {
        "mismatch": sum(mismatch.total for mismatch in mismatches) / positions,
        "largest": max(mismatch.largest for mismatch in mismatches),
        "positions": positions,
        **cosines,
    }


def judge_gradient(report: Report, dtype: str, name: str, found: dict) -> None:
    """Are the cosines what the dtype allows?"""
    in_E, in_body = median(found["E"]), median(found["body"])
    ok = in_E >= COSINES[dtype][0] and in_body >= COSINES[dtype][1]
    judged = name in JUDGED[dtype]
    report.check(
        f"{dtype} {name}: median cosine of gradients in E, in the body",
        ">= {}, >= {}".format(*COSINES[dtype]) if judged else "told only",
        f"{in_E:.5f}, {in_body:.5f}",
        ok if judged else None,
    )
