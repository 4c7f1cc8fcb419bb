"""A reference model that reads along and is asked what it would make of the next thought.

    reference = ReferenceStream(network, context)
    hidden_BD = reference.probe(thought_BD)     # thought_BD is not kept
    reference.commit(refined_BD)

Shape suffixes: B batch, L new columns, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_latentref.latent.contexts import Context
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.streams import extended, picked


@dataclass(frozen=True)
class References:
    """The two networks that define the search direction, from weak to strong."""

    strong: Network
    weak: Network


class ReferenceStream:
    """A reference that reads the context and the committed thoughts and is probed at the next one.

    A committed thought is read together with the next probe, so that a reference needs one forward
    for each thought, like the backbone.
    """

    def __init__(self, network: Network, context: Context) -> None:
        self._network = network
        self._stream, unread = context.begin(network, can_crop=True)
        self._unread_BLD: Tensor | None = network.embed(unread.ids_BC)
        self._unread_mask_BL = unread.mask_BC
        self._foreseen: tuple[Tensor, Tensor] | None = None

    def fork(self, rows: Sequence[int] | None = None) -> ReferenceStream:
        """An independent copy, of `rows` in that order if they are given."""
        branch = copy.copy(self)
        branch._stream = self._stream.fork(rows)
        if rows is not None:
            branch._foreseen = None
            branch._unread_BLD = picked(self._unread_BLD, rows)
            branch._unread_mask_BL = picked(self._unread_mask_BL, rows)
        return branch

    def commit(self, thought_BD: Tensor) -> None:
        self._foreseen = None
        self._unread_BLD, self._unread_mask_BL = thought_BD.unsqueeze(1), None

    def foresee(self, thought_BD: Tensor) -> None:
        """Probe `thought_BD` now, so that forks that probe this very tensor need no forward."""
        self._foreseen = thought_BD, self.probe(thought_BD)

    def read(self) -> None:
        """Read the committed columns now instead of with the next probe."""
        if self._unread_BLD is not None:
            with torch.no_grad():
                self._stream.feed(self._unread_BLD, self._unread_mask_BL)
            self._unread_BLD = None

    def probe(self, thought_BD: Tensor) -> Tensor:
        """The hidden state (B, D) with `thought_BD` as the next input, which is not kept."""
        if self._foreseen is not None and self._foreseen[0] is thought_BD:
            return self._foreseen[1]
        columns_BLD = thought_BD.unsqueeze(1).to(self._network.device, self._network.dtype)
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
        # On a fork, so that the cache keeps no autograd graph.
        return self._stream.fork().feed(thought_BD.unsqueeze(1))[:, -1]
