"""Hidden states rescaled to the norm of token embeddings; they work with any model, untrained.

LatentMAS (arXiv:2511.20639) and LaTER feed z = h W * n / |h W|, where n is the mean norm of the
embedding rows. W is the identity or the ridge-regression solution of W_out W = W_in.

Shape suffixes: B batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.kinds.base import Kind, Materials, State

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_latentref.latent.networks import Network

RIDGE = 1e-5
"""The regularisation of the ridge regression."""
ROWS_AT_ONCE = 8192
"""The number of embedding rows looked up together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Realigned(Kind):
    """The hidden state times `matrix_DD`, rescaled to `norm`."""

    norm: float
    """The mean norm of the embedding rows."""
    matrix_DD: Tensor | None = None
    """W; None for the identity."""

    name = "realigned"
    has_marker_tokens = False
    defaults = {**Kind.defaults, "realign": "identity"}  # noqa: RUF012

    @classmethod
    def of(cls, materials: Materials) -> Realigned:
        import torch

        network = materials.network
        with torch.no_grad():
            matrix_DD = _ridge(network) if materials.options["realign"] == "ridge" else None
            norms = [rows_VD.norm(dim=-1) for rows_VD in _embedding_rows(network)]
            return cls(norm=torch.cat(norms).mean().item(), matrix_DD=matrix_DD)

    def vector(self, state: State) -> Tensor:
        aligned_BD = state.hidden_BD
        if self.matrix_DD is not None:
            aligned_BD = aligned_BD @ self.matrix_DD
        return aligned_BD * (self.norm / aligned_BD.norm(dim=-1, keepdim=True).clamp(min=1e-6))


def _embedding_rows(network: Network) -> list[Tensor]:
    """The embedding rows of all tokens in float32, in chunks of shape (V, D)."""
    import torch

    ids_V = torch.arange(network.num_embeddings)
    return [network.embed(part).float() for part in ids_V.split(ROWS_AT_ONCE)]


def _ridge(network: Network) -> Tensor:
    import torch

    out_VD = network.causal_lm.get_output_embeddings().weight
    in_VD = torch.cat(_embedding_rows(network))
    if not out_VD.is_floating_point() or out_VD.shape != in_VD.shape:
        raise LatentRefError(
            f"realign=ridge needs an output layer of the embedding's shape {tuple(in_VD.shape)}, "
            f"but it is {tuple(out_VD.shape)} of {out_VD.dtype}; give realign=identity"
        )
    out_VD, in_VD = out_VD.double(), in_VD.double()
    gram_DD = out_VD.T @ out_VD + RIDGE * torch.eye(out_VD.shape[1]).to(out_VD)
    return torch.linalg.solve(gram_DD, out_VD.T @ in_VD).float()
