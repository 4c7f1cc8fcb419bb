"""Mixtures of token embeddings, weighted by probability; they work with any model, untrained.

Soft Thinking (arXiv:2505.15778) feeds the mixture of the likeliest tokens. Latent-SFT trains its
checkpoints to think so, with temperature 1 and the ten largest logits.

Shape suffixes: B batch, K likeliest tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_latentref.latent.kinds.base import Kind, Materials, State

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mixture(Kind):
    """The sum of p_k E_k; p is filtered by top-k, top-p, min-p and `num_tokens`, in this order."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    num_tokens: int

    name = "mixture"
    has_marker_tokens = False
    why_not_searched = "a mixture of embedding rows has no direction towards a hidden state"
    defaults = {  # noqa: RUF012
        **Kind.defaults,
        "mixture_temperature": 0.6,
        "mixture_top_k": 30,
        "mixture_top_p": 0.95,
        "mixture_min_p": 0.001,
        "mixture_tokens": 10,
    }

    @classmethod
    def of(cls, materials: Materials) -> Mixture:
        options = materials.options
        return cls(
            temperature=options["mixture_temperature"],
            top_k=options["mixture_top_k"],
            top_p=options["mixture_top_p"],
            min_p=options["mixture_min_p"],
            num_tokens=options["mixture_tokens"],
        )

    def vector(self, state: State) -> Tensor:
        p_BV = (state.logits_BV / self.temperature).softmax(-1)
        p_BK, ids_BK = p_BV.topk(min(self.top_k, p_BV.shape[-1]))
        p_BK = _normalised(p_BK)
        # A token stays if the likelier tokens together have less than top_p; the likeliest stays.
        p_BK = _normalised(p_BK * (p_BK.cumsum(-1) - p_BK < self.top_p))
        p_BK = _normalised(p_BK * (p_BK >= self.min_p * p_BK[:, :1]))
        p_BK, ids_BK = p_BK[:, : self.num_tokens], ids_BK[:, : self.num_tokens]
        rows_BKD = state.network.embed(ids_BK).float()
        return (_normalised(p_BK).unsqueeze(-1) * rows_BKD).sum(1)


def _normalised(p_BK: Tensor) -> Tensor:
    return p_BK / p_BK.sum(-1, keepdim=True)
