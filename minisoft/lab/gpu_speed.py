"""Parts of `minisoft.lab.gpu` that measure: the machine, the speed and memory of updates, and
with --profile where a GPU's time goes."""

import os
import subprocess
from collections import Counter, defaultdict
from statistics import median

import torch

from minisoft.engine import memory
from minisoft.engine.replay import recompute_layers
from minisoft.io import checkpoint
from minisoft.lab import bench
from minisoft.lab.bench import Work
from minisoft.lab.gpu_parts import Report, clean
from minisoft.training.metrics import memory_bytes
from minisoft.training.optimizer import Optimizer, Schedule
from minisoft.training.world import World

GIB = 2**30
COLUMNS = {**bench.COLUMNS, "allocated": "peak, GiB", "reserved": "reserved", "plan": "planned"}
TOP = 25  # kernels shown


def machine(report: Report) -> None:
    """Card, versions, memory; bytes read and operations a second."""
    device = report.device
    for dtype in checkpoint.DTYPES:
        can = bench.machine(device, checkpoint.DTYPES[dtype])
        report.numbers[dtype] = can
        found = f"{can['bandwidth'] / 1e9:,.0f} GB/s, {can['throughput'] / 1e12:,.2f} TFLOP/s"
        report.check(f"reads, multiplies in {dtype}", "told only", found, None)
    report.check("torch", "told only", f"{torch.__version__}, CUDA {torch.version.cuda}", None)
    gib = f"{memory_bytes(device) / GIB:.1f} GiB"
    name = f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if report.on_gpu:
        name = f"{torch.cuda.get_device_name(device)}, driver {driver()}"
    report.check("device", "told only", f"{name}, {gib}", None)


def driver() -> str:
    """The version of NVIDIA's driver, as nvidia-smi says it."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    return said.splitlines()[0] if said else "unknown"


def speed(report: Report) -> None:
    """Updates of each shape; of the embedded model where there is no GPU and no --shapes."""
    args, on_gpu = report.args, report.on_gpu
    shapes = args.shapes or (["llama-3.2-1b", "llama-3.2-3b"] if on_gpu else [None])
    size = "--cot 128 --group 32 --dtype bfloat16" if on_gpu else "--cot 16 --group 4"
    for shape in shapes:
        flags = [*size.split(), "--device", str(report.device), "--prompts", "2"]
        if shape:
            flags += ["--shape", shape]
        try:
            measure(report, bench.read_flags(flags), shape)
        except torch.OutOfMemoryError as error:
            found = str(error).splitlines()[0]
            report.check(f"{shape}: an update", "fits", found, False)
        clean(report.device)


def measure(report: Report, flags, shape: str | None) -> None:
    """Updates of one shape with hard and soft tokens, in turn, and their memory."""
    work, name = bench.prepare(flags), shape or "weights/tiny"
    work.micro_batch = report.args.micro_batch or choose_rows(work, report)
    optimizer = Optimizer(work.model, Schedule(1e-9, 10, 0), World(str(report.device)))
    can = bench.machine(report.device, work.model.E.dtype)
    clean(report.device)
    times, peaks = timed(work, optimizer, report)
    rows = [["tokens", *COLUMNS.values()]]
    kinds = {}
    for tokens, of_kind in times.items():
        of_parts = {part: [took[part] for took in of_kind] for part in of_kind[0]}
        found = bench.speeds(work, tokens, can, of_parts)
        plan = memory.peak(planned(work, tokens, report)) / GIB
        kinds[tokens] = {**found, **peaks[tokens], "plan": plan}
        rows.append([tokens, *(bench.shown(x, kinds[tokens][x]) for x in COLUMNS)])
    ratio = median(s["step"] / h["step"] for s, h in zip(times["soft"], times["hard"], strict=True))
    judge(report, name, kinds, ratio)
    sizes = f"{len(work.prompts)} x {work.group} rows, {work.steps} steps"
    bandwidth = f"{can['bandwidth'] / 1e9:,.0f} GB/s"
    title = f"{name}, {flags.dtype}, {sizes}, {work.micro_batch} rows a backward pass, {bandwidth}"
    report.tables.append((title, rows))
    report.numbers[name] = {"kinds": kinds, "ratio": ratio, **can, "seconds": times}
    if report.args.profile:
        profile(report, name, work, optimizer)


def choose_rows(work: Work, report: Report) -> int:
    """Rows a backward pass, as train.py chooses them on this device."""
    where = memory.Machine(report.device.type)
    most = memory_bytes(report.device)
    rows, again = memory.choose_micro_batch(work.model, work.steps, most, where)
    if again:
        recompute_layers(work.model)
    return min(rows, work.rows)


def timed(work: Work, optimizer: Optimizer, report: Report) -> tuple[dict, dict]:
    """({tokens: [seconds of the parts of each update]}, {tokens: peak memory in GiB}); the first
    update of each kind is warm-up."""
    times = defaultdict(list)
    peaks = {"hard": {"allocated": 0.0, "reserved": 0.0}, "soft": {}}
    peaks["soft"] |= peaks["hard"]
    for turn in range(report.args.repeats + 1):
        for tokens, peak in peaks.items():
            if report.on_gpu:
                torch.cuda.reset_peak_memory_stats(report.device)
            took = bench.update(work, optimizer, tokens, "update", turn)
            if turn:
                times[tokens].append(took)
            if report.on_gpu:
                allocated = torch.cuda.max_memory_allocated(report.device) / GIB
                peak["allocated"] = max(peak["allocated"], allocated)
                reserved = torch.cuda.max_memory_reserved(report.device) / GIB
                peak["reserved"] = max(peak["reserved"], reserved)
    return dict(times), peaks


def planned(work: Work, tokens: str, report: Report) -> dict:
    """What `train.py --plan` says of this work, in bytes."""
    load = memory.Load(
        rows=work.rows,
        problems=len(work.prompts),
        cot=work.cot,
        after=work.steps - work.cot,
        prompt=max(map(len, work.prompts)),
        micro_batch=work.micro_batch,
        mixes=work.kind(tokens).mixes,
    )
    return memory.plan(work.model, load, memory.Machine(report.device.type))


def judge(report: Report, name: str, kinds: dict, ratio: float) -> None:
    """Limits for an H100; elsewhere they are only told, as the share of the bandwidth always is,
    of which 60 % would be good."""
    large = report.on_gpu and memory_bytes(report.device) > 75 * GIB
    judged = large and torch.cuda.get_device_capability(report.device)[0] >= 9
    soft, peak = kinds["soft"], max(of["allocated"] for of in kinds.values())
    share = min(of["decode_share"] for of in kinds.values())
    limits = [
        ("share of what the bandwidth allows", "told only", f"{share:.0%}", None),
        ("a soft / a hard update", "<= 1.05", f"{ratio:.3f}", ratio <= 1.05),
        ("peak memory", "< 78 GiB", f"{peak:.1f} GiB", peak < 78),
    ]
    if name == "llama-3.2-3b":
        tokens, seconds = soft["tokens_per_s"], max(of["step"] for of in kinds.values())
        fast = tokens >= 12000
        limits.append(("soft rollout, tokens/s", ">= 12,000", f"{tokens:,.0f}", fast))
        limits.append(("an update", "<= 2.0 s", f"{seconds:.2f} s", seconds <= 2))
    for what, expected, found, ok in limits:
        expected = expected if judged else "told only"
        report.check(f"{name}: {what}", expected, found, ok if judged else None)


# ------------------------------------------------------------------------------- profile


def profile(report: Report, name: str, work: Work, optimizer: Optimizer) -> None:
    """Where the device's time goes in one rollout, one replay and one update of the weights."""
    for tokens in ("hard", "soft"):
        kind, kept = work.kind(tokens), []

        def rollout(kind=kind, kept=kept) -> None:
            kept.extend(work.rollout(kind, 99))

        def replay(kind=kind, kept=kept) -> None:
            with optimizer.summing():
                work.replay(kind, kept)

        def update() -> None:
            optimizer.update(0, optimizer.collect())

        for part in (rollout, replay, update):
            kernels, launches = traced(part)
            steps = work.steps if part is rollout else 1
            ran = sum(count for _, count in kernels.values())
            title = (
                f"{name}, {tokens}, {part.__name__}: {ran / steps:,.0f} kernels and "
                f"{sum(launches.values()) / steps:,.1f} launches by the host "
                f"{'a step' if steps > 1 else 'in all'} ({shown_launches(launches)})"
            )
            report.tables.append((title, kernel_table(kernels)))


def traced(function) -> tuple[dict[str, list], Counter]:
    """({kernel: [seconds, times]}, {launching call of the host: times}) of function(); without a
    GPU, the operators of the CPU."""
    on_gpu = torch.cuda.is_available()
    activity, side = (
        ("CUDA", torch.autograd.DeviceType.CUDA)
        if on_gpu
        else ("CPU", torch.autograd.DeviceType.CPU)
    )
    activities = [getattr(torch.profiler.ProfilerActivity, activity)]
    with torch.profiler.profile(activities=activities) as profiled:
        function()
        if on_gpu:
            torch.cuda.synchronize()
    kernels, launches = defaultdict(lambda: [0.0, 0]), Counter()
    for event in profiled.profiler.kineto_results.events():  # raw: there may be a million
        name = event.name()
        if "Launch" in name and name.startswith("cu"):
            launches[name] += 1
        elif event.device_type() == side and not name.startswith("Optimizer."):  # a bracket
            kernels[name][0] += event.duration_ns() / 1e9
            kernels[name][1] += 1
    return kernels, launches


def shown_launches(launches: Counter) -> str:
    return ", ".join(f"{name} {count}" for name, count in launches.most_common(4)) or "none"


def kernel_table(kernels: dict[str, list]) -> list[list[str]]:
    """The kernels that take most of the time."""
    whole = sum(seconds for seconds, _ in kernels.values()) or 1.0
    rows = [["ms", "share", "times", "us each", "kernel"]]
    for name, (seconds, count) in sorted(kernels.items(), key=by_seconds)[:TOP]:
        each = f"{1e6 * seconds / count:.1f}"
        short = name.replace("|", "/").removeprefix("void ")[:90]
        rows.append([f"{1e3 * seconds:.2f}", f"{seconds / whole:.1%}", str(count), each, short])
    return [*rows, [f"{1e3 * whole:.2f}", "100%", "", "", "all"]]


def by_seconds(kernel: tuple[str, list]) -> float:
    return -kernel[1][0]
