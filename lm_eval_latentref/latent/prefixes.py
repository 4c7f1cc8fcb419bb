"""Beginnings that contexts share: found by their tokens, read once, branched from.

    for part in by_prefix(contexts):
        trunk = Trunk(part.prefix)
        think(Context.pad([contexts[number] for number in part.members]), ..., trunk=trunk)

Few-shot examples, descriptions, system prompts and chat templates are such beginnings. Rows of a
batch that branch from a trunk have the layout of any other batch, padding on the left and no gap:
a shorter row reads the last of the shared tokens again, in columns that padding would take.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from lm_eval_latentref.latent import transformers_seams as seams
from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.streams import Stream

MIN_TOKENS = 32
"""A shorter beginning is not shared: its rows' copies cost what reading it does."""

MIN_SAVED = 1024
"""Tokens that a group must save, since it takes batches of its own, of which the last is not full.
"""


@dataclass(frozen=True)
class Shared:
    """Contexts that begin with the same tokens."""

    prefix: Tokens
    members: list[int] = field(default_factory=list)
    """The numbers of the contexts; those in a group with a longer prefix are left out."""


def by_prefix(contexts: Sequence[Tokens]) -> list[Shared]:
    """The contexts in groups; a prefix comes before those that begin with it.

    Each prefix is shorter than its contexts. These are the nodes of a prefix tree that pay.
    """
    order = sorted(range(len(contexts)), key=contexts.__getitem__)
    common = [0, *(_num_common(contexts[a], contexts[b]) for a, b in pairwise(order))]
    plan = [Shared(())]
    ranges = [(0, len(order), plan[0])]
    while ranges:
        start, end, above = ranges.pop()
        if end - start <= 1:
            above.members.extend(order[start:end])
            continue
        num_shared = min(common[start + 1 : end])
        if _pays(end - start, num_shared - len(above.prefix), everyone=end - start == len(order)):
            above = Shared(contexts[order[start]][:num_shared])
            plan.append(above)
        splits = [k for k in range(start + 1, end) if common[k] == num_shared]
        # The last range pushed is the next one taken, so that a group is followed by its own.
        ranges += [(a, b, above) for a, b in reversed([*pairwise([start, *splits, end])])]
    return [Shared(part.prefix, sorted(part.members)) for part in plan]


def _pays(num_rows: int, num_tokens: int, *, everyone: bool) -> bool:
    saved = (num_rows - 1) * num_tokens
    return num_tokens >= MIN_TOKENS and (everyone or saved >= MIN_SAVED)


def _num_common(left: Tokens, right: Tokens) -> int:
    """How many tokens both begin with, less than the length of either."""
    low, high = 0, min(len(left), len(right)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[:middle] == right[:middle] else (low, middle - 1)
    return low


class Trunk:
    """Tokens that every network reads once, in one row, when it is first asked for them.

    Args:
        prefix: the tokens, without markers.
        parent: the trunk of a beginning of `prefix`, which it branches from.
    """

    def __init__(self, prefix: Tokens, parent: Trunk | None = None) -> None:
        self.prefix, self._parent = prefix, parent
        self._streams: dict[Network, Stream] = {}

    def stream(self, network: Network) -> Stream:
        """One row of `network` that has read the prefix; not to be fed."""
        if network not in self._streams:
            stream = self._parent.stream(network).fork() if self._parent else Stream(network)
            ids_1L = torch.tensor([self.prefix[stream.length :]])
            stream.feed(network.embed(ids_1L))
            self._streams[network] = stream
        return self._streams[network]

    def branch(self, network: Network, num_rows: int, mask_BC: Tensor | None) -> Stream:
        """Rows of `network` that have read as many columns as the prefix has tokens.

        Args:
            mask_BC: which columns of the whole contexts are real; None if all are.
        """
        mask_BK = None if mask_BC is None else mask_BC[:, : len(self.prefix)]
        return self.stream(network).spread(num_rows, mask_BK)

    def num_shared(self, contexts: Iterable[Tokens], network: Network) -> int:
        """How many tokens of a batch `network` is spared, less those it has yet to read once."""
        lengths, num = list(map(len, contexts)), len(self.prefix)
        spared = sum(max(0, num - max(lengths) + length) for length in lengths)
        return spared - self._num_unread(network)

    def _num_unread(self, network: Network) -> int:
        if network in self._streams:
            return 0
        above = self._parent
        return len(self.prefix) - (len(above.prefix) - above._num_unread(network) if above else 0)

    def begins(self, contexts: Iterable[Tokens]) -> bool:
        """Whether all contexts begin with the prefix and go on after it."""
        num = len(self.prefix)
        return all(len(context) > num and context[:num] == self.prefix for context in contexts)


class Trunks:
    """The trunks in use: each is kept as long as contexts still to do begin with it.

    Args:
        networks: all that read the contexts.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        self._shared = all(seams.keeps_every_column(network.causal_lm) for network in networks)
        self._path: list[Trunk] = []

    @property
    def in_use(self) -> bool:
        """Whether the contexts at work have a trunk."""
        return bool(self._path)

    def of(self, contexts: Sequence[Tokens]) -> Trunk | None:
        """The trunk of the contexts at work, if all of `contexts` are among them."""
        return self._path[-1] if self._path and self._path[-1].begins(contexts) else None

    def in_order(self, contexts: Sequence[Tokens]) -> Iterator[list[int]]:
        """Yields the numbers of contexts to work on together, which have a trunk meanwhile.

        Models with a layer that forgets columns have none: all contexts are one group.
        """
        plan = by_prefix(contexts) if self._shared else [Shared((), list(range(len(contexts))))]
        try:
            for part, after in pairwise([*plan, Shared(())]):
                if part.prefix:
                    self._path.append(Trunk(part.prefix, self._path[-1] if self._path else None))
                if part.members:
                    yield part.members
                while self._path and not _goes_on(after, self._path[-1]):
                    self._path.pop()
        finally:
            self._path.clear()


def _goes_on(part: Shared, trunk: Trunk) -> bool:
    return part.prefix[: len(trunk.prefix)] == trunk.prefix
