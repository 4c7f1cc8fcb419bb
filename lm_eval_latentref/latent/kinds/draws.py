"""Random numbers that depend only on the run's seed, the document and the sample.

    draws = Draws.of([(context, 0), (context, 1)], seed=0)      # two samples of one document
    noise_BD = draws.normal("noise", step=2, size=768)

A document is identified by its context's token ids. Each row has its own generators, on the CPU, so
the numbers do not depend on the batches, their order or the number of processes.

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
        """The source of each row, given as its context's token ids and the number of its sample."""
        return cls(tuple(_digest(f"{seed} {number} {list(ids)}".encode()) for ids, number in rows))

    def select(self, rows: Sequence[int]) -> Draws:
        """The sources of the given rows, in the given order."""
        return Draws(tuple(self.keys[row] for row in rows))

    def normal(self, purpose: str, *, step: int, size: int) -> Tensor:
        """Standard normal numbers (B, `size`); equal arguments give equal numbers.

        Args:
            purpose: a name; draws for different purposes are independent.
            step: the number of the thought; draws for different thoughts are independent.
        """
        return torch.stack(
            [torch.randn(size, generator=g) for g in self._generators(purpose, step)]
        )

    def uniform(self, purpose: str, *, step: int, size: int) -> Tensor:
        """Numbers (B, `size`), uniform in [0, 1); the arguments are those of `normal`."""
        return torch.stack([torch.rand(size, generator=g) for g in self._generators(purpose, step)])

    def _generators(self, purpose: str, step: int) -> list[torch.Generator]:
        digests = [_digest(key + f"{purpose} {step}".encode()) for key in self.keys]
        return [torch.Generator().manual_seed(int.from_bytes(digest[:7])) for digest in digests]


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=16).digest()
