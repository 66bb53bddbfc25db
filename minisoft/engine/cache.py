"""Keys and values of many rows that continue shared prompts, for decoding one position at a time.

Dimensions: N rows, P prompts, L layers, H query and K key/value heads, D head_dim, C positions of
the longest prompt, R rows of the prompt with the most.
"""

import math

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minisoft.model import Config, Prompt


class RowCache:
    """Decoding one position at a time: N rows, each with its own continuation of one of P prompts.

    A prompt's keys and values are read once for all of its rows.  Rows and prompts come and go:
    `bind` the rows when `prompts`, or which of them each row continues, `prompt_of`, has changed.
    Before a step, `position` (N,) holds the number of positions each row has, and `reserve` has
    made room for the longest.
    What a row computes does not depend on the other rows, bit for bit where a product of at least
    4 rows gives the same numbers whatever their count (as MKL's does in float32): hence BLOCK, and
    the smallest grid of 4.
    """

    BLOCK = 16  # N, a prompt's length and the rows' width are rounded up to multiples of it

    def __init__(self, config: Config, rows: int, capacity: int, prompt: int, device, dtype):
        """Room for so many rows, positions of each, and positions of a prompt, which here grow."""
        L, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        if torch.device(device).type == "cpu":
            dtype = torch.float32  # CPUs multiply small bfloat16 matrices slowly
        N = self.round_up(rows)
        self.queries = config.num_attention_heads // K  # query heads of a key head
        # of each layer, (2, N, K, width, D): without gaps it is read three times as fast
        self.own = [torch.zeros(2, N, K, 0, D, device=device, dtype=dtype) for _ in range(L)]
        self.width = 0  # so many of the rows' own positions are read
        self.position = torch.zeros(N, dtype=torch.long, device=device)
        self.rows = torch.arange(N, device=device)
        self.clear()

    @classmethod
    def round_up(cls, n: int) -> int:
        return -(-n // cls.BLOCK) * cls.BLOCK

    def clear(self) -> None:
        """No rows and no prompts."""
        self.prompts: dict[int, Prompt] = {}  # by a number of its own
        self.prompt_of: list[int | None] = [None] * len(self.rows)  # None for an empty row
        self.stacked: list[int] = []  # the prompts that `prompt` has

    def rows_of(self) -> dict[int, list[int]]:
        """The rows of each prompt that any row continues."""
        rows_of: dict[int, list[int]] = {}
        for row, number in enumerate(self.prompt_of):
            if number is not None:
                rows_of.setdefault(number, []).append(row)
        return dict(sorted(rows_of.items()))

    def bind(self) -> None:
        """Stack the prompts, and group the rows by them in a grid (P, R) that may have gaps."""
        device, rows_of = self.position.device, self.rows_of()
        if [*rows_of] != self.stacked:
            self._stack([*rows_of])
        R = max([*map(len, rows_of.values()), -(-4 // self.queries)])  # products of 4 rows or more
        row_at = [0] * (len(rows_of) * R)  # gaps compute row 0, for nobody
        cell_of = [0] * len(self.prompt_of)  # empty rows get that of another
        starts = [0] * len(self.prompt_of)
        for p, (number, rows) in enumerate(rows_of.items()):
            for cell, row in enumerate(rows, p * R):
                row_at[cell], cell_of[row], starts[row] = row, cell, self.prompts[number].length
        self.grid = len(rows_of), R
        self.to_grid = self.to_rows = None  # where the rows are in this order, without a gap
        if row_at != [*range(len(self.prompt_of))]:
            self.to_grid = torch.tensor(row_at, device=device)
            self.to_rows = torch.tensor(cell_of, device=device)
        self.start = torch.tensor(starts, device=device)
        self.past_prompt = torch.arange(self.prompt.shape[4], device=device) >= self.start[:, None]

    def _stack(self, numbers: list[int]) -> None:
        """Prompts as one tensor (L, 2, P, K, C, D)."""
        prompts, own = [self.prompts[number] for number in numbers], self.own[0]
        C = self.round_up(max(prompt.length for prompt in prompts))
        shape = (len(self.own), 2, len(prompts), own.shape[2], C, own.shape[4])
        self.stacked, self.prompt = numbers, own.new_zeros(shape)
        for p, prompt in enumerate(prompts):
            for layer, pair in enumerate(zip(prompt.keys, prompt.values, strict=True)):
                for stacked, x in zip(self.prompt[layer], pair):
                    stacked[p, :, : prompt.length] = x[0]

    def reserve(self, positions: int) -> None:
        """The next steps read and write so many of the rows' own positions."""
        self.width = self.round_up(positions)
        more = self.width - self.own[0].shape[3]
        for layer, own in enumerate(self.own if more > 0 else []):
            self.own[layer] = F.pad(own, (0, 0, 0, more))  # 0: what is masked must be finite

    def positions(self) -> torch.Tensor:
        """A step begins: the position of every row in its text, (N, 1)."""
        device = self.position.device
        past_own = torch.arange(self.width, device=device) > self.position[:, None]  # (N, n)
        masked = torch.cat((self.past_prompt, past_own), dim=1)  # (N, C + n)
        bias = torch.zeros(masked.shape, dtype=self.prompt.dtype, device=device)
        self.bias = bias.masked_fill_(masked, -math.inf)
        self.at = self.position
        return (self.start + self.position)[:, None]

    def stored(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows' own keys and values, (N, positions, K, D) each; this step's go `at` (N,)."""
        keys, values = self.own[layer].transpose(2, 3)
        return keys, values

    def attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Queries (N, H, 1, D) -> (N, H, 1, D); keys and values of this position are in place."""
        (N, H, _, D), dtype = q.shape, q.dtype
        keys, values = self.own[layer][:, :, :, : self.width]
        prompt_keys, prompt_values = self.prompt[layer]
        q = q.to(keys.dtype)
        q = q.view(N, -1, self.queries, D) * D**-0.5  # (N, K, h, D), h query heads of a key head
        on_prompt = self._of_prompts(q, prompt_keys.transpose(2, 3))  # (N, K, h, C)
        on_own = q @ keys.transpose(2, 3)  # (N, K, h, n)
        score = torch.cat((on_prompt, on_own), dim=-1).add_(self.bias[:, None, None])
        score = score.float().softmax(-1).to(q.dtype)
        on_prompt, on_own = score.split((self.prompt.shape[4], self.width), dim=-1)
        out = self._of_prompts(on_prompt, prompt_values) + on_own @ values
        return out.reshape(N, H, 1, D).to(dtype)

    def _of_prompts(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Rows x (N, K, h, X) times the matrix of their prompt and head, y (P, K, X, Y) ->
        (N, K, h, Y)."""
        grouped = x if self.to_grid is None else x.index_select(0, self.to_grid)
        grid = grouped.unflatten(0, self.grid).transpose(1, 2)  # (P, K, R, h, X)
        out = (grid.flatten(2, 3) @ y).view(*grid.shape[:-1], -1)  # (P, K, R, h, Y)
        out = out.transpose(1, 2).flatten(0, 1)
        return out if self.to_rows is None else out.index_select(0, self.to_rows)

    def compact(self) -> list[int] | None:
        """Fewer rows where at least BLOCK are empty: the last rows move into the gaps, so only as
        many are copied as must move.  Returns the old place of each row left, None if none went."""
        there = [i for i, prompt in enumerate(self.prompt_of) if prompt is not None]
        N = self.round_up(len(there))
        if N == len(self.prompt_of):
            return None
        gaps = [i for i in range(N) if self.prompt_of[i] is None]
        order = list(range(N))
        for gap, row in zip(gaps, [i for i in there if i >= N], strict=False):
            order[gap] = row
            for own in self.own:
                own[:, gap] = own[:, row]
        self.own, self.position = [own[:, :N] for own in self.own], self.position[order]
        self.prompt_of, self.rows = [self.prompt_of[i] for i in order], self.rows[:N]
        return order


class FusedCache(RowCache):
    """The same for a GPU, where a step is bound by the number of its kernels: every row has a copy
    of its prompt before its own positions, and PyTorch's fused attention reads both at once.

    Nothing that a step reads moves to another address, so that a step recorded as a CUDA graph
    stays right whatever rows come.
    """

    KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]  # with grouped heads and a mask
    WIDER = 64  # the width is a multiple of it: each one means another graph

    def __init__(self, config: Config, rows: int, capacity: int, prompt: int, device, dtype):
        super().__init__(config, rows, capacity, prompt, device, dtype)
        L, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        N, length = len(self.rows), -(-(capacity + prompt) // self.WIDER) * self.WIDER
        own = torch.zeros(L, 2, N, length, K, D, device=device, dtype=dtype)
        self.own = own.transpose(3, 4)
        self.start = torch.zeros(N, dtype=torch.long, device=device)

    def clear(self) -> None:
        super().clear()
        self.copied = list(self.prompt_of)  # whose prompt each row has

    def bind(self) -> None:
        """Copy prompts to the rows that have new ones."""
        for number, rows in self.rows_of().items():
            prompt, new = self.prompts[number], [i for i in rows if self.copied[i] != number]
            if not new:
                continue
            new = torch.tensor(new, device=self.own.device)
            self.start[new] = prompt.length
            for own, *pair in zip(self.own, prompt.keys, prompt.values, strict=True):
                for stored, x in zip(own, pair, strict=True):
                    stored[new, :, : prompt.length] = x
        self.copied = list(self.prompt_of)

    def reserve(self, positions: int) -> None:
        longest = max((prompt.length for prompt in self.prompts.values()), default=0)
        width = -(-(longest + positions) // self.WIDER) * self.WIDER
        self.width = min(width, self.own.shape[4])

    def positions(self) -> torch.Tensor:
        self.at = self.start + self.position  # (N,)
        device = self.own.device
        masked = torch.arange(self.width, device=device) > self.at[:, None]  # (N, n)
        bias = torch.zeros(masked.shape, dtype=self.own.dtype, device=device)
        self.bias = bias.masked_fill_(masked, -math.inf)[:, None, None]  # (N, 1, 1, n)
        return self.at[:, None]

    def attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """q (N, H, 1, D) -> (N, H, 1, D), where the keys and values of this position are in place.

        cuDNN's kernel takes 28 us for 64 rows of 250 positions of Llama-3.2-3B on an H100,
        FlashAttention's 36, the memory-efficient one 39.
        """
        keys, values = self.own[layer][:, :, :, : self.width]
        bias = self.bias.expand(-1, q.shape[1], -1, -1)
        with sdpa_kernel(self.KERNELS, set_priority=True):
            return F.scaled_dot_product_attention(q, keys, values, bias, enable_gqa=True)

    def compact(self) -> None:
        """Never: a new shape is expensive on a GPU, and empty rows are not."""
