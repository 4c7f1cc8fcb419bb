"""Prefixes that several contexts share: every network reads each of them once.

    for group in by_prefix(contexts):
        trunk = Trunk(group.prefix)
        rows = [contexts[index] for index in group.members]
        Context.pad(rows, trunk=trunk)

Few-shot examples, system prompts and chat templates are such prefixes. A trunk is a prefix with the
caches of the networks that have read it. Where the attention allows it, rows that branch from a
trunk read its columns where they are, and padding lies between those and the columns of a row's
own. Elsewhere a batch that branches looks like any other batch: padding on the left, then the
tokens without a gap, copied for each row. If a row is then shorter than the longest by n tokens, n
columns of its trunk are padding, and it reads the last n tokens of the prefix again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.caches import keeps_every_column
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.streams import Stream

MIN_TOKENS = 32
"""Shorter prefixes are not shared, because that costs as much as reading them."""

MIN_SAVED = 1024
"""The least number of tokens that a group must save. Each group is a series of batches of its own,
whose last batch is not full."""


@dataclass(frozen=True)
class PrefixGroup:
    """Contexts that begin with `prefix`."""

    prefix: Tokens
    members: list[int] = field(default_factory=list)
    """Indices of the contexts that are in no group with a longer prefix."""


def by_prefix(contexts: Sequence[Tokens]) -> list[PrefixGroup]:
    """Group contexts by their longest shared prefix that is worth sharing.

    The groups are the worthwhile nodes of the contexts' prefix tree, each before its descendants;
    the first is the root with the empty prefix. Each prefix is shorter than all of its contexts.
    """
    order = sorted(range(len(contexts)), key=contexts.__getitem__)
    common = [0, *(_num_common(contexts[a], contexts[b]) for a, b in pairwise(order))]
    groups = [PrefixGroup(())]
    ranges = [(0, len(order), groups[0])]
    while ranges:
        start, end, parent = ranges.pop()
        if end - start <= 1:
            parent.members.extend(order[start:end])
            continue
        num_shared = min(common[start + 1 : end])
        num_new = num_shared - len(parent.prefix)
        if _is_worth_sharing(end - start, num_new, are_all=end - start == len(order)):
            parent = PrefixGroup(contexts[order[start]][:num_shared])
            groups.append(parent)
        splits = [k for k in range(start + 1, end) if common[k] == num_shared]
        # Ranges are taken from the end of the list; reversed, they are visited depth first.
        ranges += [(a, b, parent) for a, b in reversed([*pairwise([start, *splits, end])])]
    return [PrefixGroup(group.prefix, sorted(group.members)) for group in groups]


def _is_worth_sharing(num_rows: int, num_tokens: int, *, are_all: bool) -> bool:
    num_saved = (num_rows - 1) * num_tokens
    return num_tokens >= MIN_TOKENS and (are_all or num_saved >= MIN_SAVED)


def _num_common(left: Tokens, right: Tokens) -> int:
    """The length of the common prefix, at most one less than the length of the shorter context."""
    low, high = 0, min(len(left), len(right)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if left[:middle] == right[:middle] else (low, middle - 1)
    return low


class Trunk:
    """A prefix that each network reads once, in a single row, when the prefix is first needed.

    Args:
        prefix: token ids, without markers.
        parent: the trunk of a shorter prefix of `prefix`, from whose cache this trunk continues.
    """

    def __init__(self, prefix: Tokens, parent: Trunk | None = None) -> None:
        self.prefix, self._parent = prefix, parent
        self._streams: dict[Network, Stream] = {}

    def stream(self, network: Network) -> Stream:
        """A stream of one row in which `network` has read the prefix; fork it before feeding it."""
        if network not in self._streams:
            stream = self._parent.stream(network).fork() if self._parent else Stream(network)
            ids_1L = torch.tensor([self.prefix[stream.length :]])
            stream.feed(network.embed(ids_1L))
            self._streams[network] = stream
        return self._streams[network]

    def branch(self, network: Network, num_rows: int, mask_BC: Tensor | None) -> Stream:
        """A stream of `num_rows` rows, of as many columns as the prefix has tokens.

        Args:
            mask_BC: bool, the mask of the whole padded contexts; None if there is no padding.
        """
        if network.shares_columns:
            return self.stream(network).branch()
        mask_BK = None if mask_BC is None else mask_BC[:, : len(self.prefix)]
        return self.stream(network).spread(num_rows, mask_BK)

    def num_shared(self, contexts: Iterable[Tokens], network: Network) -> int:
        """The number of tokens of a batch that `network` need not read because of this trunk.

        Tokens of the prefix that `network` has yet to read, once, are subtracted.
        """
        lengths, num_prefix = list(map(len, contexts)), len(self.prefix)
        if network.shares_columns:
            return num_prefix * len(lengths) - self._num_unread(network)
        num_saved = sum(max(0, num_prefix - max(lengths) + length) for length in lengths)
        return num_saved - self._num_unread(network)

    def _num_unread(self, network: Network) -> int:
        if network in self._streams:
            return 0
        num_read = 0
        if self._parent is not None:
            num_read = len(self._parent.prefix) - self._parent._num_unread(network)
        return len(self.prefix) - num_read

    def begins(self, contexts: Iterable[Tokens]) -> bool:
        """Whether all contexts begin with the prefix and are longer than it."""
        length = len(self.prefix)
        return all(
            len(context) > length and context[:length] == self.prefix for context in contexts
        )


class Trunks:
    """The trunks in use; each is kept while remaining contexts begin with its prefix.

    Args:
        networks: all networks that read the contexts.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        self._can_share = all(keeps_every_column(network.causal_lm) for network in networks)
        self._path: list[Trunk] = []

    @property
    def in_use(self) -> bool:
        """Whether the contexts that `in_order` yielded last have a trunk."""
        return bool(self._path)

    def of(self, contexts: Sequence[Tokens]) -> Trunk | None:
        """The trunk in use if all of `contexts` begin with its prefix; otherwise None."""
        return self._path[-1] if self._path and self._path[-1].begins(contexts) else None

    def in_order(self, contexts: Sequence[Tokens]) -> Iterator[list[int]]:
        """Yield the indices of contexts to process together; until the next, their trunk is in use.

        If a model has a layer that drops columns, no prefix is shared: all contexts are one group.
        """
        everything = PrefixGroup((), list(range(len(contexts))))
        groups = by_prefix(contexts) if self._can_share else [everything]
        try:
            for group, following in pairwise([*groups, PrefixGroup(())]):
                if group.prefix:
                    self._path.append(Trunk(group.prefix, self._path[-1] if self._path else None))
                if group.members:
                    yield group.members
                while self._path and not _extends(following.prefix, self._path[-1].prefix):
                    self._path.pop()
        finally:
            self._path.clear()


def _extends(longer: Tokens, prefix: Tokens) -> bool:
    return longer[: len(prefix)] == prefix
