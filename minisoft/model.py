"""The Llama / Qwen2 / Qwen3 transformer T(.) over *input embeddings* (eqs. 1-2), and its key/value caches.

Dimensions: B batch rows, T positions, d hidden_size, H query heads, K key/value heads, D head_dim, V vocabulary,
P problems, N rollout rows (several rows belong to one problem), C cached positions.
Parameter names are those of Hugging Face checkpoints, so loading needs no conversion table.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from minisoft.engine.linear import Linear, pack, product


@dataclass(frozen=True)
class Config:
    """What the transformer needs from a Hugging Face config.json (`minisoft.io.config` reads it)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict  # {} for rope type default
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool


def rope_frequencies(config: Config) -> torch.Tensor:
    """Angle per position of each rotated pair, float32 (D/2,): types default, linear and llama3."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").float() / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent
    scaling = config.rope_scaling
    if not scaling:
        return frequency
    if scaling["rope_type"] == "linear":
        return frequency / scaling["factor"]
    # llama3: keep short wavelengths, divide long ones by `factor`, interpolate in between
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling["factor"]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding; x (B, heads, T, D), cos and sin (B or 1, 1, T, D)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention; who attends to what is the `attend` strategy's business (see below)."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        d, D = config.hidden_size, config.head_dim
        self.layer, self.head_dim = layer, D
        self.q_proj = Linear(d, config.num_attention_heads * D, bias=config.qkv_bias)
        self.k_proj = Linear(d, config.num_key_value_heads * D, bias=config.qkv_bias)
        self.v_proj = Linear(d, config.num_key_value_heads * D, bias=config.qkv_bias)
        self.o_proj = Linear(config.num_attention_heads * D, d, bias=config.o_bias)
        self.q_norm = nn.RMSNorm(D, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(D, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x, rope, attend):
        B, T, _ = x.shape
        heads = (B, T, -1, self.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), *rope)  # (B, H, T, D)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), *rope)  # (B, K, T, D)
        v = self.v_proj(x).view(heads).transpose(1, 2)  # (B, K, T, D)
        out = attend(self.layer, q, k, v)  # (B, H, T, D)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))  # (B, T, d)


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        d, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(d, inner, bias=bias)
        self.up_proj = Linear(d, inner, bias=bias)
        self.down_proj = Linear(inner, d, bias=bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.self_attn, self.mlp = Attention(config, layer), MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, rope, attend):
        x = x + self.self_attn(self.input_layernorm(x), rope, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """Embeddings in, hidden states out.  Weights float32 or bfloat16; logits always float32.

    Attributes: `config`; `E` (V, d), the embedding matrix; `W_d` (V, d), the decoding matrix (E where tied).
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(
            config.hidden_size, config.vocab_size, bias=False)
        self.frequencies = rope_frequencies(config)  # no buffer: it stays float32 whatever becomes of the weights
        self.recompute = False  # keep only the layers' inputs for the backward pass
        self.rounded = False  # round logits to bfloat16, as where the head is computed in it; for measurements
        self.copies: dict | None = None  # inside `packed`: float32 copies of W_d and E^T, each made when first needed

    @property
    def E(self) -> nn.Parameter:
        return self.model.embed_tokens.weight

    @property
    def W_d(self) -> nn.Parameter:
        return self.E if self.lm_head is None else self.lm_head.weight

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (B, T) -> embeddings E[ids] (B, T, d)."""
        return self.model.embed_tokens(ids)

    def forward(self, inputs_embeds: torch.Tensor, attend=None) -> torch.Tensor:
        """Input embeddings h0 (B, T, d) -> encodings hL (B, T, d), after the final norm (eqs. 1-2).

        `attend` says what else the T positions see: None (causal self-attention), a `PromptCache` or a `RowCache`.
        """
        attend = PromptCache() if attend is None else attend
        x = inputs_embeds.to(self.E.dtype)
        rope = self._rope(attend.positions(x), x.dtype)
        again = self.recompute and torch.is_grad_enabled() and not attend.record  # what is recorded is recorded once
        for layer in self.model.layers:
            x = checkpoint(layer, x, rope, attend, use_reentrant=False) if again else layer(x, rope, attend)
        return self.model.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Encodings (..., d) -> logits (..., V), float32 also for bfloat16 weights: in bfloat16, ties at
        tau = 0.0001 would be coin flips; gradients pass through the rounding of `rounded` unchanged."""
        logits = self._product(hidden.float(), "W_d")
        return logits + (logits.bfloat16().float() - logits).detach() if self.rounded else logits

    def mix(self, p: torch.Tensor) -> torch.Tensor:
        """Probabilities (..., V) float32 -> sum_v p_v E_v (..., d) float32 (eq. 5)."""
        return self._product(p, "E^T")

    def _product(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """x W^T in float32, W the matrix of that name, which has V rows or columns."""
        W = self.W_d if name == "W_d" else self.E.t()
        if self.copies is None:
            return product(x, W)
        if name not in self.copies:
            shared = self.E is self.W_d and W.device.type != "cpu" and "W_d" in self.copies
            self.copies[name] = self.copies["W_d"].t() if shared else pack(W.float())
        return product(x, self.copies[name])

    @contextmanager
    def packed(self):
        """Inside, the weights must not change and nothing is differentiated: products use copies of the weights, laid
        out for it once."""
        linears = [module for module in self.modules() if isinstance(module, Linear)]
        try:
            self.copies = {}
            for linear in linears:
                linear.packed = pack(linear.weight)
            yield
        finally:
            self.copies = None
            for linear in linears:
                linear.packed = None

    def prefill(self, ids: torch.Tensor) -> tuple[torch.Tensor, "PromptCache"]:
        """Prompts (P, T) of equal length -> hidden (P, T, d) and the cache their rows share.  Differentiable."""
        cache = PromptCache(record=True)
        return self(self.embed(ids), cache), cache

    def _rope(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions (B or 1, T) -> cos, sin, each (B or 1, 1, T, D); angles in float32 whatever the dtype."""
        self.frequencies = self.frequencies.to(positions.device)
        angle = positions[:, None, :, None] * self.frequencies  # (B, 1, T, D/2)
        angle = torch.cat((angle, angle), dim=-1)  # (B, 1, T, D)
        return angle.cos().to(dtype), angle.sin().to(dtype)


class PromptCache:
    """Causal self-attention that can also remember (record=True), or start after (keys given), a shared prompt.

    `keys[layer]`, `values[layer]`: (1, K, C, D), one prompt that all B rows continue.  They may carry gradients:
    the gradients of all rows add up in them.
    """

    def __init__(self, record: bool = False, keys=(), values=()):
        self.record, self.keys, self.values = record, list(keys), list(values)

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        start = 0 if self.record or not self.keys else self.keys[0].shape[2]
        return torch.arange(start, start + x.shape[1], device=x.device)[None]  # (1, T)

    def __call__(self, layer, q, k, v):
        if self.record or not self.keys:
            if self.record:
                self.keys.append(k), self.values.append(v)
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        k = torch.cat((self.keys[layer].expand(len(k), -1, -1, -1), k), dim=2)  # (B, K, C + T, D)
        v = torch.cat((self.values[layer].expand(len(v), -1, -1, -1), v), dim=2)
        T, length = q.shape[2], k.shape[2]
        seen = torch.ones(T, length, dtype=torch.bool, device=q.device).tril(length - T)  # (T, C + T)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)

    def cut(self, length: int) -> "PromptCache":
        """Its first `length` positions."""
        return PromptCache(keys=[k[:, :, :length] for k in self.keys], values=[v[:, :, :length] for v in self.values])

    def detached(self) -> "PromptCache":
        """The same prompt as leaves that collect gradients: what many micro-batches send back is summed here."""
        return PromptCache(keys=[k.detach().requires_grad_() for k in self.keys],
                           values=[v.detach().requires_grad_() for v in self.values])


class RowCache:
    """Decoding one position at a time: N rows, each with its own continuation of one of P shared prompts.

    A prompt's keys and values are stored and read once for all of its rows.  Rows come and go: `add` a prompt, `seat` rows
    on it.  Before a step, `position` (N,) holds the number of positions each row has taken, and `widen` has been told how
    far they reach.
    What a row computes does not depend on the other rows, bit for bit where a matrix product of at least 4 rows gives
    the same numbers whatever their count (as MKL's does in float32): hence BLOCK and the smallest grid of 4.
    """

    BLOCK = 16  # N, a prompt's length and a row's capacity are rounded up to multiples of it
    WIDER = 64  # the same for the width on a GPU

    def __init__(self, config: Config, rows: int, capacity: int, device, dtype: torch.dtype):
        L, K, D = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        if torch.device(device).type == "cpu":
            dtype = torch.float32  # CPUs multiply small bfloat16 matrices slowly
        N = self.round_up(rows)
        self.queries = config.num_attention_heads // K  # query heads of a key head
        self.own = torch.empty(L, 2, N, K, self.round_up(capacity), D, device=device, dtype=dtype)
        self.width = 0  # so many of the rows' own positions are read
        self.clean = 0  # positions of `own` that have been set: what is hidden must still be finite
        self.prompt = torch.zeros(L, 2, 0, K, 0, D, device=device, dtype=dtype)  # (L, 2, P, K, C, D)
        self.length: list[int] = []  # of each prompt, 0 where there is none
        self.owner: list[int | None] = [None] * N  # the prompt of each row, None for an empty row
        self.position = torch.zeros(N, dtype=torch.long, device=device)

    @classmethod
    def round_up(cls, n: int) -> int:
        return -(-n // cls.BLOCK) * cls.BLOCK

    def add(self, prompt: PromptCache) -> int:
        """Store the keys and values (1, K, C, D) of a recorded prompt; returns its number."""
        length = prompt.keys[0].shape[2]
        if 0 not in self.length:  # twice the room
            self.length += [0] * max(1, len(self.length))
        number, C = self.length.index(0), max(self.prompt.shape[4], self.round_up(length))
        P = len(self.length)
        if self.prompt.shape[2] < P or self.prompt.shape[4] < C:
            self.prompt = F.pad(self.prompt, (0, 0, 0, C - self.prompt.shape[4], 0, 0, 0, P - self.prompt.shape[2]))
        for layer, (k, v) in enumerate(zip(prompt.keys, prompt.values)):
            self.prompt[layer, 0, number, :, :length], self.prompt[layer, 1, number, :, :length] = k[0], v[0]
        self.length[number] = length
        return number

    def drop(self, number: int) -> None:
        """Forget a prompt that no row continues any more."""
        self.length[number] = 0

    def seat(self) -> None:
        """Give every row a seat in a (P, R) grid, R the largest number of rows of one prompt.  To be called when
        `owner` or a prompt has changed."""
        device, taken, seats = self.own.device, {}, []
        for owner in self.owner:
            taken[owner] = taken.get(owner, 0) + 1
            seats.append(taken[owner] - 1)
        used = max((owner for owner in self.owner if owner is not None), default=0) + 1
        R = max([n for owner, n in taken.items() if owner is not None] + [-(-4 // self.queries)])
        K = torch.arange(self.own.shape[3], device=device)
        row_of = torch.zeros(used, R, dtype=torch.long)  # free seats compute row 0, for nobody
        for row, (owner, seat) in enumerate(zip(self.owner, seats)):
            if owner is not None:
                row_of[owner, seat] = row
        at = torch.tensor([(0, 0) if owner is None else (owner, seat) for owner, seat in zip(self.owner, seats)],
                          device=device)
        self.to_grid = row_of.to(device)[:, None], K[None, :, None]  # indices of rows that give a grid (P, K, R, ...)
        self.to_rows = at[:, :1], K[None], at[:, 1:]  # and of a grid that give rows (N, K, ...); empty rows get somebody's
        length = torch.tensor([0 if owner is None else self.length[owner] for owner in self.owner], device=device)
        self.grid, self.start = (used, R, self.round_up(max(self.length[:used]))), length
        self.past_prompt = torch.arange(self.grid[2], device=device) >= length[:, None]  # (N, C)

    def widen(self, reach: int) -> None:
        """The next steps read and write the first `reach` positions of the rows' own.  On a GPU that grows in large
        steps, since each one means another CUDA graph."""
        step = self.WIDER if self.own.is_cuda else self.BLOCK
        self.width = min(-(-reach // step) * step, self.own.shape[4])
        if self.clean < self.width:
            self.own[:, :, :, :, self.clean: self.width] = 0
            self.clean = self.width

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        past_own = torch.arange(self.width, device=x.device) > self.position[:, None]  # (N, n)
        hidden = torch.cat((self.past_prompt, past_own), dim=1)  # (N, C + n)
        self.bias = torch.zeros(hidden.shape, dtype=self.own.dtype, device=x.device).masked_fill_(hidden, -math.inf)
        self.rows = torch.arange(len(hidden), device=x.device)
        return (self.start + self.position)[:, None]  # (N, 1)

    def __call__(self, layer, q, k, v):
        (N, H, _, D), dtype, (P, R, C) = q.shape, q.dtype, self.grid
        n = self.bias.shape[-1] - C
        (keys, values), (prompt_keys, prompt_values) = self.own[layer], self.prompt[layer, :, :P, :, :C]
        q, k, v = q.to(keys.dtype), k.to(keys.dtype), v.to(keys.dtype)
        keys[self.rows, :, self.position], values[self.rows, :, self.position] = k[:, :, 0], v[:, :, 0]
        q = q.view(N, -1, self.queries, D) * D**-0.5  # (N, K, h, D), query heads of a key head together
        on_prompt = self._of_prompts(q, prompt_keys.transpose(2, 3))  # (N, K, h, C)
        on_own = q @ keys[:, :, :n].transpose(2, 3)  # (N, K, h, n)
        score = torch.cat((on_prompt, on_own), dim=-1).add_(self.bias[:, None, None])  # (N, K, h, C + n)
        on_prompt, on_own = score.float().softmax(-1).to(q.dtype).split((C, n), dim=-1)
        out = self._of_prompts(on_prompt, prompt_values) + on_own @ values[:, :, :n]  # (N, K, h, D)
        return out.view(N, H, 1, D).to(dtype)

    def _of_prompts(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Rows x (N, K, h, X) times the matrix of their prompt and head, y (P, K, X, Y) -> (N, K, h, Y)."""
        grid = x[self.to_grid]  # (P, K, R, h, X)
        return (grid.flatten(2, 3) @ y).view(*grid.shape[:-1], -1)[self.to_rows]

    def shrink(self) -> list[int] | None:
        """Fewer rows where at least BLOCK are empty; returns the old place of each row that is left, None if none went.

        The last rows move into the holes, so only as many rows are copied as must move."""
        there = [i for i, owner in enumerate(self.owner) if owner is not None]
        N = self.round_up(len(there))
        if N == len(self.owner) or self.own.is_cuda and 2 * N > len(self.owner):
            return None  # on a GPU a new shape is dear, and rows are not
        holes, order = [i for i in range(N) if self.owner[i] is None], list(range(N))
        for hole, row in zip(holes, [i for i in there if i >= N]):
            order[hole] = row
            self.own[:, :, hole, :, : self.width] = self.own[:, :, row, :, : self.width]
        self.own, self.position = self.own[:, :, :N], self.position[order]
        self.owner = [self.owner[i] for i in order]
        return order
