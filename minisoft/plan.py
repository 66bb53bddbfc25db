"""How much memory a run needs."""

from minisoft.model import Transformer

MOST_ROWS = {"cuda": 64}  # of a micro-batch; 16 on CPUs, where more take longer


def position_bytes(model: Transformer) -> int:
    """Bytes that one position of a row keeps for the backward pass, most of it in the layers.  A test measures them."""
    c = model.config
    heads = (6 * c.num_attention_heads + 10 * c.num_key_value_heads) * c.head_dim
    numbers = 6 * c.hidden_size + heads + 4 * c.intermediate_size
    return c.num_hidden_layers * numbers * model.E.element_size()


def choose_micro_batch(model: Transformer, positions: int, memory: float, pieces: int = 1) -> int:
    """Rows of `positions` positions that a backward pass may take at once where there are `memory` bytes in all: half of
    what weights, gradients, float32 masters and AdamW's moments in `pieces` leave (the rest is for logits and rollouts).
    Where not even one fits, layers are computed again in the backward pass from now on."""
    state = sum(state_bytes(model, pieces).values())
    rows = int((memory - state) / 2 / (positions * position_bytes(model)))
    model.recompute = rows < 1
    return min(max(rows, 1), MOST_ROWS.get(model.E.device.type, 16))


def state_bytes(model: Transformer, pieces: int) -> dict[str, int]:
    """Bytes that live as long as the run, besides the gradient at the end of the backward passes: of the weights, of their sums over backward passes (float64 on CPUs), of float32
    masters and AdamW's moments (`Optimizer`)."""
    N, size = sum(p.numel() for p in model.parameters()), model.E.element_size()
    return {"weights": N * size, "gradient": N * (8 if model.E.device.type == "cpu" else 4),
            "masters": 0 if size == 4 and pieces == 1 else 4 * N // pieces, "moments": 8 * N // pieces}
