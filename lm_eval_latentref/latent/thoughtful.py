"""The result of thinking, from which scoring and generation continue.

    hidden_BPD = thoughts.stream.feed(thoughts.pending_BPD, thoughts.pending_mask_BP)

Shape suffixes: B batch, K columns read and pending, P pending columns, T thoughts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lm_eval_latentref.latent.streams import Stream


@dataclass(frozen=True)
class Thoughts:
    """The result of thinking: everything that the continuation is conditioned on.

    The last columns are pending: the caller reads them, possibly together with the continuation.
    """

    stream: Stream
    pending_BPD: Tensor
    pending_mask_BP: Tensor | None
    thoughts_BTD: Tensor
    """z_1..z_T after refinement, in the backbone's dtype."""
    finite_BT3: Tensor
    """bool: whether the raw thought, the references' hidden states and the refined thought are
    finite."""

    @property
    def num_thoughts(self) -> int:
        return self.thoughts_BTD.shape[1]

    @property
    def mask_BK(self) -> Tensor:
        """bool, True for real columns: those read and those pending."""
        num_rows, num_pending, _ = self.pending_BPD.shape
        read_BK, pending_BP = self.stream.mask_BK, self.pending_mask_BP
        if read_BK is None:
            read_BK = torch.ones(num_rows, self.stream.length, dtype=torch.bool)
        if pending_BP is None:
            pending_BP = torch.ones(num_rows, num_pending, dtype=torch.bool)
        device = self.pending_BPD.device
        return torch.cat([read_BK.to(device), pending_BP.to(device)], dim=1)

    def read_but_last(self) -> Thoughts:
        """The same thoughts with one pending column, which is real in every row."""
        mask_BP = self.pending_mask_BP
        self.stream.feed(self.pending_BPD[:, :-1], None if mask_BP is None else mask_BP[:, :-1])
        return replace(self, pending_BPD=self.pending_BPD[:, -1:], pending_mask_BP=None)

    @classmethod
    def join(cls, parts: Sequence[Thoughts]) -> Thoughts:
        """The rows of all `parts`, which must have the same number of columns.

        `parts` cannot be used afterwards.
        """
        if len(parts) == 1:
            return parts[0]
        masks = [part.pending_mask_BP for part in parts if part.pending_mask_BP is not None]
        return cls(
            Stream.join([part.stream for part in parts]),
            torch.cat([part.pending_BPD for part in parts]),
            torch.cat(masks) if masks else None,
            torch.cat([part.thoughts_BTD for part in parts]),
            torch.cat([part.finite_BT3 for part in parts]),
        )

    def select(self, rows: Sequence[int]) -> Thoughts:
        """The thoughts of the given rows, in the given order; a row may occur twice."""
        rows_R = torch.as_tensor(rows, device=self.pending_BPD.device)
        mask_BP = self.pending_mask_BP
        return Thoughts(
            self.stream.fork(rows),
            self.pending_BPD[rows_R],
            None if mask_BP is None else mask_BP[rows_R.to(mask_BP.device)],
            self.thoughts_BTD[rows_R],
            self.finite_BT3[rows_R.to(self.finite_BT3.device)],
        )
