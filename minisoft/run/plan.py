"""What `train.py --plan RANKS` prints: the memory of the rank with the most problems."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch

from minisoft import data
from minisoft.data import ANSWER_TOKENS, Format
from minisoft.io import checkpoint, datasets
from minisoft.io.tokenizer import Tokenizer
from minisoft.run import memory
from minisoft.run.metrics import markdown, memory_bytes
from minisoft.run.settings import Settings
from minisoft.run.world import read_device, share

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them is there
SHARDED_ABOVE = 4e9  # parameters from which on masters and moments are kept in pieces


def in_pieces(shard: str, model) -> bool:
    """Are float32 masters and AdamW's moments kept in pieces?  shard: auto, yes or no."""
    return shard == "yes" or (shard == "auto" and memory.parameters(model) > SHARDED_ABOVE)


def text(args: Namespace, source: Path, settings: Settings) -> str:
    """The plan as text.  args: the filled flags of train.py.

    Where `source` has no tokenizer, prompts are taken to have 256 tokens, and where there is no
    GPU, one to have 80 GB.
    """
    model = checkpoint.outline(source).to(checkpoint.DTYPES[args.dtype])
    ranks = args.plan
    device = read_device(args.device).type  # which need not be there
    there = device == "cpu" or torch.cuda.is_available()
    bytes_there = memory_bytes(torch.device(device)) if there else 80e9
    pieces = ranks if in_pieces(args.shard, model) else 1
    machine = memory.Machine(device, pieces)
    prompt, after = _lengths(args.data, source, settings.template)
    shares = [share(rank, ranks, args.prompts, args.group) for rank in range(ranks)]
    rows = args.prompts * args.group // ranks
    micro_batch, again = memory.choose_micro_batch(model, args.cot + after, bytes_there, machine)
    kind = replace(settings, sigma=1.0).kind(args.tokens)
    load = memory.Load(
        rows=rows,
        problems=max(map(len, shares)),
        cot=args.cot,
        after=after,
        prompt=prompt,
        micro_batch=min(rows, args.micro_batch or micro_batch),
        mixes=kind.mixes,
        action=memory.action_bytes(model, kind),
        recompute=again,
    )
    table = markdown(memory.table(memory.plan(model, load, machine)))
    return (
        f"{args.model}: {memory.parameters(model):,} parameters, {args.dtype}, {ranks} ranks of "
        f"{device} with {bytes_there / 2**30:.0f} GiB, masters and moments "
        f"{'in pieces' if pieces > 1 else 'on every rank'}\n"
        f"a rank's part of a step: {rows} rows of {load.problems} problems, prompts of {prompt} "
        f"and rows of {load.positions} tokens, {load.micro_batch} rows at a time backward"
        f"{', layers computed twice' if again else ''}\n{table}"
    )


def _lengths(source_of_data: str, source: Path, template: str) -> tuple[int, int]:
    """Tokens of the longest prompt, and most tokens after a CoT."""
    if not any((source / name).is_file() for name in VOCABULARIES):
        return 256, 16 + ANSWER_TOKENS
    tokenizer = Tokenizer(source)
    problems = datasets.load_problems(source_of_data)
    longest = max(problems, key=lambda problem: len(problem.question)).question
    prompt = tokenizer.encode(data.prompt(longest, template))
    return len(prompt), max(map(len, Format(tokenizer).prefill)) + ANSWER_TOKENS
