"""The Llama / Qwen2 / Qwen3 transformer T(.) over *input embeddings* (eqs. 1-2).

Dimensions: N rows, T positions, d hidden_size, H query heads, K key/value heads, D head_dim,
V vocabulary, P positions of a prompt.
Parameter names are those of Hugging Face checkpoints, so loading needs no conversion table.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config:
    """What the transformer needs from a config.json (`minisoft.io.config` reads it)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: dict  # {} for rope type default; see rope_frequencies
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    max_positions: int | None = None  # that it is made for; None: config.json does not say


def rope_frequencies(config: Config) -> torch.Tensor:
    """Angle per position of each rotated pair, float32 (D/2,): rope types default, linear, llama3
    and yarn.  The last two keep fast pairs, divide slow ones by `factor`, and interpolate."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device="cpu").float()
    period = config.rope_theta ** (exponent / config.head_dim)
    frequency = 1.0 / period
    scaling = config.rope_scaling
    if not scaling:
        return frequency
    if scaling["rope_type"] == "linear":
        return frequency / scaling["factor"]
    if scaling["rope_type"] == "yarn":
        keep = _kept_by_yarn(config)
        return keep * frequency + (1 - keep) * (1.0 / (scaling["factor"] * period))
    turns = scaling["original_max_position_embeddings"] / (2 * math.pi / frequency)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling["factor"]


def _kept_by_yarn(config: Config) -> torch.Tensor:
    """How much of each pair's frequency yarn keeps, (D/2,): 1 for those that turn beta_fast times
    in the original length, 0 for those that turn beta_slow times, linear in between (arXiv
    2309.00071, "NTK-by-parts"; linear over the pairs, as in their code, not over the turns)."""
    scaling, D = config.rope_scaling, config.head_dim
    length = scaling["original_max_position_embeddings"]
    turns = scaling["beta_fast"], scaling["beta_slow"]
    first, last = (
        D * math.log(length / (n * 2 * math.pi)) / (2 * math.log(config.rope_theta)) for n in turns
    )
    if scaling["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, D - 1)
    if first == last:
        last += 0.001  # then all is kept up to there, and nothing after
    pair = torch.arange(D // 2, dtype=torch.float32, device="cpu")
    return 1 - ((pair - first) / (last - first)).clamp(0, 1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding; x (N, heads, T, D), cos and sin (N or 1, 1, T, D), the sines of
    the left half with a minus."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((right, left), dim=-1) * sin


class Causal:
    """Who attends to whom: every position to itself and to those before it in its row.

    This is what `Transformer.forward` takes as `attend`: `positions` says where its inputs stand,
    and a call is the attention of one layer.
    """

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (N, T, d) -> the position of each, (1 or N, T)."""
        return torch.arange(x.shape[1], device=x.device)[None]

    def __call__(self, layer: int, q, k, v) -> torch.Tensor:
        """q (N, H, T, D), k and v (N, K, T, D) of one layer -> (N, H, T, D)."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Recording(Causal):
    """Causal attention that keeps the keys and values of every layer."""

    def __init__(self):
        self.keys, self.values = [], []

    def __call__(self, layer: int, q, k, v) -> torch.Tensor:
        self.keys.append(k)
        self.values.append(v)
        return super().__call__(layer, q, k, v)


@dataclass(frozen=True)
class Prompt(Causal):
    """Causal attention behind a prompt that was run once and that all N rows continue.

    keys, values: of each layer, (1, K, P, D).  They may carry gradients: those of all rows add up.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def length(self) -> int:
        return self.keys[0].shape[2]

    def positions(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(self.length, self.length + x.shape[1], device=x.device)[None]

    def __call__(self, layer: int, q, k, v) -> torch.Tensor:
        T, P = q.shape[2], self.keys[layer].shape[2]
        k, v = self.before(layer, k, v)
        seen = torch.ones(T, P + T, dtype=torch.bool, device=q.device).tril(P)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)

    def before(self, layer: int, k, v) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the prompt before the rows' own k and v: each (N, K, P + T, D)."""
        rows = (len(k), -1, -1, -1)
        k = torch.cat((self.keys[layer].expand(rows), k), dim=2)
        return k, torch.cat((self.values[layer].expand(rows), v), dim=2)


class Attention(nn.Module):
    """Grouped-query attention; who attends to what is the business of `attend` (see Causal)."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        d, D = config.hidden_size, config.head_dim
        self.layer, self.head_dim = layer, D
        self.q_proj = nn.Linear(d, config.num_attention_heads * D, bias=config.qkv_bias)
        self.k_proj = nn.Linear(d, config.num_key_value_heads * D, bias=config.qkv_bias)
        self.v_proj = nn.Linear(d, config.num_key_value_heads * D, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_attention_heads * D, d, bias=config.o_bias)
        self.q_norm = nn.RMSNorm(D, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(D, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: torch.Tensor, rope: tuple, attend) -> torch.Tensor:
        N, T, _ = x.shape
        q, k, v = (y.view(N, T, -1, self.head_dim) for y in self.project(x))
        q = rotate(self.q_norm(q).transpose(1, 2), *rope)  # (N, H, T, D)
        k = rotate(self.k_norm(k).transpose(1, 2), *rope)  # (N, K, T, D)
        v = v.transpose(1, 2)  # (N, K, T, D)
        out = attend(self.layer, q, k, v)  # (N, H, T, D)
        return self.o_proj(out.transpose(1, 2).reshape(N, T, -1))  # (N, T, d)

    def project(self, x: torch.Tensor) -> tuple:
        """x (N, T, d) -> (N, T, H D), (N, T, K D), (N, T, K D)"""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config):
        super().__init__()
        d, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(d, inner, bias=bias)
        self.up_proj = nn.Linear(d, inner, bias=bias)
        self.down_proj = nn.Linear(inner, d, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.project(x)
        return self.down_proj(F.silu(gate) * up)

    def project(self, x: torch.Tensor) -> tuple:
        return self.gate_proj(x), self.up_proj(x)


class Block(nn.Module):
    """One layer: attention, then the MLP, each on normed inputs and added to them."""

    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, rope: tuple, attend) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The parameters that checkpoints call `model.*`."""

    def __init__(self, config: Config):
        super().__init__()
        d = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, d)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(d, config.rms_norm_eps)


class Transformer(nn.Module):
    """Embeddings in, encodings out.  Weights float32 or bfloat16; logits and mixtures float32."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # no buffer, so that it stays float32 whatever becomes of the weights
        self.frequencies = rope_frequencies(config)

    @property
    def E(self) -> nn.Parameter:
        """The embedding matrix, (V, d)."""
        return self.model.embed_tokens.weight

    @property
    def W_d(self) -> nn.Parameter:
        """The decoding matrix, stored as (V, d); E where tied."""
        return self.E if self.lm_head is None else self.lm_head.weight

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) -> their embeddings E[ids] (..., d)."""
        return self.model.embed_tokens(ids)

    def forward(self, inputs_embeds: torch.Tensor, attend=None) -> torch.Tensor:
        """Input embeddings h0 (N, T, d) -> encodings hL (N, T, d), after the final norm (eqs. 1-2).

        attend: None for plain causal self-attention, or another `Causal`, such as a `Prompt`.
        """
        attend = Causal() if attend is None else attend
        x = inputs_embeds.to(self.E.dtype)
        rope = self._rope(attend.positions(x), x.dtype)
        for layer in self.model.layers:
            x = layer(x, rope, attend)
        return self.model.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Encodings hL (..., d) -> logits hL W_d (..., V), float32 also for 16-bit weights, in
        which ties at tau = 0.0001 would be coin flips."""
        return hidden.float() @ self.W_d.float().t()

    def mix(self, p: torch.Tensor) -> torch.Tensor:
        """Probabilities p (..., V) float32 -> p E (..., d) float32 (eq. 5)."""
        return p @ self.E.float()

    def run_prompt(self, ids: torch.Tensor) -> tuple[torch.Tensor, Prompt]:
        """Prompts (n, P) -> encodings (n, P, d), and what their continuations attend to."""
        recording = Recording()
        hidden = self(self.embed(ids), recording)
        return hidden, Prompt(tuple(recording.keys), tuple(recording.values))

    def _rope(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple:
        """Positions (N or 1, T) -> cos, sin, each (N or 1, 1, T, D); angles in float32."""
        self.frequencies = self.frequencies.to(positions.device)
        angle = positions[:, None, :, None] * self.frequencies  # (N, 1, T, D/2)
        scale = self.config.rope_scaling.get("attention_factor", 1.0)  # of yarn
        cos, sin = scale * angle.cos(), scale * angle.sin()
        pair = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)  # (N, 1, T, D)
        return tuple(x.to(dtype) for x in pair)
