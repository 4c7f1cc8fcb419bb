"""Pause tokens: one learnt row is fed in place of every thought, for control checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.kinds.base import Kind, Materials, State
from lm_eval_latentref.latent.protocol import LATENT, MARKERS, single_token


@dataclass(frozen=True)
class Pause(Kind):
    """The embedding of the token `pause_id`."""

    pause_id: int

    name = "pause"
    reads_state = False
    why_not_refined = "pause tokens are not thoughts and cannot be refined"

    @classmethod
    def of(cls, materials: Materials) -> Pause:
        ids = [single_token(materials.tokenizer, marker) for marker in MARKERS]
        if None in ids:
            raise LatentRefError(
                f"latent_kind='pause' needs both markers and {LATENT} as single tokens; give a "
                "checkpoint that was trained with pause tokens, or latent_kind=continuous"
            )
        return cls(ids[MARKERS.index(LATENT)] or 0)

    def vector(self, state: State) -> Tensor:
        ids_B1 = torch.full((state.num_rows, 1), self.pause_id, device=state.network.device)
        return state.network.embed(ids_B1)[:, 0]
