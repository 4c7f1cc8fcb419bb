"""Log-likelihoods of continuations, all of one context scored from its one thought.

    scores = score(thoughts, [[(5, 6), (5, 7)]], max_rows=8)    # one row, two continuations

Deliberately knows no text and no lm-eval. What continuations of a context have in common before
their last token is read once, and logits exist only where a token is scored.

Shape suffixes: B contexts, R branches read together, L columns, M scored positions, D hidden size,
V vocabulary, N scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lm_eval_latentref.batching import Tokens
from lm_eval_latentref.networks import Network
from lm_eval_latentref.thoughts import Thoughts


class Score(NamedTuple):
    """What lm-eval wants to know of a continuation."""

    log_likelihood: float
    """Sum of log p over its tokens, in nats."""
    is_greedy: bool
    """Whether each of its tokens is the most likely one."""


def score(
    thoughts: Thoughts, continuations: Sequence[Sequence[Tokens]], *, max_rows: int
) -> list[list[Score]]:
    """Scores of the continuations of each row of `thoughts`.

    Args:
        continuations: for each row, the token ids of its continuations.
        max_rows: at most this many rows are in any forward pass.
    """
    network = thoughts.stream.network
    tally = _Tally()
    last_BD = thoughts.stream.feed(thoughts.pending_BPD, thoughts.pending_mask_BP)[:, -1]
    tally.add(network, last_BD, _first_tokens(continuations))
    branches = _branches(continuations)
    for start in range(0, len(branches), max_rows):
        chunk = branches[start : start + max_rows]
        longest = len(chunk[0].prefix)
        ids_RL = torch.tensor([[*b.prefix, *[0] * (longest - len(b.prefix))] for b in chunk])
        real_RL = torch.arange(longest) < torch.tensor([[len(b.prefix)] for b in chunk])
        stream = thoughts.stream.fork([branch.row for branch in chunk])
        # No scored position comes after padding on the right; the mask keeps its positions from
        # running past the last one a model with learnt positions has.
        hidden_RLD = stream.feed(network.embed(ids_RL), None if real_RL.all() else real_RL)
        hidden_MD = hidden_RLD[real_RL.to(hidden_RLD.device)]
        tally.add(network, hidden_MD, _later_tokens(chunk))
    return tally.scores(continuations)


class _Pick(NamedTuple):
    """Token `token` of continuation `owner`, predicted at scored position `position`."""

    position: int
    token: int
    owner: tuple[int, int]


@dataclass
class _Branch:
    """A path to be read after one row's context: all but the last token of some continuations."""

    row: int
    prefix: Tokens
    owners: list[tuple[tuple[int, int], Tokens]] = field(default_factory=list)


def _first_tokens(continuations: Sequence[Sequence[Tokens]]) -> list[_Pick]:
    return [
        _Pick(row, tokens[0], (row, number))
        for row, choices in enumerate(continuations)
        for number, tokens in enumerate(choices)
        if tokens
    ]


def _branches(continuations: Sequence[Sequence[Tokens]]) -> list[_Branch]:
    found: dict[tuple[int, Tokens], _Branch] = {}
    for row, choices in enumerate(continuations):
        for number, tokens in enumerate(choices):
            if len(tokens) > 1:
                branch = found.setdefault((row, tokens[:-1]), _Branch(row, tokens[:-1]))
                branch.owners.append(((row, number), tokens))
    return sorted(found.values(), key=lambda branch: (-len(branch.prefix), branch.row))


def _later_tokens(branches: Sequence[_Branch]) -> Iterator[_Pick]:
    start = 0
    for branch in branches:
        for owner, tokens in branch.owners:
            for column, token in enumerate(tokens[1:]):
                yield _Pick(start + column, token, owner)
        start += len(branch.prefix)


class _Tally:
    """Collects log p of scored tokens on the device; read off once, at the end."""

    def __init__(self) -> None:
        self._owners: list[tuple[int, int]] = []
        self._log_p: list[Tensor] = []
        self._greedy: list[Tensor] = []

    def add(
        self, network: Network, hidden_MD: Tensor, picks: Iterator[_Pick] | list[_Pick]
    ) -> None:
        picks = list(picks)
        if not picks:
            return
        log_p_MV = network.project(hidden_MD).float().log_softmax(-1)
        positions_N = torch.tensor([pick.position for pick in picks], device=log_p_MV.device)
        tokens_N = torch.tensor([pick.token for pick in picks], device=log_p_MV.device)
        self._owners += [pick.owner for pick in picks]
        self._log_p.append(log_p_MV[positions_N, tokens_N])
        self._greedy.append(log_p_MV.argmax(-1)[positions_N] == tokens_N)

    def scores(self, continuations: Sequence[Sequence[Tokens]]) -> list[list[Score]]:
        log_p: dict[tuple[int, int], list[float]] = {}
        misses: set[tuple[int, int]] = set()
        if self._owners:
            values = torch.cat([part.cpu() for part in self._log_p]).tolist()
            greedy = torch.cat([part.cpu() for part in self._greedy]).tolist()
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
