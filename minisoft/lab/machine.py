"""What this machine can do, and other work on it: processes that spin."""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch

from minisoft.engine.linear import product

SIZES = {"cpu": (2**26, 2048), "cuda": (2**28, 8192)}  # of `limits`: numbers read, matrix side
# It ends by itself when the pipe to its parent closes, however the parent ended.
SPIN = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
print(flush=True)
while True:
    pass
"""


def seconds(function, device: torch.device) -> tuple:
    """(how long function() takes on the device, what it returns)"""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


@torch.no_grad()
def limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes/s read from memory, floating-point operations/s of a large matrix product."""
    numbers, n = SIZES[device.type]
    large = torch.ones(numbers, device=device)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

    def best(function) -> float:
        return min(seconds(function, device)[0] for _ in range(5))

    fastest = min(best(lambda: product(a, b)), best(lambda: a @ b))
    return {"bandwidth": large.nbytes / best(large.sum), "throughput": 2 * n**3 / fastest}


def processor(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What it is called; of a CPU also the instructions that PyTorch uses here, and whether it has
    those for 16 bits (unknown where it does not tell, as without Linux)."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    fields = {
        key.strip(): value.strip()
        for key, _, value in (x.partition(":") for x in text.splitlines())
    }
    flags = fields.get("flags", "").split()
    found = [fields.get("model name", "CPU unknown")]
    found.append(f"{torch.backends.cpu.get_cpu_capability()} kernels")
    for name in ("avx512_bf16", "amx_bf16"):
        known = "yes" if name in flags else "no"
        found.append(f"{name} {known if flags else 'unknown'}")
    return ", ".join(found)


@contextmanager
def busy(count: int):
    """Inside, `count` processes spin, each on a core if it gets one; afterwards they are gone."""
    command = [sys.executable, "-I", "-S", "-c", SPIN]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    spinning = []
    try:
        for _ in range(count):
            spinning.append(subprocess.Popen(command, **pipes))
        for process in spinning:
            process.stdout.readline()  # now it spins
        yield spinning
    finally:
        for process in spinning:
            process.kill()
        for process in spinning:
            process.communicate()
