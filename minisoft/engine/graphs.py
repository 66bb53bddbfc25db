"""CUDA graphs: steps that a GPU is given as a whole."""

import torch

USED = True  # False: every step is an ordinary one on a GPU too


class Graphs:
    """Records a step once for each shape, after a first ordinary time, and then replays it.  Off
    GPUs every step is an ordinary one."""

    def __init__(self, device: torch.device):
        self.device, self.used = device, USED and device.type == "cuda"
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
