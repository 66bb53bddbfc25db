"""What a CPU can, and other work on it: processes that spin."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch

# It ends by itself when the pipe to its parent closes, however the parent ended.
SPIN = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0))).start()
print(flush=True)
while True:
    pass
"""


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


def instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict:
    """{"name" of the CPU, "kernels": the instructions that PyTorch uses here, "avx512_bf16" and
    "amx_bf16": does the CPU have them?}; None: unknown, as without Linux."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    found = {"name": fields.get("model name"), "kernels": torch.backends.cpu.get_cpu_capability()}
    flags = fields["flags"].split() if "flags" in fields else None
    for name in ("avx512_bf16", "amx_bf16"):
        found[name] = None if flags is None else name in flags
    return found


def told(cpu: dict) -> str:
    """What `instructions` found, in a line."""
    words = {True: "yes", False: "no", None: "unknown"}
    bf16 = [f"{name} {words[cpu[name]]}" for name in ("avx512_bf16", "amx_bf16")]
    return ", ".join([cpu["name"] or "CPU unknown", f"{cpu['kernels']} kernels", *bf16])
