"""Padded batches of contexts, and the ids of the markers around the thoughts.

    context = Context.pad([(1, 2, 3), (4,)]).then(markers.opening)

Shape suffixes: B batch, C context columns, L new columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.prefixes import Trunk
from lm_eval_latentref.latent.streams import Stream, extended, num_padding


@dataclass(frozen=True)
class Context:
    """A batch of contexts, padded on the left."""

    ids_BC: Tensor
    mask_BC: Tensor | None
    """bool, True for real columns; None if no row is padded."""
    trunk: Trunk | None = None
    """The shared prefix of all rows, if it is read once for all of them."""

    @classmethod
    def pad(
        cls,
        rows: Sequence[Sequence[int]],
        *,
        device: torch.device | str = "cpu",
        num_columns: int = 0,
        trunk: Trunk | None = None,
    ) -> Context:
        """The batch of `rows`, padded on the left to the longest row or to `num_columns`.

        Args:
            rows: token ids, at least one in each row.
            num_columns: the minimum number of columns.
            trunk: the shared prefix of all rows, if it is read once for all of them.
        """
        longest = max([num_columns, *map(len, rows)])
        ids_BC = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        if min(map(len, rows)) == longest:
            return cls(ids_BC.to(device, non_blocking=True), None, trunk)
        lengths_B = torch.tensor([len(row) for row in rows])
        mask_BC = torch.arange(longest) >= longest - lengths_B.unsqueeze(1)
        # Non-blocking copies are safe: torch copies pageable memory to a staging buffer at once.
        ids_BC, mask_BC = (tensor.to(device, non_blocking=True) for tensor in (ids_BC, mask_BC))
        return cls(ids_BC, mask_BC, trunk)

    def in_parts(self, max_columns: int) -> list[Context]:
        """These rows in as few parts of equal size as possible.

        Args:
            max_columns: the maximum of rows times columns of a part. Columns of the shared prefix
                do not count. A row with more columns is a part of its own.
        """
        num_rows, num_columns = self.ids_BC.shape[0], self.ids_BC.shape[1] - self.num_shared
        num_parts = math.ceil(num_rows / max(1, max_columns // num_columns))
        masks = [None] * num_parts if self.mask_BC is None else self.mask_BC.tensor_split(num_parts)
        return [
            Context(ids_BC, mask_BC, self.trunk)
            for ids_BC, mask_BC in zip(self.ids_BC.tensor_split(num_parts), masks, strict=True)
        ]

    def then(self, ids: Sequence[int]) -> Context:
        """These contexts with the tokens `ids` appended to each row."""
        new_BL = self.ids_BC.new_tensor(ids).expand(len(self.ids_BC), -1)
        ids_BC = torch.cat([self.ids_BC, new_BL], dim=1)
        return Context(ids_BC, extended(self.mask_BC, len(ids)), self.trunk)

    @property
    def num_shared(self) -> int:
        """The number of columns of the shared prefix; 0 without a trunk."""
        return len(self.trunk.prefix) if self.trunk else 0

    def num_padding(self, network: Network) -> int:
        """The number of columns without a token that `network` reads."""
        if self.mask_BC is None:
            return 0
        padding = (~self.mask_BC).sum(1).tolist()
        if self.trunk is not None and not network.shares_columns:
            return sum(max(0, number - self.num_shared) for number in padding)
        return num_padding(padding) if network.reads_in_parts else sum(padding)

    def begin(self, network: Network, *, can_crop: bool = False) -> tuple[Stream, Context]:
        """A stream of these rows that has read the shared prefix, and the remaining columns."""
        if self.trunk is None:
            return Stream(network, can_crop=can_crop), self
        ids_BC, mask_BC = self.ids_BC[:, self.num_shared :], self.mask_BC
        stream = self.trunk.branch(network, len(ids_BC), mask_BC)
        if mask_BC is not None:
            # A row has as much padding as the longest row is longer, before or after the prefix.
            first = 0 if stream.num_shared else self.num_shared
            mask_BC = mask_BC[:, first : first + ids_BC.shape[1]]
        return stream, Context(ids_BC, mask_BC)


@dataclass(frozen=True)
class Markers:
    """Ids of the tokens before and after the thoughts; one of the two may be empty."""

    opening: tuple[int, ...]
    closing: tuple[int, ...]
