"""Batches of requests: grouped by context, longest first, halved when memory runs out.

groups = group_by_context([((1, 2), (3,)), ((1, 2), (4,))])     # one group, two continuations
for batch, scores in in_batches(groups, limit=RowLimit(8, num_items=len(groups)), work=score):
    ...
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

logger = logging.getLogger(__name__)

Tokens = tuple[int, ...]
"""Token ids."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Group:
    """A context and all continuations requested for it, in the order of the requests."""

    context: Tokens
    continuations: tuple[Tokens, ...]
    requests: tuple[int, ...]
    """The index of each continuation's request."""


def group_by_context(pairs: Iterable[tuple[Tokens, Tokens]]) -> list[Group]:
    """Group (context, continuation) pairs by context, longest context first.

    If memory runs out, it does so in the first batch, and the estimate of the remaining time is too
    long rather than too short. Contexts of equal length are sorted by their tokens, so the order of
    the requests does not change the batches.
    """
    members: dict[Tokens, list[tuple[int, Tokens]]] = {}
    for index, (context, continuation) in enumerate(pairs):
        members.setdefault(context, []).append((index, continuation))
    groups = [
        Group(context, tuple(tokens for _, tokens in entries), tuple(index for index, _ in entries))
        for context, entries in members.items()
    ]
    return sorted(groups, key=lambda group: (-len(group.context), group.context))


class RowLimit:
    """The current batch size: the requested size, halved whenever a batch does not fit into memory.

    Args:
        rows: the requested batch size.
        num_items: the total number of items.
        num_tries: how often to try the requested size, spread evenly over the items. Items are
            sorted longest first, so a larger batch may fit later.
    """

    def __init__(self, rows: int, *, num_items: int, num_tries: int = 1) -> None:
        self.rows = self._most = rows
        self._stride = max(1, -(-num_items // num_tries))
        self._done = 0

    def finished(self, num: int) -> None:
        """Record that `num` more items are finished."""
        tries_before = self._done // self._stride
        self._done += num
        if self._done // self._stride > tries_before:
            self.rows = self._most

    def did_not_fit(self, num: int) -> None:
        """Record that a batch of `num` items ran out of memory."""
        self.rows = max(1, min(self.rows, num) // 2)
        logger.warning("out of memory: continuing with batch_size=%d", self.rows)


def give_back_memory() -> None:
    """Return memory that the C library has freed to the operating system; a few milliseconds.

    The C library keeps the gaps between live blocks for reuse, but batches differ in size, so the
    tensors of a later batch do not fit into the gaps left by an earlier batch.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # not glibc
        return None


def in_batches(
    items: Sequence[Item], *, limit: RowLimit, work: Callable[[Sequence[Item], int], Result]
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Run `work(batch, limit.rows)` over `items` in order; yield each batch with its result.

    A batch that does not fit into memory is tried again at half the size; finished batches are not
    repeated. Raises the out-of-memory error if a single row does not fit.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + limit.rows]
        try:
            result = work(batch, limit.rows)
        except Exception as error:
            if limit.rows == 1 or not should_reduce_batch_size(error):
                raise
            limit.did_not_fit(len(batch))
        else:
            yield batch, result
            start += len(batch)
            limit.finished(len(batch))
            continue
        # Outside the except block the exception no longer references the failed batch's tensors.
        clear_device_cache(garbage_collection=True)
