"""Random numbers that depend on the run's seed, the document and the sample alone.

    draws = Draws.of([(context, 0), (context, 1)], seed=0)      # two samples of one document
    noise_BD = draws.normal("noise", step=2, size=768)

A document is its context's token ids. Batches, their order and the number of processes change
nothing, for every row has a generator of its own, on the CPU.

Shape suffixes: B batch, D hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """A source of random numbers for each row of a batch."""

    keys: tuple[bytes, ...]

    @classmethod
    def of(cls, rows: Sequence[tuple[Sequence[int], int]], *, seed: int) -> Draws:
        """The sources of `rows`, each a context and the number of its sample."""
        return cls(tuple(_digest(f"{seed} {number} {list(ids)}".encode()) for ids, number in rows))

    def select(self, rows: Sequence[int]) -> Draws:
        """The sources of `rows`, in that order."""
        return Draws(tuple(self.keys[row] for row in rows))

    def normal(self, purpose: str, *, step: int, size: int) -> Tensor:
        """Standard normal numbers (B, `size`), the same whenever they are asked for."""
        return torch.stack([torch.randn(size, generator=g) for g in self.each(purpose, step)])

    def uniform(self, purpose: str, *, step: int, size: int) -> Tensor:
        """Numbers (B, `size`) in [0, 1), the same whenever they are asked for."""
        return torch.stack([torch.rand(size, generator=g) for g in self.each(purpose, step)])

    def each(self, purpose: str, step: int) -> list[torch.Generator]:
        """A generator for each row, which gives the same numbers whenever it is made."""
        digests = [_digest(key + f"{purpose} {step}".encode()) for key in self.keys]
        return [torch.Generator().manual_seed(int.from_bytes(digest[:7])) for digest in digests]


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()
