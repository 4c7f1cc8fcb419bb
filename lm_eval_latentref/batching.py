"""Which requests run together: grouped by context, longest first, halved when memory runs out.

    groups = group_by_context([((1, 2), (3,)), ((1, 2), (4,))])     # one group, two continuations
    for batch, scores in in_batches(groups, batch_size=8, work=score):
        ...

Deliberately knows no model and no text; a token here is an integer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

logger = logging.getLogger(__name__)

Tokens = tuple[int, ...]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Group:
    """All continuations asked for after one context, in the order of the requests."""

    context: Tokens
    continuations: tuple[Tokens, ...]
    requests: tuple[int, ...]
    """Index of the request of each continuation."""


def group_by_context(pairs: Iterable[tuple[Tokens, Tokens]]) -> list[Group]:
    """The groups of (context, continuation) pairs, longest context first.

    Longest first: running out of memory shows in the first batch, and time left is overestimated
    rather than underestimated. Ties are broken by the tokens, so that the order of the requests
    does not decide who shares a batch with whom.
    """
    members: dict[Tokens, list[tuple[int, Tokens]]] = {}
    for index, (context, continuation) in enumerate(pairs):
        members.setdefault(context, []).append((index, continuation))
    groups = [
        Group(context, tuple(tokens for _, tokens in asked), tuple(index for index, _ in asked))
        for context, asked in members.items()
    ]
    return sorted(groups, key=lambda group: (-len(group.context), group.context))


def in_batches(
    items: Sequence[Item],
    *,
    batch_size: int,
    work: Callable[[Sequence[Item], int], Result],
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Run `work(batch, batch_size)` over `items` in order; yield each batch with its result.

    A batch that does not fit into memory is tried again at half the size, and the smaller size is
    kept: what is finished stays finished. With one row left the error is the caller's.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + batch_size]
        try:
            result = work(batch, batch_size)
        except Exception as error:
            if batch_size == 1 or not should_reduce_batch_size(error):
                raise
            batch_size = max(1, min(batch_size, len(batch)) // 2)
            logger.warning("out of memory: going on with batch_size=%d", batch_size)
        else:
            yield batch, result
            start += len(batch)
            continue
        # Outside the handler: the exception no longer holds the failed batch's tensors.
        clear_device_cache(garbage_collection=True)
