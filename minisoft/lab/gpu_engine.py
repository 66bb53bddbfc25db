"""Parts of `minisoft.lab.gpu` that hold the engine to its promises in one process: records with
and without CUDA graphs, an update short of memory, decoding steps without a GPU."""

import hashlib
import io
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend

from minisoft import engine
from minisoft.engine import decode
from minisoft.engine import graphs as cuda_graphs
from minisoft.engine.cache import FusedCache
from minisoft.engine.compiled import OneKernel
from minisoft.io import checkpoint
from minisoft.kinds import make_kind
from minisoft.lab import bench
from minisoft.lab.gpu_parts import FAMILIES, SIZES, TINY, TOKENS, Report, Subject, clean
from minisoft.model import Transformer
from minisoft.rollout import Decoding, Request, Rollout

COMPARED = ("hard", "soft", "hidden", "top-5")  # records of these
ROWS = {"cpu": 8, "cuda": 128}  # of a problem, and of the backward pass that does not fit


# -------------------------------------------------------------------------------- graphs


@contextmanager
def without_graphs():
    """Inside, every decoding step is an ordinary one."""
    before = cuda_graphs.USED
    cuda_graphs.USED = False
    try:
        yield
    finally:
        cuda_graphs.USED = before


def graphs(report: Report) -> None:
    """The same records with CUDA graphs and without, and however seldom the host looks."""
    for dtype in checkpoint.DTYPES:
        subject = Subject(TINY, report.device, dtype, SIZES[report.device.type])
        for name in COMPARED:
            if report.on_gpu:
                compare_graphs(report, subject, f"{dtype} {name}", name)
            often, seldom = (subject.rollouts(name, ahead=n) for n in (1, 8))
            other = unequal(often, seldom)
            judged = {"ids", "role"} if report.on_gpu else set(other)  # shapes, so rounding, differ
            expected = "equal ids, roles" if report.on_gpu else "equal bits"
            found = f"not equal: {', '.join(other)}" if other else "equal bits"
            report.check(f"{dtype} {name}: ahead 1, 8", expected, found, not judged & set(other))


def compare_graphs(report: Report, subject: Subject, what: str, name: str) -> None:
    """On a GPU: were graphs replayed, and are the bits those of ordinary steps?"""
    replay, times = torch.cuda.CUDAGraph.replay, []

    def counting(graph) -> None:
        times.append(graph)
        replay(graph)

    with patch.object(torch.cuda.CUDAGraph, "replay", counting):
        recorded, replays = subject.rollouts(name), len(times)
        with without_graphs():
            ordinary = subject.rollouts(name)
    other = unequal(recorded, ordinary)
    found = f"{replays} replays, without {len(times) - replays}; "
    found += f"not equal: {', '.join(other)}" if other else "equal bits"
    ok = replays and len(times) == replays and not other
    report.check(f"{what}: CUDA graphs, none", "replays, without 0; equal bits", found, ok)


def unequal(some: list[Rollout], others: list[Rollout]) -> list[str]:
    """Names of the tensors that two records of the same requests do not share to the last bit."""
    return [
        f.name
        for f in fields(Rollout)
        if isinstance(getattr(some[0], f.name), torch.Tensor)
        and not all(
            torch.equal(getattr(a, f.name), getattr(b, f.name))
            for a, b in zip(some, others, strict=True)
        )
    ]


# -------------------------------------------------------------------------------- memory


def memory(report: Report) -> None:
    """Too little memory in a backward pass: half as many rows, the same new weights.  On a GPU
    the memory is really limited; elsewhere the error is raised once."""
    rows = ROWS[report.device.type]
    with TemporaryDirectory() as folder:
        less, more, short = (Path(folder) / name for name in ("less", "more", "short"))
        _, least = small_run(report, less, rows // 2)
        scarce, found = patch.object(engine, "backward", fails_once(engine.backward)), ""
        if report.on_gpu:
            _, most = small_run(report, more, rows)
            scarce = limited((least + most) // 2, report.device)
            found = f"{least / 2**20:.0f} and {most / 2**20:.0f} MiB needed; "
        with scarce:
            text, _ = small_run(report, short, rows)
        halved = f"out of memory; from now on {rows // 2} rows a backward pass" in text
        same = digest(less) == digest(short)
    found += f"{'half as many rows' if halved else 'enough memory'}, "
    found += f"{'equal' if same else 'other'} weights"
    what = f"no memory for a backward pass of {rows} rows"
    report.check(what, "half as many rows, equal weights", found, halved and same)


def small_run(report: Report, out: Path, rows: int) -> tuple[str, int]:
    """One update by train.py, so many rows a backward pass: (what it says, most bytes that the
    GPU's allocator held)."""
    import train  # the program beside the package

    flags = "--steps 1 --prompts 2 --cot 40 --validation 0 --test 0 --show-every 0".split()
    flags += ["--dtype", "float32"]  # whatever train.py's default is
    flags += ["--group", str(ROWS[report.device.type]), "--micro-batch", str(rows)]
    clean(report.device)
    if report.on_gpu:
        torch.cuda.reset_peak_memory_stats(report.device)
    text = io.StringIO()
    with redirect_stdout(text), redirect_stderr(io.StringIO()):
        train.main([*flags, "--device", str(report.device), "--out", str(out)])
    return text.getvalue(), torch.cuda.max_memory_reserved(report.device) if report.on_gpu else 0


@contextmanager
def limited(size: int, device: torch.device):
    """Inside, the GPU's allocator gets no more than so many bytes."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(size / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def fails_once(backward):
    """The same function, which runs out of memory in its first call, after its first problem."""
    calls = []

    def failing(model, kind, rollouts, advantages, scale, **options):
        calls.append(scale)
        if len(calls) > 1:
            return backward(model, kind, rollouts, advantages, scale, **options)
        backward(model, kind, rollouts[:1], advantages[:1], scale, **options)
        raise torch.OutOfMemoryError("no memory")

    return failing


def digest(out: Path) -> str:
    """SHA-256 of the last weights of a run."""
    return hashlib.sha256((out / "last/model.safetensors").read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------- fake


class HostReads(Exception):
    """The host would read what the device has made."""


def fake(report: Report) -> None:
    """Decoding steps of every kind on a GPU that is not there: shapes without numbers, so that
    reading one is an error."""
    if not torch.backends.cuda.is_built():
        report.skip("CPU build of torch")
        return
    for dtype in checkpoint.DTYPES:
        for name in TOKENS:
            steps = fake_steps("cuda", dtype, name)
            found = f"{steps} steps"
            report.check(f"{dtype} {name}: steps without the host", "8 steps", found, steps == 8)


def fake_steps(device: str, dtype: str, name: str) -> int:
    """How many steps a rollout takes before the host looks at the text, on a fake device."""
    steps = []

    def step(_, recorded, shape, function) -> None:
        steps.append(shape)
        function()

    def stop(*_) -> None:
        raise HostReads

    token, noise, top_k = TOKENS[name]
    with FakeTensorMode(), patch.object(cuda_graphs.Graphs, "run", step):
        with torch.device("meta"):
            model = Transformer(FAMILIES["grouped heads"])
        dtype = checkpoint.DTYPES[dtype]
        weights = model.state_dict().items()
        there = {n: torch.empty(x.shape, dtype=dtype, device=device) for n, x in weights}
        model.load_state_dict(there, assign=True)
        kind = make_kind(token, 0.1, noise=noise or "embedding", top_k=top_k)
        requests = [Request([3, 4, 5], ("gpu", i), range(3)) for i in range(2)]
        form = bench.FullLength([1, 2])
        pool = patch.object(torch.cuda, "graph_pool_handle")
        ordinary = patch.object(OneKernel, "works", False)  # nothing is compiled for no GPU
        kernels = patch.object(FusedCache, "KERNELS", [SDPBackend.MATH])  # none is chosen for it
        read = patch.object(decode.Scheduler, "_read", stop)
        with pool, ordinary, kernels, read, without_graphs():
            try:
                engine.rollout(engine.accelerate(model), form, kind, requests, Decoding(4), ahead=8)
            except HostReads:
                pass
    return len(steps)
