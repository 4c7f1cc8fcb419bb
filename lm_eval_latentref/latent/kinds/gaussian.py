"""Gaussian thoughts: a head of the checkpoint predicts a normal distribution; a sample is fed.

CoLaR (arXiv:2505.16552): z = s (mu(h) + exp(log_std(h)) tau noise). After each thought a token is
sampled at temperature 1, and the end token ends the row.

Shape suffixes: B batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.kinds.base import Kind, Materials, State

if TYPE_CHECKING:
    from torch import Tensor

    from lm_eval_latentref.latent.kinds.maps import MapWeights


@dataclass(frozen=True, eq=False)
class Gaussian(Kind):
    """s (mu(h) + exp(log_std(h)) tau noise)."""

    weights: MapWeights
    scale: float
    """s, the option `thought_scale`: about the standard deviation of the base's embeddings."""
    tau: float
    """The option `thought_temperature`."""

    name = "gaussian"
    file_keys = "latent_policy.* (or lt_head.*)"
    marker_texts = ("###", "###")
    min_thoughts = 1
    draws_vectors = True
    defaults = {  # noqa: RUF012
        **{name: v for name, v in Kind.defaults.items() if not name.startswith("confidence")},
        "latent_stop": "end_token",
        "thought_scale": None,
        "thought_temperature": 1.0,
    }

    @classmethod
    def of(cls, materials: Materials) -> Gaussian:
        from lm_eval_latentref.latent.kinds.maps import MapWeights

        size, options = materials.network.hidden_size, materials.options
        weights = MapWeights.checked(
            materials.tensors,
            kind=cls.name,
            size=size,
            linears=[
                ("fc_1", size, "m"),
                ("fc_2", "m", "m"),
                ("mean", "m", size),
                ("log_std", "m", size),
            ],
            norms=[("norm", "m")],
            optional=["log_std"],
            device=materials.network.device,
        )
        if options["thought_scale"] is None:
            raise LatentRefError(
                "latent_kind=gaussian needs thought_scale, and there is no default for this base; "
                "the published values are 0.018 (Llama-3.2), 0.008 (Llama-3.1-8B), 0.03 "
                "(DeepSeek-R1-Distill-Qwen-1.5B) and 0.12 (GPT-2)"
            )
        return cls(weights, options["thought_scale"], options["thought_temperature"])

    def vector(self, state: State) -> Tensor:
        import torch

        weights = self.weights
        policy_BM = torch.nn.functional.gelu(weights.linear("fc_1", state.hidden_BD))
        policy_BM = weights.norm("norm", weights.linear("fc_2", policy_BM))
        thought_BD = weights.linear("mean", policy_BM)
        if self.tau and weights.has("log_std"):
            noise_BD = state.normal("thought", thought_BD.shape[-1])
            spread_BD = weights.linear("log_std", policy_BM).exp()
            thought_BD = thought_BD + spread_BD * self.tau * noise_BD
        return self.scale * thought_BD

    def ends(self, state: State, end_id: int) -> Tensor:
        p_B = state.logits_BV.softmax(-1)[:, end_id]
        return state.uniform("end", 1)[:, 0] < p_B
