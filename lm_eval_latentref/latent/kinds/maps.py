"""A checkpoint's map from hidden state to thought: a small network of linear layers and LayerNorms.

    weights = MapWeights.checked(tensors, kind="projected", size=768, linears=..., norms=..., ...)
    hidden_BM = weights.linear("linear_1", hidden_BD)

Shape suffixes: B batch, D hidden size, M width of the map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_latentref.errors import LatentRefError


@dataclass(frozen=True, eq=False)
class MapWeights:
    """The tensors of a map by name, in float32, on the backbone's device."""

    tensors: Mapping[str, Tensor]

    @classmethod
    def checked(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        kind: str,
        size: int,
        linears: Sequence[tuple[str, int | str, int | str]],
        norms: Sequence[tuple[str, int | str]],
        optional: Sequence[str] = (),
        device: torch.device,
    ) -> MapWeights:
        """The weights of a map; raises LatentRefError if a tensor is missing, unknown or misshapen.

        Args:
            kind: the value of `latent_kind`, for messages.
            size: the hidden size D.
            linears: name, input width and output width of each linear layer; "m" is the map's own
                width, which the first layer's weight determines.
            norms: name and width of each LayerNorm.
            optional: the names of layers that a checkpoint may lack.
            device: the backbone's device.
        """
        shapes: dict[str, tuple[int | str, ...]] = {}
        for name, num_in, num_out in linears:
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (num_out, num_in), (num_out,)
        for name, num_in in norms:
            shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (num_in,)
        absent = {n for n in optional if not any(key.startswith(f"{n}.") for key in tensors)}
        wanted = {k: s for k, s in shapes.items() if k.rsplit(".", 1)[0] not in absent}
        missing = sorted(wanted.keys() - tensors.keys())
        if missing:
            raise LatentRefError(
                f"latent_kind={kind} needs the checkpoint's map from hidden state to thought, but "
                f"these tensors are missing: {', '.join(missing)}; give a checkpoint of that kind, "
                "or another latent_kind"
            )
        if unknown := sorted(tensors.keys() - wanted.keys()):
            raise LatentRefError(
                f"latent_kind={kind}: the map from hidden state to thought has unknown tensors: "
                f"{', '.join(unknown)}; give a checkpoint of that kind"
            )
        width = tensors[f"{linears[0][0]}.weight"].shape[0]
        for name, shape in wanted.items():
            expected = tuple(width if part == "m" else part for part in shape)
            if tuple(tensors[name].shape) != expected:
                raise LatentRefError(
                    f"latent_kind={kind}: {name} of the map has shape "
                    f"{tuple(tensors[name].shape)}, but a backbone of hidden size {size} needs "
                    f"{expected}; give the base that the checkpoint was trained from"
                )
        return cls({name: tensors[name].to(device, torch.float32) for name in wanted})

    def has(self, layer: str) -> bool:
        return f"{layer}.weight" in self.tensors

    def linear(self, layer: str, hidden_BM: Tensor) -> Tensor:
        return torch.nn.functional.linear(
            hidden_BM, self.tensors[f"{layer}.weight"], self.tensors[f"{layer}.bias"]
        )

    def norm(self, layer: str, hidden_BM: Tensor) -> Tensor:
        """LayerNorm; the identity if the checkpoint lacks it."""
        if not self.has(layer):
            return hidden_BM
        weight_M = self.tensors[f"{layer}.weight"]
        return torch.nn.functional.layer_norm(
            hidden_BM, weight_M.shape, weight_M, self.tensors[f"{layer}.bias"]
        )
