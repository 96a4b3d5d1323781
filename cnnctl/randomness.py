"""Randomness by counter: every draw is a pure function of (seed, purpose, epoch, index).

Nothing here has state, so a run resumes by jumping to its step, the number of workers changes
nothing, and there is no generator to save or to restore wrongly.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

# Constants of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
# OOPSLA 2014), as the signed 64-bit integers that torch computes with.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def key(*parts: int | str) -> int:
    """A 63-bit seed from any tuple of integers and strings; the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(count: int, *parts: int | str) -> Tensor:
    """A shuffle of ``range(count)``, shape (count,), int64, fixed by ``parts``."""
    generator = torch.Generator().manual_seed(key(*parts))
    return torch.randperm(count, generator=generator)


def seed_torch(value: int, device: torch.device) -> None:
    """What modules draw with ``torch.rand`` and dropout from here on is fixed by ``value``.

    Not by ``torch.manual_seed``, which formats a stack trace on every call.
    """
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


@functools.cache
def beta_quantiles(alpha: float, device: torch.device | None = None) -> Tensor:
    """(65537,) float32: the inverse of Beta(alpha, alpha)'s distribution function, for ``Draw``.

    Exact at 65,537 evenly spaced probabilities, of which the first and the last are moved in by a
    quarter of a step, so that a narrow Beta (large alpha) does not reach out to 0 and 1.
    """
    import numpy as np
    from scipy.special import betaincinv

    steps = 1 << 16
    probability = np.arange(steps + 1) / steps
    probability[[0, -1]] = [0.25 / steps, 1 - 0.25 / steps]
    return torch.from_numpy(betaincinv(alpha, alpha, probability)).float().to(device)


@dataclass(frozen=True)
class Draw:
    """Random numbers for the samples of one batch, each from its own counter.

    Args:
        seed: the run's seed.
        epoch: which pass over the data.
        index: (N,) int64, the position of each sample in the data set, on any device.
    """

    seed: int
    epoch: int
    index: Tensor

    def uniform(self, purpose: str, count: int = 1) -> Tensor:
        """(N, count) float32, uniform in [0, 1), on the device of ``index``."""
        base = key(self.seed, purpose, self.epoch)
        columns = torch.arange(count, device=self.index.device)
        bits = self.index[:, None] * _MIX_1 + columns * _GOLDEN + base
        bits = _mix(_mix(bits) + _GOLDEN)
        return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24

    def integers(self, purpose: str, below: int, count: int = 1) -> Tensor:
        """(N, count) int64, uniform in [0, below)."""
        return (self.uniform(purpose, count) * below).long().clamp_(max=below - 1)

    def chance(self, purpose: str, probability: float) -> Tensor:
        """(N,) bool, True with the given probability."""
        return self.uniform(purpose)[:, 0] < probability

    def quantile(self, purpose: str, table: Tensor) -> Tensor:
        """(N,) from a distribution given by its evenly spaced quantiles, linear between them."""
        place = self.uniform(purpose)[:, 0] * (len(table) - 1)
        below = place.long()
        return table[below].lerp(table[below + 1], place - below)


def _mix(bits: Tensor) -> Tensor:
    """splitmix64's finaliser on int64; ``& mask`` makes the arithmetic shift a logical one."""
    bits = (bits ^ ((bits >> 30) & 0x3FFFFFFFF)) * _MIX_1
    bits = (bits ^ ((bits >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return bits ^ ((bits >> 31) & 0x1FFFFFFFF)
