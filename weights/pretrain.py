#!/usr/bin/env python3
"""Pretrain the embedded model of weights/tiny from nothing: a 0.8 M parameter Llama on the corpus
of corpus.py.

    python weights/pretrain.py --out weights/tiny
    python weights/pretrain.py --out runs/d64 --hidden-size 64       # the same, narrower

The same seed gives the same bytes on the same machine and thread count.  Needs torch >= 2.9
(torch.optim.Muon).
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import corpus
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm

from minisoft.io.config import read_config
from minisoft.model import Transformer

SPECIAL = ("<unk>", "<eos>")
PIECE = (
    r" ?\\boxed\{| ?\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]|\s"  # one digit a token; \boxed{ is one token
)
LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def make_tokenizer() -> Tokenizer:
    """Whole words where the corpus has them often, single letters for the rest; no entry that no
    text uses."""
    split = pre_tokenizers.Split(Regex(PIECE), "isolated")
    count: dict[str, int] = {}
    for i in range(20_000):
        for piece, _ in split.pre_tokenize_str("".join(corpus.document(0, i))):
            count[piece] = count.get(piece, 0) + 1
    words = sorted(piece for piece, n in count.items() if n >= 20)
    letters = [c for c in LETTERS if c not in words]
    vocabulary = (
        [(s, 0.0) for s in SPECIAL] + [(w, -1.0) for w in words] + [(c, -10.0) for c in letters]
    )
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return tokenizer


def make_config(vocab_size: int, hidden_size: int) -> dict:
    """Heads of 32, two query heads to one of keys; an MLP 2.75 times as wide."""
    heads = hidden_size // 32
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": hidden_size * 11 // 4,
        "num_hidden_layers": 4,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    }


def initialise(model: Transformer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.dim() == 2:
            std = (
                0.02
                if "embed" in name
                else p.shape[1] ** -0.5 * (0.5 if "o_proj" in name or "down" in name else 1)
            )
            torch.nn.init.normal_(p, std=std, generator=generator)


def batches(tokenizer: Tokenizer, seed: int, steps: int, tokens: int):
    """(ids, weight) of about `tokens` tokens, documents of similar length together; completions
    weigh ten times prompts."""
    made, pool, rng = 0, [], random.Random(seed)
    for _ in range(steps):
        if not pool:
            documents = [corpus.document(seed, made + i) for i in range(4096)]
            made += len(documents)
            prompts = tokenizer.encode_batch([p for p, _ in documents])
            wholes = tokenizer.encode_batch([p + c for p, c in documents])
            rows = sorted(
                ((w.ids + [1], len(p.ids)) for p, w in zip(prompts, wholes, strict=True)),
                key=lambda row: len(row[0]),
            )
            while rows:
                n = max(1, tokens // len(rows[-1][0]))
                rows, batch = rows[:-n], rows[-n:]
                pool.append(batch)
            rng.shuffle(pool)
        batch = pool.pop()
        T = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [1] * (T - len(ids)) for ids, _ in batch])
        weight = torch.tensor(
            [[0.1] * n + [1.0] * (len(i) - n) + [0.0] * (T - len(i)) for i, n in batch]
        )
        unknown = torch.tensor([[rng.random() < 0.0005 for _ in range(T)] for _ in batch])
        yield ids.masked_fill(unknown & (weight < 1), 0), weight


def write_sidecar(out: Path) -> None:
    """minisoft.json: the prompt, and how train.py trains this model when nothing else is said."""
    (out / "minisoft.json").write_text(
        json.dumps(
            {
                "prompt": corpus.PROMPT,
                "defaults": {
                    "data": "tiny",
                    "prompts": 16,
                    "steps": 60,
                    "warmup": 5,
                    "cot": 80,
                    "validate_every": 10,
                    "lr": {
                        "hard": 1e-4,
                        "soft": 2e-4,
                        "fuzzy": 2e-4,
                        "multiplex": 1e-4,
                        "covariance": 2e-4,
                        "gumbel": 1e-4,
                    },
                },
            },
            indent=2,
        )
        + "\n"
    )


def write_lines(path: Path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_problems(out: Path) -> None:
    """The generated problems: 2-4 changes of the count for training and test, 4-5 and 5-6 for
    longer tests; and multiple choice on skills that are pretrained but not reinforced."""
    out.mkdir(parents=True, exist_ok=True)
    sets = {"train": (3000, (2, 4)), "test": (400, (2, 4)), "hard": (400, (5, 6))}
    sets["long"] = (400, (4, 5))
    for seed, (name, (size, steps)) in enumerate(sets.items()):
        problems = [corpus.problem(seed, i, steps) for i in range(size)]
        write_lines(out / f"{name}.jsonl", [{"question": q, "answer": a} for q, a in problems])
    for skill in ("facts", "sorting", "drills", "references"):
        write_lines(out / f"{skill}.jsonl", (corpus.choice(skill, i) for i in range(300)))


def read_flags() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for config, weights and tokenizer")
    add("--hidden-size", type=int, default=128, help="d, a multiple of 64 (default 128)")
    add("--steps", type=int, default=4000, help="optimizer steps (default 4000)")
    add("--tokens", type=int, default=4096, help="tokens a step (default 4096)")
    add("--seed", type=int, default=0, help="of the weights and the corpus (default 0)")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    args = parser.parse_args()
    if args.hidden_size < 64 or args.hidden_size % 64:
        parser.error(f"--hidden-size: expected a multiple of 64, found {args.hidden_size}")
    return args


def make_optimizers(model: Transformer) -> list[torch.optim.Optimizer]:
    """Muon for matrices, AdamW for embeddings and norms."""
    parameters = dict(model.named_parameters())
    matrices = [n for n, p in parameters.items() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in parameters.items() if n not in matrices]
    muon = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.02}
    adamw = {"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.0}
    return [
        torch.optim.Muon([parameters[n] for n in matrices], **muon),
        torch.optim.AdamW(rest, **adamw),
    ]


def train(model: Transformer, tokenizer: Tokenizer, raw: dict, args: argparse.Namespace) -> None:
    """Next-token prediction, weights of documents as `batches` says; saves now and then."""
    optimizers = make_optimizers(model)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    base = [group["lr"] for group in groups]
    start, smooth = time.time(), None
    bar = tqdm(batches(tokenizer, args.seed, args.steps, args.tokens), total=args.steps)
    for step, (ids, weight) in enumerate(bar):
        cosine = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group, lr in zip(groups, base, strict=True):
            group["lr"] = lr * min((step + 1) / 100, cosine)
        logits = model.logits(model(model.embed(ids[:, :-1])))  # (B, T-1, V)
        nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (nll * weight[:, 1:].flatten()).sum() / weight[:, 1:].sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
        bar.set_postfix(loss=f"{smooth:.4f}")
        if step % 500 == 499 or step + 1 == args.steps:
            save(args.out, model, tokenizer, raw)
            bar.write(f"step {step + 1}: loss {smooth:.4f}, {time.time() - start:.0f} s")


def main() -> None:
    args = read_flags()
    write_problems(args.out)
    write_sidecar(args.out)
    torch.set_num_threads(args.threads)
    tokenizer = make_tokenizer()
    raw = make_config(tokenizer.get_vocab_size(), args.hidden_size)
    model = Transformer(read_config(raw))
    initialise(model, args.seed)
    train(model, tokenizer, raw, args)


def save(out: Path, model: Transformer, tokenizer: Tokenizer, raw: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {n: p.detach().contiguous() for n, p in model.state_dict().items()},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}, indent=2) + "\n")
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<eos>",
                "unk_token": "<unk>",
                "clean_up_tokenization_spaces": False,
                "model_max_length": 1024,
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
