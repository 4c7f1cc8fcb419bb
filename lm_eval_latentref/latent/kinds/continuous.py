"""Continuous thoughts: the hidden state itself is fed (Coconut, Hao et al., arXiv:2412.06769)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_latentref.latent.kinds.base import Kind, Materials, State

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Continuous(Kind):
    """The final hidden state, unchanged."""

    name = "continuous"
    is_identity = True

    @classmethod
    def of(cls, materials: Materials) -> Continuous:
        return CONTINUOUS

    def vector(self, state: State) -> Tensor:
        return state.hidden_BD


CONTINUOUS = Continuous()
