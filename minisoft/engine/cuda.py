"""What a GPU is given as a whole: a function as one kernel, by torch.compile; a step as one graph.

On CPUs both run as they are.  Compiled functions round where the ordinary operations round, so that
what does without them finds the same numbers.
"""

import sys
import warnings

import torch

GRAPHS = True  # False: every step is an ordinary one on a GPU too


class OneKernel:
    """A function of tensors, compiled when it first meets a GPU; as it is where that fails."""

    works = True  # until torch.compile fails
    OPTIONS = {
        "emulate_precision_casts": True,  # rounds to 16 bits where PyTorch does
        "deterministic": True,  # no choice by the clock, so that a resumed run has the same bits
    }

    def __init__(self, function):
        self.function, self.compiled = function, None

    def __call__(self, x: torch.Tensor, *others):
        if not (x.is_cuda and OneKernel.works):
            return self.function(x, *others)
        try:
            if self.compiled is None:
                warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._inductor")
                self.compiled = torch.compile(self.function, dynamic=False, options=self.OPTIONS)
            return self.compiled(x, *others)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler, or its absence, may bring
            OneKernel.works = False
            reason = f"{type(error).__name__}: {str(error).strip():.100}".splitlines()[0]
            text = "torch.compile does not work here, so decoding is slower than it could be"
            print(f"minisoft.engine: {text} ({reason})", file=sys.stderr)
            return self.function(x, *others)


class Graphs:
    """Records a step once for each shape, after a first ordinary time, and then replays it."""

    def __init__(self, device: torch.device):
        self.device, self.used = device, GRAPHS and device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.used else None

    def run(self, recorded: dict, shape: tuple, step) -> None:
        """recorded: {shape: its graph, or None after the first ordinary step}, which this fills."""
        if not self.used or shape not in recorded:
            step()
            recorded[shape] = None
            return
        if recorded[shape] is None:
            graph = torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream(self.device)
            options = {"pool": self.pool, "stream": stream, "capture_error_mode": "thread_local"}
            with torch.cuda.graph(graph, **options):  # NCCL's thread may go on meanwhile
                step()
            recorded[shape] = graph
        recorded[shape].replay()
