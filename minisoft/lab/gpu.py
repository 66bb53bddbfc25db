"""Does everything hold on this machine's GPU?  One command, minutes.

    python -m minisoft.lab.gpu --json FILE                     # all parts; smaller without a GPU
    python -m minisoft.lab.gpu --part speed --shapes llama-3.2-3b --profile
    python -m minisoft.lab.gpu --part train --seeds 0 1 2 --train-tokens soft hard top-5 \\
        --train-dtypes float32 bfloat16
    torchrun --nproc-per-node 8 -m minisoft.lab.gpu            # the part `ranks` over NCCL

    machine    the card, what it reads and multiplies a second
    logits     logits on the device against float32 on the CPU
    gradient   gradients of recorded rollouts against those of a float32 model; replay mismatch
    graphs     the same records with CUDA graphs and without, and however seldom the host looks
    resume     a run that was killed and resumed against one that was left alone
    memory     an update that is short of memory
    ranks      updates by several ranks against those by one
    fake       decoding steps without a GPU: nothing is read by the host
    train      the embedded model by train.py's defaults (without a GPU only if it is named)
    speed      tokens/s, seconds of an update, memory, of large shapes with random weights

`resume`, `ranks` and `train` start programs, which run beside the parts after `machine` and before
`speed`.  A part that fails does not stop the others.  Exit status 0: all that is judged holds.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from minisoft.io import atomic, checkpoint
from minisoft.lab import bench, command, gpu_engine, gpu_parts, gpu_runs, gpu_speed
from minisoft.lab.gpu_parts import TINY, TOKENS, Report, clean
from minisoft.training.metrics import markdown
from minisoft.training.world import as_program, find_device, keep_memory

PARTS = {
    "machine": gpu_speed.machine,
    "logits": gpu_parts.logits,
    "gradient": gpu_parts.gradient,
    "graphs": gpu_engine.graphs,
    "memory": gpu_engine.memory,
    "fake": gpu_engine.fake,
    "resume": gpu_runs.resume,
    "ranks": gpu_runs.ranks,
    "train": gpu_runs.train,
    "speed": gpu_speed.speed,
}
PROGRAMS = ("resume", "ranks", "train")  # run beside the others
CLOCKED = ("machine", "speed")  # run with nothing beside them
MINUTES_ON_CPU = ("train",)  # only where they are named
VERDICTS = {True: "yes", False: "NO", None: ""}


def run_parts(names: list[str], args: argparse.Namespace, device: torch.device) -> Iterator:
    """(name, Report) of each part; whatever ends this early ends the programs, too."""
    together = [name for name in names if name not in CLOCKED]
    first, last = ([name] if name in names else [] for name in CLOCKED)
    for group in (first, together, last):
        with ThreadPoolExecutor(len(PROGRAMS)) as pool:
            started = {
                name: pool.submit(run_part, name, args, device)
                for name in group
                if name in PROGRAMS
            }
            try:
                for name in group:
                    beside = started.get(name)
                    yield name, beside.result() if beside else run_part(name, args, device)
            except BaseException:
                gpu_runs.end_all()
                raise
        clean(device)


def run_part(name: str, args: argparse.Namespace, device: torch.device) -> Report:
    """What a part has found; an error in it is a check that does not hold."""
    report, start = Report(args, device), time.perf_counter()
    tell(f"{name} ...")
    try:
        PARTS[name](report)
    except (Exception, SystemExit) as error:
        report.numbers["traceback"] = traceback.format_exc()
        tell(report.numbers["traceback"])
        last = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
        report.check("comes to its end", "no error", last[:200], False)
        traceback.clear_frames(error.__traceback__)  # they would keep its memory
    report.numbers["seconds"] = time.perf_counter() - start
    failed = sum(ok is False for *_, ok in report.checks)
    tell(f"{name}: {report.numbers['seconds']:.1f} s, {failed} of {len(report.checks)} failed")
    return report


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def describe(reports: dict[str, Report]) -> str:
    """All checks as one table, then what was measured."""
    rows = [["part", "what was checked", "expected", "found", "ok"]]
    for part, report in reports.items():
        rows += [[part, *shown, VERDICTS[ok]] for *shown, ok in report.checks]
    cells = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    took = ", ".join(f"{part} {r.numbers['seconds']:.0f}" for part, r in reports.items())
    texts = [markdown(cells), f"seconds: {took}"]
    for report in reports.values():
        texts += [f"{title}\n\n{markdown(table)}" for title, table in report.tables]
    return "\n\n".join(texts)


def facts(reports: dict[str, Report]) -> dict:
    """What --json writes."""
    return {
        part: {
            "checks": [list(check) for check in report.checks],
            "tables": [list(table) for table in report.tables],
            **report.numbers,
        }
        for part, report in reports.items()
    }


WHOLE, WHOLES = {"type": int}, {"type": int, "nargs": "+"}
FLAGS = {
    "what is run": {
        "--part": (None, "parts (default all)", {"nargs": "+", "choices": PARTS}),
        "--device": (None, "cpu or cuda (default cuda where there is one)", {}),
        "--json": (None, "file for everything, written after each part", {"type": Path}),
    },
    "gradient": {"--model": (str(TINY), "folder, or hub id owner/name", {})},
    "train": {
        "--seeds": ([0], "seeds, each with each kind of token and dtype", WHOLES),
        "--train-tokens": (["soft"], "kinds of token", {"nargs": "+", "choices": TOKENS}),
        "--train-dtypes": (
            None,
            "dtypes (default train.py's)",
            {"nargs": "+", "choices": checkpoint.DTYPES},
        ),
        "--jobs": (min(6, max(1, (os.cpu_count() or 2) // 2)), "runs at the same time", WHOLE),
    },
    "speed": {
        "--shapes": (
            None,
            "shapes with random weights (default llama-3.2-1b and 3b; without a GPU the embedded "
            "model)",
            {"nargs": "+", "choices": bench.SHAPES},
        ),
        "--micro-batch": (None, "rows per backward pass (default as train.py chooses)", WHOLE),
        "--repeats": (3, "updates of each kind of token, after one as warm-up", WHOLE),
        "--profile": (None, "and where the GPU's time goes", {"action": "store_true"}),
    },
}


def read_flags(argv=None) -> argparse.Namespace:
    parser = command.parser("gpu", __doc__)
    command.add_flags(parser, FLAGS)
    args = parser.parse_args(argv)
    command.expect_least(parser, args, jobs=1, micro_batch=1, repeats=1)
    command.expect_folder(parser, "--json", args.json)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and (args.part or ["ranks"]) != ["ranks"]:
        parser.error("--part: expected only ranks under torchrun")
    return args


def main(argv=None) -> int:
    """The exit status: 0 where everything that is judged holds."""
    args, reports = read_flags(argv), {}
    rank, ranks = (int(os.environ.get(name, x)) for name, x in (("RANK", 0), ("WORLD_SIZE", 1)))
    with command.one_line("gpu"):
        keep_memory()
        device = find_device(args.device, int(os.environ.get("LOCAL_RANK", 0)))
        checkpoint.find(args.model)
        unasked = [] if device.type == "cuda" else MINUTES_ON_CPU
        parts = [name for name in PARTS if name in (args.part or {*PARTS}.difference(unasked))]
        for name, report in run_parts(["ranks"] if ranks > 1 else parts, args, device):
            reports[name] = report
            if args.json and rank == 0:
                atomic.write_json(args.json, facts(reports))
    if rank == 0:
        print(describe(reports))
    return 0 if all(report.held for report in reports.values()) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no program stays behind
    as_program(main)
