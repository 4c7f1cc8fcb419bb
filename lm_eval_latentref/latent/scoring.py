"""Computes log-likelihoods of continuations after thoughts.

    scores = score(thoughts, [[(5, 6), (5, 7)]], max_rows=8)    # one row, two continuations

All continuations of a context share its thoughts. Continuations that differ only in their last
token are read once. Short continuations are read in one row, as branches that do not attend to each
other. Logits are computed only at positions where a token is scored.

Shape suffixes: B contexts, R rows of branches, L columns, M scored positions, D hidden size, V
vocabulary, N scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.streams import Stream
from lm_eval_latentref.latent.thoughts import Thoughts

NUM_SHARED_COLUMNS = 64
"""The maximum number of columns of a row that holds several branches."""

NUM_PROJECTED = 128
"""The maximum number of positions whose logits are in memory at the same time."""


class Score(NamedTuple):
    """The score of a continuation, as defined by lm-eval."""

    log_likelihood: float
    """Sum of log p over its tokens, in nats."""
    is_greedy: bool
    """Whether each of its tokens has the highest probability."""


def score(
    thoughts: Thoughts, continuations: Sequence[Sequence[Tokens]], *, max_rows: int
) -> list[list[Score]]:
    """Scores of the continuations of each row of `thoughts`.

    Args:
        continuations: for each row, the token ids of its continuations.
        max_rows: the maximum number of rows in a forward.
    """
    network = thoughts.stream.network
    tally = _Tally(network)
    last_BD = thoughts.stream.feed(thoughts.pending_BPD, thoughts.pending_mask_BP)[:, -1]
    tally.add(last_BD, _first_tokens(continuations))
    rows = _rows(_branches(continuations), side_by_side=network.takes_branches)
    for start in range(0, len(rows), max_rows):
        chunk = rows[start : start + max_rows]
        hidden_MD = _read(thoughts.stream.fork([row.context for row in chunk]), chunk)
        tally.add(hidden_MD, _later_tokens(chunk))
    return tally.scores(continuations)


def _read(stream: Stream, rows: Sequence[_Row]) -> Tensor:
    """Hidden states (M, D) at all columns of `rows`, row after row, without padding."""
    longest = max(row.num_columns for row in rows)
    # Branch -1 is padding.
    branch_RL = torch.full((len(rows), longest), -1)
    ids_RL = torch.zeros_like(branch_RL)
    for number, row in enumerate(rows):
        ids = [token for branch in row.branches for token in branch.prefix]
        owner = [n for n, branch in enumerate(row.branches) for _ in branch.prefix]
        ids_RL[number, : len(ids)], branch_RL[number, : len(ids)] = map(torch.tensor, (ids, owner))
    real_RL = branch_RL >= 0
    device = stream.network.device
    embeds_RLD = stream.network.embed(ids_RL.to(device, non_blocking=True))
    if any(len(row.branches) > 1 for row in rows):
        hidden_RLD = stream.feed_branches(embeds_RLD, branch_RL.to(device, non_blocking=True))
    else:
        # Padding is on the right, so no scored position attends to it. The mask is needed because
        # it keeps the positions of padding within a learned position embedding.
        hidden_RLD = stream.feed(embeds_RLD, None if real_RL.all() else real_RL)
    real_M = real_RL.flatten().nonzero()[:, 0].to(hidden_RLD.device, non_blocking=True)
    return hidden_RLD.flatten(0, 1)[real_M]


class _Pick(NamedTuple):
    """A token whose log-probability is read at a scored position."""

    position: int
    token: int
    owner: tuple[int, int]
    """The row and the number of the token's continuation."""


@dataclass
class _Branch:
    """The tokens to read for all continuations of a row that differ only in their last token."""

    row: int
    prefix: Tokens
    """The continuations without their last token."""
    owners: list[tuple[tuple[int, int], Tokens]] = field(default_factory=list)
    """The row and the number of each continuation, and its tokens."""


@dataclass
class _Row:
    """Branches of one context that are read together in one row."""

    context: int
    """The row of the context in the thoughts."""
    branches: list[_Branch]

    @property
    def num_columns(self) -> int:
        return sum(len(branch.prefix) for branch in self.branches)


def _first_tokens(continuations: Sequence[Sequence[Tokens]]) -> list[_Pick]:
    return [
        _Pick(row, tokens[0], (row, number))
        for row, choices in enumerate(continuations)
        for number, tokens in enumerate(choices)
        if tokens
    ]


def _branches(continuations: Sequence[Sequence[Tokens]]) -> list[_Branch]:
    branches: dict[tuple[int, Tokens], _Branch] = {}
    for row, choices in enumerate(continuations):
        for number, tokens in enumerate(choices):
            if len(tokens) > 1:
                branch = branches.setdefault((row, tokens[:-1]), _Branch(row, tokens[:-1]))
                branch.owners.append(((row, number), tokens))
    return sorted(branches.values(), key=lambda branch: (-len(branch.prefix), branch.row))


def _rows(branches: Sequence[_Branch], *, side_by_side: bool) -> list[_Row]:
    """`branches`, sorted longest first, packed into rows.

    A row has at most NUM_SHARED_COLUMNS columns, or as many as the longest branch if that has more.

    Args:
        side_by_side: whether a row may have several branches.
    """
    room = max([NUM_SHARED_COLUMNS, *(len(branch.prefix) for branch in branches)])
    rows: list[_Row] = []
    last: dict[int, _Row] = {}
    for branch in branches:
        row = last.get(branch.row) if side_by_side else None
        if row is not None and row.num_columns + len(branch.prefix) <= room:
            row.branches.append(branch)
        else:
            last[branch.row] = _Row(branch.row, [branch])
            rows.append(last[branch.row])
    return sorted(rows, key=lambda row: (-row.num_columns, row.context))


def _later_tokens(rows: Sequence[_Row]) -> Iterator[_Pick]:
    start = 0
    for branch in (branch for row in rows for branch in row.branches):
        for owner, tokens in branch.owners:
            for column, token in enumerate(tokens[1:]):
                yield _Pick(start + column, token, owner)
        start += len(branch.prefix)


class _Tally:
    """Collects log-probabilities on the device; `scores` copies them to the host, once."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._owners: list[tuple[int, int]] = []
        self._log_p: list[Tensor] = []
        self._greedy: list[Tensor] = []

    def add(self, hidden_MD: Tensor, picks: Iterable[_Pick]) -> None:
        picks = sorted(picks)
        # A few positions at a time, because logits are the largest tensors.
        for start in range(0, len(hidden_MD), NUM_PROJECTED):
            part = [p for p in picks if start <= p.position < start + NUM_PROJECTED]
            if part:
                self._add(hidden_MD[start : start + NUM_PROJECTED], part, start)

    def _add(self, hidden_MD: Tensor, picks: Sequence[_Pick], start: int) -> None:
        log_p_MV = self._network.project(hidden_MD).float().log_softmax(-1)
        chosen_2N = torch.tensor(
            [[pick.position - start for pick in picks], [pick.token for pick in picks]]
        )
        positions_N, tokens_N = chosen_2N.to(log_p_MV.device, non_blocking=True)
        self._owners += [pick.owner for pick in picks]
        self._log_p.append(log_p_MV[positions_N, tokens_N])
        self._greedy.append(log_p_MV.argmax(-1)[positions_N] == tokens_N)

    def scores(self, continuations: Sequence[Sequence[Tokens]]) -> list[list[Score]]:
        log_p: dict[tuple[int, int], list[float]] = {}
        misses: set[tuple[int, int]] = set()
        if self._owners:
            values, greedy = torch.cat(self._log_p).tolist(), torch.cat(self._greedy).tolist()
            for owner, value, hit in zip(self._owners, values, greedy, strict=True):
                log_p.setdefault(owner, []).append(value)
                if not hit:
                    misses.add(owner)
        return [
            [
                Score(math.fsum(log_p.get((row, number), ())), (row, number) not in misses)
                for number in range(len(choices))
            ]
            for row, choices in enumerate(continuations)
        ]
