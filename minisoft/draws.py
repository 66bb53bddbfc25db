"""Random numbers that are a function of (seed, step, problem, sample, position) and nothing else.

A row has a key, made of whatever identifies it; the draw at a position is a hash of key and
position (SplitMix64, which counts through hashes by design).  There is no state, so it does not
matter which rows are drawn together, on which rank, or in which order.
"""

import hashlib
import math
from dataclasses import dataclass

import torch

_STEP = 0x9E3779B97F4A7C15  # SplitMix64's increment and multipliers
_MULTIPLIERS = (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)


def key(*parts) -> int:
    """Whatever identifies a row, such as (seed, step, problem, sample) -> an int64."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """x >> bits of unsigned 64-bit numbers, kept in int64."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _hash(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function, int64 -> int64 (products wrap around)."""
    for bits, multiplier in _MULTIPLIERS:
        x = (x ^ _shift(x, bits)) * _signed(multiplier)
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class Draws:
    """The draws of N rows, each at a position of its own: keys, positions (N,) int64."""

    keys: torch.Tensor
    positions: torch.Tensor

    def _bits(self, n: int) -> torch.Tensor:
        """(N, n) random int64: the SplitMix64 streams of seeds that depend on key and position."""
        counter = torch.arange(1, n + 1, device=self.keys.device) * _signed(_STEP)  # (n,)
        return _hash(_hash(self.keys + _hash(self.positions))[:, None] + counter)

    def uniform(self) -> torch.Tensor:
        """(N,) float32 in [0, 1), multiples of 2^-24."""
        return self.uniforms(1)[:, 0]

    def uniforms(self, n: int) -> torch.Tensor:
        """(N, n) numbers like that, the first of each row that of `uniform`."""
        return _shift(self._bits(n), 40).float() * 2**-24

    def normal(self, n: int) -> torch.Tensor:
        """(N, n) float32, standard normal, by Box-Muller: a hash gives two numbers of 32 bits."""
        bits = self._bits((n + 1) // 2)
        radius = (-2 * ((_shift(bits, 32) + 1).float() * 2**-32).log()).sqrt()
        angle = (bits & 0xFFFFFFFF).float() * (2 * math.pi * 2**-32)
        return torch.cat((radius * angle.cos(), radius * angle.sin()), dim=-1)[:, :n]
