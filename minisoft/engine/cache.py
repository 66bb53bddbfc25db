"""Keys and values of many rows that continue shared prompts, for decoding one position at a time.

Dimensions: N rows, P prompts, L layers, H query and K key/value heads, D head_dim, C positions of
the longest prompt, R rows of the prompt with the most.
"""

import math
from itertools import count

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from minisoft.engine.fused import one_position, rotate_and_store
from minisoft.engine.linear import is_packed
from minisoft.model import Config, Prompt


class RowCache:
    """Decoding one position at a time: N rows, each with its own continuation of one of P prompts
    (an `attend` of `Transformer.forward`).

    A prompt's keys and values are stored and read once for all of its rows.  Rows come and go:
    `add` a prompt, name each row's in `prompt_of`, then `bind` them.  Before a step, `position`
    (N,) holds the number of positions each row has, and `reserve` has made room for the longest.
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
        # (L, 2, P, K, C, D)
        self.prompt = torch.zeros(L, 2, 0, K, 0, D, device=device, dtype=dtype)
        self.length: list[int] = []  # of each prompt, 0 where there is none
        self.prompt_of: list[int | None] = [None] * N  # of each row, None for an empty row
        self.position = torch.zeros(N, dtype=torch.long, device=device)
        self.rows = torch.arange(N, device=device)

    @classmethod
    def round_up(cls, n: int) -> int:
        return -(-n // cls.BLOCK) * cls.BLOCK

    def add(self, prompt: Prompt, length: int) -> int:
        """Store the first `length` positions of a prompt; returns its number."""
        if 0 not in self.length:  # twice the room
            self.length += [0] * max(1, len(self.length))
        number, P = self.length.index(0), len(self.length)
        C = max(self.prompt.shape[4], self.round_up(length))
        more = (0, 0, 0, C - self.prompt.shape[4], 0, 0, 0, P - self.prompt.shape[2])
        if any(more):
            self.prompt = F.pad(self.prompt, more)
        for layer, (k, v) in enumerate(zip(prompt.keys, prompt.values, strict=True)):
            self.prompt[layer, 0, number, :, :length] = k[0, :, :length]
            self.prompt[layer, 1, number, :, :length] = v[0, :, :length]
        self.length[number] = length
        return number

    def clear(self) -> None:
        """No rows and no prompts."""
        self.prompt_of[:] = [None] * len(self.prompt_of)
        self.length = [0] * len(self.length)

    def free(self, number: int) -> None:
        """Forget a prompt that no row continues any more."""
        self.length[number] = 0

    def bind(self) -> None:
        """Group the rows by their prompts, in a grid (P, R) that may have gaps; to be called when
        `prompt_of` or a prompt changed."""
        device = self.position.device
        rows_of: dict[int, list[int]] = {}
        for row, prompt in enumerate(self.prompt_of):
            if prompt is not None:
                rows_of.setdefault(prompt, []).append(row)
        used = max(rows_of, default=0) + 1
        R = max([*map(len, rows_of.values()), -(-4 // self.queries)])  # products of 4 rows or more
        row_at = [0] * (used * R)  # gaps compute row 0, for nobody
        cell_of = [0] * len(self.prompt_of)  # empty rows get that of another
        for prompt, rows in rows_of.items():
            for cell, row in enumerate(rows, prompt * R):
                row_at[cell], cell_of[row] = row, cell
        self.grid = used, R
        self.to_grid = self.to_rows = None  # where the rows are in this order, without a gap
        if row_at != [*range(len(self.prompt_of))]:
            self.to_grid = torch.tensor(row_at, device=device)
            self.to_rows = torch.tensor(cell_of, device=device)
        starts = [0 if prompt is None else self.length[prompt] for prompt in self.prompt_of]
        self.start = torch.tensor(starts, device=device)
        self.prompts = used  # that are read
        self.prompt_width = self.round_up(max(self.length[:used]))  # of the longest of them
        self.past_prompt = torch.arange(self.prompt_width, device=device) >= self.start[:, None]

    def reserve(self, positions: int) -> None:
        """The next steps read and write so many of the rows' own positions."""
        self.width = self.round_up(positions)
        more = self.width - self.own[0].shape[3]
        for layer, own in enumerate(self.own if more > 0 else []):
            self.own[layer] = F.pad(own, (0, 0, 0, more))  # 0: what is hidden must be finite

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        past_own = torch.arange(self.width, device=x.device) > self.position[:, None]  # (N, n)
        hidden = torch.cat((self.past_prompt, past_own), dim=1)  # (N, C + n)
        bias = torch.zeros(hidden.shape, dtype=self.prompt.dtype, device=x.device)
        self.bias = bias.masked_fill_(hidden, -math.inf)
        self.at = self.position
        return (self.start + self.position)[:, None]  # (N, 1)

    def stored(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows' own keys and values, (N, positions, K, D) each; this step's go `at` (N,)."""
        keys, values = self.own[layer].transpose(2, 3)
        return keys, values

    def __call__(self, layer: int, q, k, v) -> torch.Tensor:
        for stored, x in zip(self.stored(layer), (k, v)):
            stored[self.rows, self.at] = x[:, :, 0].to(stored.dtype)
        return self.attend(layer, q)

    def append(self, layer: int, heads: torch.Tensor, rope: tuple, norms: list) -> torch.Tensor:
        """`rotate_and_store` of this position: heads (N, H + 2 K, 1, D) -> queries (N, H, 1, D)."""
        return rotate_and_store(heads, rope, norms, *self.stored(layer), (self.rows, self.at))

    def attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """Queries (N, H, 1, D) -> (N, H, 1, D); keys and values of this position are in place."""
        (N, H, _, D), dtype, C, n = q.shape, q.dtype, self.prompt_width, self.width
        keys, values = self.own[layer][:, :, :, :n]
        prompt_keys, prompt_values = self.prompt[layer, :, : self.prompts, :, :C]
        q = q.to(keys.dtype)
        q = q.view(N, -1, self.queries, D) * D**-0.5  # (N, K, h, D), h query heads of a key head
        on_prompt = self._of_prompts(q, prompt_keys.transpose(2, 3))  # (N, K, h, C)
        on_own = q @ keys.transpose(2, 3)  # (N, K, h, n)
        score = torch.cat((on_prompt, on_own), dim=-1).add_(self.bias[:, None, None])
        on_prompt, on_own = score.float().softmax(-1).to(q.dtype).split((C, n), dim=-1)
        out = self._of_prompts(on_prompt, prompt_values) + on_own @ values
        return out.reshape(N, H, 1, D).to(dtype)

    def forward(self, model, x: torch.Tensor) -> torch.Tensor:
        """The next input (N, d) of every row -> its encoding hL (N, d)."""
        return one_position(model, x, self) if is_packed(model) else model(x[:, None], self)[:, 0]

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
        L, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        N, length = self.round_up(rows), -(-(capacity + prompt) // self.WIDER) * self.WIDER
        self.own = torch.zeros(L, 2, N, length, K, D, device=device, dtype=dtype)
        self.width = 0
        self.position = torch.zeros(N, dtype=torch.long, device=device)
        self.start = torch.zeros(N, dtype=torch.long, device=device)
        self.rows = torch.arange(N, device=device)
        self.prompt_of: list[int | None] = [None] * N
        self.numbers = count()
        self.clear()

    def clear(self) -> None:
        self.prompt_of[:] = [None] * len(self.prompt_of)
        self.copied = list(self.prompt_of)  # whose prompt each row has
        self.recorded: dict[int, tuple[Prompt, int]] = {}

    def add(self, prompt: Prompt, length: int) -> int:
        number = next(self.numbers)
        self.recorded[number] = prompt, length
        return number

    def free(self, number: int) -> None:
        del self.recorded[number]

    def bind(self) -> None:
        """Copy prompts to the rows that have new ones."""
        new: dict[int, list[int]] = {}
        for row, (prompt, copied) in enumerate(zip(self.prompt_of, self.copied)):
            if prompt is not None and prompt != copied:
                new.setdefault(prompt, []).append(row)
                self.copied[row] = prompt
        for number, rows in new.items():
            prompt, length = self.recorded[number]
            rows = torch.tensor(rows, device=self.own.device)
            self.start[rows] = length
            for layer, of_layer in enumerate(zip(prompt.keys, prompt.values, strict=True)):
                for own, x in zip(self.own[layer], of_layer):
                    own[rows, :length] = x[:, :, :length].transpose(1, 2)

    def reserve(self, positions: int) -> None:
        longest = max((length for _, length in self.recorded.values()), default=0)
        width = -(-(longest + positions) // self.WIDER) * self.WIDER
        self.width = min(width, self.own.shape[3])

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        self.at = self.start + self.position  # (N,)
        hidden = torch.arange(self.width, device=x.device) > self.at[:, None]  # (N, n)
        bias = torch.zeros(hidden.shape, dtype=self.own.dtype, device=x.device)
        self.bias = bias.masked_fill_(hidden, -math.inf)[:, None, None]  # (N, 1, 1, n)
        return self.at[:, None]

    def stored(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.own[layer]
        return keys, values

    def attend(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """q (N, H, 1, D) -> (N, H, 1, D), where the keys and values of this position are in place.

        cuDNN's kernel takes 28 us for 64 rows of 250 positions of Llama-3.2-3B on an H100,
        FlashAttention's 36, the memory-efficient one 39.
        """
        keys, values = (x[:, : self.width].transpose(1, 2) for x in self.own[layer])
        bias = self.bias.expand(-1, q.shape[1], -1, -1)
        with sdpa_kernel(self.KERNELS, set_priority=True):
            return F.scaled_dot_product_attention(q, keys, values, bias, enable_gqa=True)

    def compact(self) -> None:
        """Never: a new shape is expensive on a GPU, and empty rows are not."""
