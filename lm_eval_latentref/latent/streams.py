"""A network that reads a batch of rows, column after column, with its KV cache.

    stream = Stream(network)
    hidden_BLD = stream.feed(network.embed(ids_BL))

A fork of a stream continues from the same columns independently. The rows of several streams can be
joined.

Shape suffixes: B batch, L new columns, K columns read so far, D hidden size, R selected rows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from lm_eval_latentref.latent import caches
from lm_eval_latentref.latent.batching import give_back_memory
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.transformers_seams import attention_of

SAVED_BY_A_PART = 32
"""The least number of columns of padding that reading a part of the rows apart must save: a forward
costs about as much as a few columns, and the caches of all parts are copied together."""

MANY_COLUMNS = 1024
"""Before so many columns of contexts are read, freed memory is given back: what reading them takes
does not fit into the gaps that reading others, by another network for example, has left."""

COLUMNS_AT_ONCE = 512
"""The most columns read at once under a mask, whose size is their number times that of all columns.
"""


class Stream:
    """One network that reads one batch of rows; `length` is the number of columns read so far.

    Rows are padded on the left only, or left of all columns that are not shared: `num_shared`
    columns at the beginning may be in memory once for all rows. Sliding windows count columns, so
    padding between real columns would shorten a window.

    Args:
        can_crop: whether `crop` will be called; models with sliding windows then need more memory.
    """

    def __init__(self, network: Network, *, can_crop: bool = False) -> None:
        self.network = network
        self.cache = network.new_cache()
        self.mask_BK: Tensor | None = None
        self.length = self.num_shared = 0
        if can_crop:
            caches.record_past(self.cache)

    def feed(self, embeds_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Read new columns and return their hidden states (B, L, D).

        Rows of much different lengths are read in parts, because padding costs as much as columns.

        Args:
            mask_BL: bool, True for real columns, False for padding; None if there is no padding.
        """
        begins = self.length == self.num_shared
        if begins and self._has_much_to_read(embeds_BLD):
            give_back_memory()
        if begins and mask_BL is not None and self.network.reads_in_parts:
            # A row of padding alone keeps a column, because no model reads nothing.
            num_padding_B = (~mask_BL).sum(1).clamp(max=mask_BL.shape[1] - 1)
            parts = in_parts(num_padding_B.tolist())
            if len(parts) > 1 or parts[0][1]:
                return self._feed_parts(embeds_BLD, mask_BL, parts)
        if embeds_BLD.shape[1] <= COLUMNS_AT_ONCE or self._needs_no_mask(mask_BL):
            return self._feed(embeds_BLD, mask_BL)
        parts = embeds_BLD.split(COLUMNS_AT_ONCE, dim=1)
        masks = [None] * len(parts) if mask_BL is None else mask_BL.split(COLUMNS_AT_ONCE, dim=1)
        return torch.cat([self._feed(*part) for part in zip(parts, masks, strict=True)], dim=1)

    def _has_much_to_read(self, embeds_BLD: Tensor) -> bool:
        """Whether these are many columns, on a CPU, and what they take is freed layer by layer."""
        many = embeds_BLD.shape[:2].numel() >= MANY_COLUMNS
        return many and self.network.device.type == "cpu" and not torch.is_grad_enabled()

    def _feed_parts(
        self, embeds_BLD: Tensor, mask_BL: Tensor, parts: Sequence[tuple[list[int], int]]
    ) -> Tensor:
        streams, hidden_BLD = [], None
        for rows, num_padding in parts:
            mask_RL = mask_BL[rows, num_padding:]
            stream = self.fork()
            hidden_RLD = stream.feed(
                embeds_BLD[rows, num_padding:], None if mask_RL.all() else mask_RL
            )
            if hidden_BLD is None:
                hidden_BLD = hidden_RLD.new_zeros(*mask_BL.shape, hidden_RLD.shape[-1])
            hidden_BLD[rows, num_padding:] = hidden_RLD
            streams.append(stream)
        assert hidden_BLD is not None
        self.cache = caches.join([s.cache for s in streams], [number for _, number in parts])
        order = [row for rows, _ in parts for row in rows]
        if order != sorted(order):
            rows_R = torch.tensor(order).argsort()
            self.cache = caches.fork(self.cache, rows_R)
        self._extend_mask(embeds_BLD, mask_BL)
        self.length += mask_BL.shape[1]
        return hidden_BLD

    def _needs_no_mask(self, mask_BL: Tensor | None) -> bool:
        if mask_BL is not None or self.mask_BK is not None or self.length:
            return False
        causal_lm = self.network.causal_lm
        return attention_of(causal_lm) != "eager" and caches.keeps_every_column(causal_lm)

    def _feed(self, embeds_BLD: Tensor, mask_BL: Tensor | None) -> Tensor:
        self._extend_mask(embeds_BLD, mask_BL)
        hidden_BLD = self.network.decode(
            embeds_BLD, cache=self.cache, mask_BK=self.mask_BK, past=self.length
        )
        self.length += embeds_BLD.shape[1]
        return hidden_BLD

    def feed_branches(self, embeds_BLD: Tensor, branch_BL: Tensor) -> Tensor:
        """Read several branches of each row in one forward; return their hidden states (B, L, D).

        Every branch continues from the columns read so far and attends to no other branch. Nothing
        can be read afterwards.

        Args:
            branch_BL: the number of the branch that a column belongs to, -1 for padding; the
                columns of a branch are adjacent.
        """
        branch_BL = branch_BL.to(self.network.device)
        num_rows, num_new = branch_BL.shape
        past_BK = self.mask_BK
        if past_BK is None:
            past_BK = branch_BL.new_ones(num_rows, self.length, dtype=torch.bool)
        own_BLL = (branch_BL.unsqueeze(2) == branch_BL.unsqueeze(1)).tril()
        # A padding column attends to itself only. If padding formed a branch of its own, its
        # positions could exceed the model's last position.
        own_BLL &= (branch_BL >= 0).unsqueeze(2)
        own_BLL |= torch.eye(num_new, dtype=torch.bool, device=own_BLL.device)
        sees_BLK = torch.cat([past_BK.unsqueeze(1).expand(-1, num_new, -1), own_BLL], dim=2)
        return self.network.decode_branches(
            embeds_BLD, cache=self.cache, sees_BLK=sees_BLK, positions_BL=sees_BLK.sum(-1) - 1
        )

    def crop(self, num_columns: int) -> None:
        """Remove the newest `num_columns` columns; needs `can_crop`."""
        caches.crop(self.cache, num_columns)
        self.length -= num_columns
        if self.mask_BK is not None:
            self.mask_BK = self.mask_BK[:, :-num_columns]

    def fork(self, rows: Sequence[int] | None = None) -> Stream:
        """An independent stream that continues from the columns read so far, without rereading.

        Args:
            rows: the rows of the new stream, in this order; None: all rows.
        """
        branch = copy.copy(self)
        rows_R = None
        if rows is not None:
            rows_R = torch.as_tensor(rows).to(self.network.device, non_blocking=True)
            if self.mask_BK is not None:
                branch.mask_BK = self.mask_BK[rows_R]
        branch.cache = caches.fork(self.cache, rows_R)
        return branch

    def branch(self) -> Stream:
        """A stream whose rows, however many, all begin with this stream's single row.

        The columns of that row stay in memory once; needs a network that `shares_columns`. In the
        branch, padding lies between them and the columns of each row's own.
        """
        branch = copy.copy(self)
        branch.cache = caches.branch(self.cache)
        branch.num_shared = self.length
        return branch

    def spread(self, num_rows: int, mask_BK: Tensor | None) -> Stream:
        """A stream of `num_rows` rows built from this stream of one row; the length is the same.

        A row with p columns of padding holds, after the padding, this row's first K - p columns.
        Without padding the rows share memory until more columns are read.

        Args:
            mask_BK: bool, False for padding, which is on the left; None if there is no padding.
        """
        branch = copy.copy(self)
        columns_BK = None
        if mask_BK is not None:
            branch.mask_BK = mask_BK = mask_BK.to(self.network.device)
            columns_BK = (mask_BK.cumsum(-1) - 1).clamp(min=0)
        branch.cache = caches.spread(self.cache, num_rows, columns_BK)
        return branch

    @classmethod
    def join(cls, streams: Sequence[Stream]) -> Stream:
        """One stream with the rows of all `streams`, which must have the same length.

        `streams` cannot be used afterwards.
        """
        joined = streams[0]
        if len(streams) == 1:
            return joined
        joined.cache = caches.join([stream.cache for stream in streams])
        masks = [stream.mask_BK for stream in streams if stream.mask_BK is not None]
        joined.mask_BK = torch.cat(masks) if masks else None
        return joined

    def _extend_mask(self, embeds_BLD: Tensor, mask_BL: Tensor | None) -> None:
        # Without padding there is no mask, so attention can use its fastest kernel.
        if self.mask_BK is None and mask_BL is None:
            return
        num_rows, num_new = embeds_BLD.shape[:2]
        device = self.network.device
        past_BK = self.mask_BK
        if past_BK is None:
            past_BK = torch.ones(num_rows, self.length, dtype=torch.bool, device=device)
        if mask_BL is None:
            mask_BL = torch.ones(num_rows, num_new, dtype=torch.bool, device=device)
        self.mask_BK = torch.cat([past_BK, mask_BL.to(device)], dim=1)


def in_parts(padding: Sequence[int]) -> list[tuple[list[int], int]]:
    """Rows to read together, and the number of columns of padding that each part need not read.

    Args:
        padding: the number of columns of padding of each row.
    """
    order = sorted(range(len(padding)), key=padding.__getitem__)
    parts: list[tuple[list[int], int]] = []
    for place, row in enumerate(order):
        num_skipped = parts[-1][1] if parts else 0
        num_saved = (padding[row] - num_skipped) * (len(order) - place)
        if not parts or num_saved >= SAVED_BY_A_PART:
            parts.append(([], padding[row]))
        parts[-1][0].append(row)
    return parts


def num_padding(padding: Sequence[int]) -> int:
    """The number of columns of padding that are read if rows are read in these parts."""
    return sum(padding[row] - skipped for rows, skipped in in_parts(padding) for row in rows)


def extended(mask_BL: Tensor | None, num_columns: int) -> Tensor | None:
    """`mask_BL` with `num_columns` real columns appended; None for None."""
    if mask_BL is None:
        return None
    return torch.nn.functional.pad(mask_BL, (0, num_columns), value=True)


def picked(tensor: Tensor | None, rows: Sequence[int]) -> Tensor | None:
    """The given rows of `tensor`, in the given order; None for None."""
    return None if tensor is None else tensor[torch.as_tensor(rows, device=tensor.device)]
