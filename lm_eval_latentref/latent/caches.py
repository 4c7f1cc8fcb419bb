"""KV caches that can be forked, joined and cropped, and that grow in place.

    cache = new_cache(causal_lm)
    fork(cache, rows_R)        # an independent cache with these rows
    branch(cache)              # a cache whose rows, however many, all begin with this single row

`streams` feeds them; the classes of their layers are those of transformers.

Shape suffixes: B batch, H heads, L new columns, K columns in the cache, P columns that all rows
share, R columns with room for more (in `rows_R`: rows picked out), D head size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lm_eval_latentref.latent.branched import BranchedColumns
from lm_eval_latentref.latent.transformers_seams import is_stateful

MIN_SPARE = 32
"""The least number of spare columns allocated when a cache layer grows."""


class GrowingLayer(DynamicLayer):
    """A cache layer that allocates spare columns and writes new columns into them.

    A DynamicLayer copies all columns at every update. This layer does so only while its columns are
    shared with a fork or are part of an autograd graph.
    """

    keys: Any
    values: Any
    _room: tuple[Tensor, Tensor] | None = None
    """The tensors whose first columns are `keys` and `values`; None if a fork may share them."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new columns (B, H, L, D); return all keys and values, (B, H, K, D) each."""
        # Autograd also keeps keys that need no gradient, for the gradient of the queries.
        if torch.is_grad_enabled():
            self._room = None
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past = DynamicLayer.get_seq_length(self)
        num_columns = past + key_states.shape[-2]
        if self._room is None or not self._fits(num_columns):
            self._room = (
                _with_room(self.keys, key_states, past, num_columns),
                _with_room(self.values, value_states, past, num_columns),
            )
        keys_BHRD, values_BHRD = self._room
        keys_BHRD[..., past:num_columns, :] = key_states
        values_BHRD[..., past:num_columns, :] = value_states
        self.keys = keys_BHRD[..., :num_columns, :]
        self.values = values_BHRD[..., :num_columns, :]
        return self.keys, self.values

    def share(self) -> GrowingLayer:
        """A copy of this layer; both keep these columns, and neither writes into them."""
        self._room = None
        return copy.copy(self)

    def reset(self) -> None:
        """Forget all columns, and the spare columns, so that their memory is free."""
        self._room = None
        super().reset()

    def _fits(self, num_columns: int) -> bool:
        # If the keys were replaced, by a selection of rows for example, the room is out of date.
        assert self._room is not None
        room_BHRD = self._room[0]
        return self.keys.data_ptr() == room_BHRD.data_ptr() and num_columns <= room_BHRD.shape[-2]


class BranchLayer(GrowingLayer):
    """A cache layer whose rows all begin with the same columns; `keys` and `values` follow them.

    Args:
        keys_1HPD: the shared keys.
        values_1HPD: the shared values.
    """

    def __init__(self, keys_1HPD: Tensor, values_1HPD: Tensor) -> None:
        super().__init__()
        self._shared = keys_1HPD, values_1HPD

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append new columns; the tensors returned include the shared columns."""
        own = super().update(key_states, value_states, *args, **kwargs)
        pairs = zip(self._shared, own, strict=True)
        keys, values = (BranchedColumns(*pair) for pair in pairs)
        if any(part.requires_grad for part in own):
            return keys.whole(), values.whole()
        return keys, values

    def get_seq_length(self) -> int:
        """The number of columns, shared ones included."""
        return self._shared[0].shape[-2] + super().get_seq_length()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest `-tokens_to_remove` columns, none of which is shared."""
        self.keys = self.keys[..., :tokens_to_remove, :]
        self.values = self.values[..., :tokens_to_remove, :]


def _with_room(columns_BHKD: Tensor, new_BHLD: Tensor, past: int, num_columns: int) -> Tensor:
    """A tensor (B, H, R, D) that starts with the first `past` columns of `columns_BHKD`."""
    num_rows, num_heads, _, size = new_BHLD.shape
    spare = max(MIN_SPARE, num_columns // 8)
    room_BHRD = new_BHLD.new_empty(num_rows, num_heads, num_columns + spare, size)
    if past:
        room_BHRD[..., :past, :] = columns_BHKD
    return room_BHRD


def new_cache(causal_lm: PreTrainedModel) -> DynamicCache:
    """An empty cache with one layer, of the right kind, for each layer of `causal_lm`."""
    cache = DynamicCache(config=causal_lm.config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def keeps_columns(causal_lm: PreTrainedModel) -> bool:
    """Whether each layer's cache holds the keys and values of columns and nothing else.

    State-space and linear-attention layers hold one state that sums up all columns; the indexer of
    sparse attention has keys of its own.
    """
    kinds = {type(layer) for layer in new_cache(causal_lm).layers}
    return not is_stateful(causal_lm) and kinds <= {GrowingLayer, DynamicSlidingWindowLayer}


def keeps_every_column(causal_lm: PreTrainedModel) -> bool:
    """Whether `keeps_columns` holds and no layer has a window, so that no column is dropped."""
    layers = new_cache(causal_lm).layers
    return keeps_columns(causal_lm) and all(type(layer) is GrowingLayer for layer in layers)


def record_past(cache: DynamicCache) -> None:
    """Let windowed layers keep the columns that leave the window, because `crop` needs them."""
    cache.activate_past_recording()


def crop(cache: DynamicCache, num_columns: int) -> None:
    """Remove the newest `num_columns` columns."""
    cache.crop(-num_columns)


def fork(cache: DynamicCache, rows_R: Tensor | None) -> DynamicCache:
    """An independent cache with `rows_R` of `cache`; None: all rows, whose tensors are shared.

    Shared tensors are copied when either cache is extended.
    """
    forked = copy.copy(cache)
    forked.layers = [
        layer.share() if isinstance(layer, GrowingLayer) else copy.copy(layer)
        for layer in cache.layers
    ]
    if rows_R is not None:
        for layer in forked.layers:
            if layer.is_initialized:
                layer.batch_select_indices(rows_R.to(layer.keys.device))
    return forked


def branch(cache: DynamicCache) -> DynamicCache:
    """A cache whose rows all begin with the single row of `cache`, which is not copied.

    Every layer of `cache` must be a `GrowingLayer`.
    """
    branched = copy.copy(cache)
    branched.layers = [BranchLayer(layer.keys, layer.values) for layer in cache.layers]
    return branched


def spread(cache: DynamicCache, num_rows: int, columns_BK: Tensor | None) -> DynamicCache:
    """A cache of `num_rows` rows, built from the columns of the single row of `cache`.

    Args:
        columns_BK: for each position of each row, the index of the column to place there; None: all
            columns in order, in every row.
    """
    return _changed(cache, lambda row_1HKD: _spread(row_1HKD, num_rows, columns_BK))


def _spread(row_1HKD: Tensor, num_rows: int, columns_BK: Tensor | None) -> Tensor:
    if columns_BK is None:
        return row_1HKD.expand(num_rows, -1, -1, -1)
    columns_BK = columns_BK.to(row_1HKD.device)
    picked = row_1HKD[0].index_select(1, columns_BK.flatten())
    return picked.unflatten(1, columns_BK.shape).transpose(0, 1)


def gather(cache: DynamicCache, rows_R: Tensor, columns_RK: Tensor) -> DynamicCache:
    """An independent cache; row r holds the columns `columns_RK[r]` of row `rows_R[r]` of `cache`.

    Columns that all rows share are not counted and stay shared.
    """
    return _changed(cache, lambda part_BHKD: _gathered(part_BHKD, rows_R, columns_RK))


def _changed(cache: DynamicCache, change: Callable[[Tensor], Tensor]) -> DynamicCache:
    """An independent cache with the results of `change` as keys and values."""
    changed = fork(cache, None)
    for layer in changed.layers:
        if layer.is_initialized:
            layer.keys, layer.values = change(layer.keys), change(layer.values)
    return changed


def _gathered(part_BHKD: Tensor, rows_R: Tensor, columns_RK: Tensor) -> Tensor:
    rows_R, columns_RK = rows_R.to(part_BHKD.device), columns_RK.to(part_BHKD.device)
    return part_BHKD.transpose(1, 2)[rows_R.unsqueeze(1), columns_RK].transpose(1, 2)


def join(caches: Sequence[DynamicCache], padding: Sequence[int] | None = None) -> DynamicCache:
    """Move the rows of all `caches` into the first, and return it; the others are empty afterwards.

    All must have read the same number of columns, padding included. Layers are moved one by one, so
    that only one layer at a time is in memory twice.

    Args:
        padding: for each cache, the number of columns of padding to put before its columns (between
            them and those that all rows share); None: none.
    """
    widths = [0] * len(caches) if padding is None else padding
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        if layers[0].is_initialized:
            layers[0].keys = _joined([layer.keys for layer in layers], widths)
            layers[0].values = _joined([layer.values for layer in layers], widths)
        for layer in layers[1:]:
            layer.reset()
    return caches[0]


def _joined(parts: Sequence[Tensor], padding: Sequence[int]) -> Tensor:
    """The rows of all `parts` (B, H, K, D); padding is zero, because nan would spread."""
    pairs = zip(parts, padding, strict=True)
    return torch.cat([pad(part, (0, 0, num, 0)) if num else part for part, num in pairs])
