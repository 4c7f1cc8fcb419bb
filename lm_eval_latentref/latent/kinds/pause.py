"""Pause tokens: one learned embedding is fed in place of every thought, as a control condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.kinds.base import Kind, Materials, State
from lm_eval_latentref.latent.protocol import LATENT, MARKERS, single_token

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Pause(Kind):
    """The checkpoint's row `row_D` or, without one, the embedding of the token `pause_id`."""

    pause_id: int = 0
    row_D: Tensor | None = None

    name = "pause"
    reads_state = False
    defaults = {  # noqa: RUF012
        name: value for name, value in Kind.defaults.items() if name.startswith("confidence")
    }
    why_not_refined = "pause tokens are not thoughts and cannot be refined"

    @classmethod
    def of(cls, materials: Materials) -> Pause:
        if (row_D := materials.tensors.get("row")) is not None:
            _check_row(row_D, materials.network.hidden_size)
            return cls(row_D=row_D.to(materials.network.device, materials.network.dtype))
        ids = [single_token(materials.tokenizer, marker) for marker in MARKERS]
        if None in ids:
            raise LatentRefError(
                f"latent_kind='pause' needs both markers and {LATENT} as single tokens; give a "
                "checkpoint that was trained with pause tokens, or latent_kind=continuous"
            )
        return cls(ids[MARKERS.index(LATENT)] or 0)

    def vector(self, state: State) -> Tensor:
        if self.row_D is not None:
            return self.row_D.expand(state.num_rows, -1)
        import torch

        ids_B1 = torch.full((state.num_rows, 1), self.pause_id, device=state.network.device)
        return state.network.embed(ids_B1)[:, 0]


def _check_row(row_D: Tensor, size: int) -> None:
    if tuple(row_D.shape) != (size,):
        raise LatentRefError(
            f"the pause row has shape {tuple(row_D.shape)}, but the backbone's hidden size is "
            f"{size}; give the base that the checkpoint was trained from"
        )
