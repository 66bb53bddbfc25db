"""Functions that a GPU does in one kernel, by torch.compile.

They round where the ordinary operations round, so that what does without them finds the same
numbers.  Where torch.compile does not work, and on CPUs, they run as they are.
"""

import sys
import warnings

import torch


class OneKernel:
    """A function of tensors, compiled when it first meets a GPU."""

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
            return self._compiled()(x, *others)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler, or its absence, may bring
            OneKernel.works = False
            reason = f"{type(error).__name__}: {str(error).strip():.100}".splitlines()[0]
            text = "torch.compile does not work here, so decoding is slower than it could be"
            print(f"minisoft.engine: {text} ({reason})", file=sys.stderr)
            return self.function(x, *others)

    def _compiled(self):
        if self.compiled is None:
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\._inductor")
            self.compiled = torch.compile(self.function, dynamic=False, options=self.OPTIONS)
        return self.compiled
