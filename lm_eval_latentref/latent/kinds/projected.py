"""Projected thoughts: a small network of the checkpoint maps the hidden state to the thought.

CODI (arXiv:2502.21074) and SIM-CoT on CODI: Linear, GELU, Linear and, in most, LayerNorm.

Shape suffixes: B batch, M width of the map, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_latentref.latent.kinds.base import Kind, Materials, State

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_latentref.latent.kinds.maps import MapWeights


@dataclass(frozen=True, eq=False)
class Projected(Kind):
    """The projection of the hidden state, computed in float32."""

    weights: MapWeights

    name = "projected"
    file_keys = "prj.1.* and prj.3.* (or projector.1.* and projector.3.*)"

    @classmethod
    def of(cls, materials: Materials) -> Projected:
        from lm_eval_latentref.latent.kinds.maps import MapWeights

        size = materials.network.hidden_size
        return cls(
            MapWeights.checked(
                materials.tensors,
                kind=cls.name,
                size=size,
                linears=[("linear_1", size, "m"), ("linear_2", "m", size)],
                norms=[("norm", size)],
                optional=["norm"],
                device=materials.network.device,
            )
        )

    def vector(self, state: State) -> Tensor:
        import torch

        inner_BM = torch.nn.functional.gelu(self.weights.linear("linear_1", state.hidden_BD))
        return self.weights.norm("norm", self.weights.linear("linear_2", inner_BM))
