"""Reference models: they read the context and all thoughts, and supply the search's targets.

    reference = ReferenceStream(network, context)
    hidden_BD = reference.probe(thought_BD)     # the hidden state if thought_BD came next
    reference.commit(refined_BD)                # the thought that does come next

Shape suffixes: B batch, L new columns, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_latentref.latent.abreast import Abreast
from lm_eval_latentref.latent.contexts import Context
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.streams import extended, picked


@dataclass(frozen=True)
class References:
    """The two networks that define the search direction, from weak to strong."""

    strong: Network
    weak: Network


class ReferenceStream:
    """A reference network with the columns it has read: the context and the committed thoughts.

    A committed thought is read in the same forward as the next probe, so a reference needs one
    forward per thought, like the backbone.
    """

    def __init__(self, network: Network, context: Context) -> None:
        self.network = network
        self._stream, unread = context.begin(network, can_crop=True)
        self._unread_BLD: Tensor | None = network.embed(unread.ids_BC)
        self._unread_mask_BL = unread.mask_BC
        self._read_ahead: tuple[Tensor, Tensor] | None = None

    def fork(self, rows: Sequence[int] | None = None) -> ReferenceStream:
        """An independent copy with the given rows, in the given order; None: all rows."""
        branch = copy.copy(self)
        branch._stream = self._stream.fork(rows)
        if rows is not None:
            branch._read_ahead = None
            branch._unread_BLD = picked(self._unread_BLD, rows)
            branch._unread_mask_BL = picked(self._unread_mask_BL, rows)
        return branch

    def abreast(self, num: int, num_rows: int) -> ReferenceStream:
        """`num` copies of all `num_rows` rows, which are read side by side."""
        branch = copy.copy(self)
        branch._stream, branch._read_ahead = Abreast(self._stream, num, num_rows), None
        if self._unread_BLD is not None:
            branch._unread_BLD = self._unread_BLD.repeat(num, 1, 1)
        return branch

    def commit(self, thought_BD: Tensor) -> None:
        """Append the thought to the columns to read."""
        self._read_ahead = None
        self._unread_BLD, self._unread_mask_BL = thought_BD.unsqueeze(1), None

    def read_ahead(self, thought_BD: Tensor) -> None:
        """Probe `thought_BD` and keep the result for forks that probe the same tensor object."""
        self._read_ahead = thought_BD, self.probe(thought_BD)

    def read(self) -> None:
        """Read the committed columns now, not together with the next probe."""
        if self._unread_BLD is not None:
            with torch.no_grad():
                self._stream.feed(self._unread_BLD, self._unread_mask_BL)
            self._unread_BLD = None

    def probe(self, thought_BD: Tensor) -> Tensor:
        """The hidden state (B, D) after reading `thought_BD`, which is then removed again."""
        if self._read_ahead is not None and self._read_ahead[0] is thought_BD:
            return self._read_ahead[1]
        columns_BLD = thought_BD.unsqueeze(1).to(self.network.device, self.network.dtype)
        mask_BL = None
        if self._unread_BLD is not None:
            columns_BLD = torch.cat([self._unread_BLD.to(columns_BLD), columns_BLD], dim=1)
            mask_BL = extended(self._unread_mask_BL, 1)
            self._unread_BLD = None
        hidden_BLD = self._stream.feed(columns_BLD, mask_BL)
        self._stream.crop(1)
        return hidden_BLD[:, -1]

    def probe_with_gradient(self, thought_BD: Tensor) -> Tensor:
        """The hidden state (B, D) of `probe`, differentiable with respect to `thought_BD` only."""
        self.read()
        # The fork is dropped, so the cache of this stream holds no autograd graph.
        return self._stream.fork().feed(thought_BD.unsqueeze(1))[:, -1]
