"""Keys and values of rows that begin with the same columns, which are in memory once.

    keys_BGKD = BranchedColumns(shared_1GPD, own_BGOD)       # a tensor of K = P + O columns
    output = attend(query_BHLD, keys_BGKD, values_BGKD, mask, scale=0.125)

Attention over all columns is the mean of attention over the shared ones and over each row's own,
weighted by their sums of exponentials. So the shared columns are read once for all rows. Any other
operation on a `BranchedColumns` copies the shared columns for each row first.

Shape suffixes: B batch, H query heads, G key heads, L new columns, P shared columns, O own columns,
K all columns, D head size, Q queries.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lm_eval_latentref.latent.torch_seams import attention_and_sums, replaced, wrapper


class BranchedColumns(Tensor):
    """Keys or values (B, G, K, D) whose first columns are the same in all rows."""

    shared_1GPD: Tensor
    own_BGOD: Tensor

    @staticmethod
    def __new__(cls, shared_1GPD: Tensor, own_BGOD: Tensor) -> BranchedColumns:
        num_rows, num_heads, num_own, size = own_BGOD.shape
        shape = (num_rows, num_heads, shared_1GPD.shape[2] + num_own, size)
        columns: BranchedColumns = wrapper(cls, shape, own_BGOD)
        columns.shared_1GPD, columns.own_BGOD = shared_1GPD, own_BGOD
        return columns

    def whole(self) -> Tensor:
        """A plain tensor, in which every row has its own copy of the shared columns."""
        shared_BGPD = self.shared_1GPD.expand(len(self.own_BGOD), -1, -1, -1)
        return torch.cat([shared_BGPD, self.own_BGOD], dim=2)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        args, kwargs = replaced(cls, cls.whole, (args, kwargs or {}))
        return func(*args, **kwargs)


def can_attend(query_BHLD: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> bool:
    """Whether `attend` computes this attention: all queries read all shared columns."""
    if not isinstance(keys, BranchedColumns) or not isinstance(values, BranchedColumns):
        return False
    if query_BHLD.requires_grad or keys.shape != values.shape:
        return False
    # Autocast computes in another dtype than that of the keys it keeps.
    if not query_BHLD.dtype == keys.dtype == values.dtype:
        return False
    if mask is None:
        return True
    shared = mask[..., : keys.shared_1GPD.shape[2]]
    return bool(shared.all() if mask.dtype == torch.bool else (shared == 0).all())


def attend(
    query_BHLD: Tensor,
    keys: Any,
    values: Any,
    mask_B1LK: Tensor | None,
    *,
    scale: float | None,
) -> Tensor:
    """Attention (B, H, L, D), if `can_attend`; query heads that share keys read them together.

    Args:
        keys: a `BranchedColumns`; `values` also.
        mask_B1LK: bool, or added to the scores; None: all columns are read.
    """
    num_rows, num_heads, num_new, _ = query_BHLD.shape
    _, num_groups, num_shared, _ = keys.shared_1GPD.shape
    queries_BGQD = query_BHLD.reshape(num_rows, num_groups, num_heads // num_groups * num_new, -1)
    # All rows read the shared columns as if they were one row with many query heads.
    at_once_1GQD = queries_BGQD.transpose(0, 1).flatten(1, 2).unsqueeze(0)
    shared, sums = attention_and_sums(
        at_once_1GQD, keys.shared_1GPD, values.shared_1GPD, None, scale
    )
    shared_BGQD = shared[0].unflatten(1, (num_rows, -1)).transpose(0, 1)
    shared_sums_BGQ = sums[0].unflatten(1, (num_rows, -1)).transpose(0, 1)
    own_mask = None
    if mask_B1LK is not None:
        own_mask = _added(mask_B1LK[..., num_shared:], query_BHLD.dtype)
        own_mask = own_mask.repeat(1, 1, num_heads // num_groups, 1)
    own_BGQD, own_sums_BGQ = attention_and_sums(
        queries_BGQD, keys.own_BGOD, values.own_BGOD, own_mask, scale
    )
    weight_BGQ1 = (shared_sums_BGQ - own_sums_BGQ).sigmoid().unsqueeze(-1)
    output_BGQD = own_BGQD.float().lerp(shared_BGQD.float(), weight_BGQ1.float())
    return output_BGQD.to(query_BHLD.dtype).reshape(num_rows, num_heads, num_new, -1)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers to add to the scores."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
