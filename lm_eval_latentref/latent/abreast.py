"""Copies of a batch of rows that continue differently, read side by side in the same rows.

    stream = Abreast(stream, 4)             # four copies of its rows, one copy after another
    hidden_BLD = stream.feed(embeds_BLD)    # B: all rows of all copies

The columns read before are in memory once for all copies, and one forward reads a new column of
each. Networks that `takes_branches` allow this: a column sees those of its own copy alone.

Shape suffixes: B rows of all copies, N rows of one copy, G copies, L new columns of a copy, M new
columns of all copies, O columns that followed the copying, K all columns, D hidden size, R selected
rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from lm_eval_latentref.latent import caches
from lm_eval_latentref.latent.streams import Stream, extended


class Abreast(Stream):
    """A stream with `num_copies` times the `num_rows` rows of `stream`.

    `length` is the number of columns of one copy.
    """

    def __init__(self, stream: Stream, num_copies: int, num_rows: int) -> None:
        vars(self).update(vars(stream.fork()))
        self._num_copies, self._num_rows = num_copies, num_rows
        self._first, self._mask_NK = stream.length, stream.mask_BK
        self.mask_BK = None if self._mask_NK is None else self._mask_NK.repeat(num_copies, 1)

    def feed(self, embeds_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Read new columns, none of which may be padding; return their hidden states (B, L, D)."""
        assert mask_BL is None, "copies have no padding of their own"
        num_new = embeds_BLD.shape[1]
        rows_GNLD = embeds_BLD.unflatten(0, (self._num_copies, self._num_rows))
        # The newest columns of all copies are last, where `crop` removes them. For rows that are
        # not contiguous, torch would copy each weight once a row.
        side_by_side_NMD = rows_GNLD.permute(1, 2, 0, 3).flatten(1, 2).contiguous()
        sees_NMK = self._sees(num_new)
        hidden_NMD = self.network.decode_branches(
            side_by_side_NMD,
            cache=self.cache,
            sees_BLK=sees_NMK,
            positions_BL=sees_NMK.sum(-1) - 1,
        )
        self.length += num_new
        self.mask_BK = extended(self.mask_BK, num_new)
        hidden_NLGD = hidden_NMD.unflatten(1, (num_new, self._num_copies))
        return hidden_NLGD.permute(2, 0, 1, 3).flatten(0, 1)

    def crop(self, num_columns: int) -> None:
        """Remove the newest `num_columns` columns of each copy; needs `can_crop`."""
        caches.crop(self.cache, num_columns * self._num_copies)
        self.length -= num_columns
        if self.mask_BK is not None:
            self.mask_BK = self.mask_BK[:, : self.length]

    def fork(self, rows: Sequence[int] | None = None) -> Stream:
        """An independent copy; with `rows`, an ordinary stream of these rows, in this order."""
        if rows is None:
            branch = copy.copy(self)
            branch.cache = caches.fork(self.cache, None)
            return branch
        rows_R = torch.as_tensor(rows, device=self.network.device)
        stream = Stream(self.network)
        stream.length, stream.num_shared = self.length, self.num_shared
        stream.mask_BK = None if self.mask_BK is None else self.mask_BK[rows_R]
        columns_RK = self._columns(rows_R // self._num_rows)
        stream.cache = caches.gather(self.cache, rows_R % self._num_rows, columns_RK)
        return stream

    def _sees(self, num_new: int) -> Tensor:
        """bool: the columns (N, M, K) that each new column sees."""
        num_own, device = self.length - self._first + num_new, self.network.device
        copies_O = torch.arange(self._num_copies, device=device).repeat(num_own)
        own_MO = (copies_O.unsqueeze(1) == copies_O).tril()[-num_new * self._num_copies :]
        past_NK = self._mask_NK
        if past_NK is None:
            past_NK = own_MO.new_ones(self._num_rows, self._first)
        past_NMK = past_NK.unsqueeze(1).expand(-1, len(own_MO), -1)
        return torch.cat([past_NMK, own_MO.expand(self._num_rows, -1, -1)], dim=2)

    def _columns(self, copies_R: Tensor) -> Tensor:
        """The places (R, K) in the cache of all columns of one row in each of these copies."""
        num_before = self._first - self.num_shared  # shared columns are not in the rows' caches
        before_K = torch.arange(num_before, device=copies_R.device)
        steps_O = torch.arange(self.length - self._first, device=copies_R.device)
        own_RO = num_before + steps_O * self._num_copies + copies_R.unsqueeze(1)
        return torch.cat([before_K.expand(len(copies_R), -1), own_RO], dim=1)
