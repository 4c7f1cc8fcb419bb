"""Lets rows think until they stop, and groups them by their number of thoughts.

    groups = think_until_stopped(thinking, config, stop)
    groups = think_about(parts, rows, config, stop)     # several batches and samples
    groups = expanded(groups, [0, 0, 1])                # the first row twice

A row that has stopped leaves the batch. All rows of a group have the same number of columns after
the context, so no column in the middle is masked and no position is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.confidence import more_confident
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.kinds.draws import Draws
from lm_eval_latentref.latent.kinds.stops import StopRule
from lm_eval_latentref.latent.thoughts import Thinking, Thoughts

Group = tuple[list[int], Thoughts]
"""The numbers of rows with the same number of thoughts, and their thoughts."""

Sample = tuple[Tokens, int]
"""A context, and the number of this sample of it."""


def think_until_stopped(
    thinking: Thinking, config: RefinementConfig, stop: StopRule | None
) -> list[Group]:
    """Think until each row stops or has `config.latent_steps` thoughts.

    Args:
        stop: None if every row thinks `latent_steps` thoughts.

    Returns:
        One group for each number of thoughts.
    """
    groups = []
    rows = list(range(thinking.num_rows))
    for step in range(config.latent_steps):
        if stop is not None and step >= thinking.kind.min_thoughts:
            stops = thinking.stops(stop).tolist()
            stopped = [index for index, has_stopped in enumerate(stops) if has_stopped]
            remaining = [index for index, has_stopped in enumerate(stops) if not has_stopped]
            if stopped:
                groups.append(([rows[i] for i in stopped], thinking.select(stopped).finish()))
                if not remaining:
                    return groups
                thinking, rows = thinking.select(remaining), [rows[i] for i in remaining]
        thinking.step(config)
    return [*groups, (rows, thinking.finish())]


def think_about(
    parts: Iterable[tuple[Sequence[Tokens], Thinking]],
    rows: Sequence[Sample],
    config: RefinementConfig,
    stop: StopRule | None,
) -> list[Group]:
    """Think about several batches, and join rows with the same number of thoughts into groups.

    Args:
        parts: batches of distinct contexts, each with the `Thinking` that reads them; all batches
            have the same number of columns.
        rows: distinct samples, in the order of the contexts in `parts`.
        stop: None if every row thinks `latent_steps` thoughts.

    Returns:
        One group for each number of thoughts; its numbers are indices into `rows`.
    """
    by_number: dict[int, list[Group]] = {}
    for contexts, thinking in parts:
        places = {context: place for place, context in enumerate(contexts)}
        members = [row for row, (context, _) in enumerate(rows) if context in places]
        if config.draws:
            draws = Draws.of([rows[row] for row in members], seed=config.thought_seed)
            contexts_of_rows = [places[rows[row][0]] for row in members]
            thinking = thinking.samples(contexts_of_rows, draws, config.thought_dropout)
        origin = thinking.after_context() if config.seeks_confidence else None
        for chosen, thoughts in think_until_stopped(thinking, config, stop):
            if origin is not None and thoughts.num_thoughts:
                thoughts = more_confident(
                    origin.fork(chosen),
                    thoughts,
                    num_closing=thinking.num_closing,
                    config=config,
                    draws=draws.select(chosen),
                )
            numbers = [members[row] for row in chosen]
            by_number.setdefault(thoughts.num_thoughts, []).append((numbers, thoughts))
    return [_joined(groups) for groups in by_number.values()]


def _joined(groups: Sequence[Group]) -> Group:
    rows = [row for rows, _ in groups for row in rows]
    return rows, Thoughts.join([thoughts for _, thoughts in groups])


def expanded(groups: Sequence[Group], numbers: Sequence[int]) -> list[Group]:
    """Groups in which rows of `groups` are repeated.

    Args:
        groups: groups of distinct rows 0, 1, ...
        numbers: for each row of the result, the number of the distinct row that it equals. Distinct
            rows are numbered in the order of their first occurrence here.
    """
    if len(numbers) == sum(len(rows) for rows, _ in groups):
        return list(groups)
    result = []
    for distinct_rows, thoughts in groups:
        places = {row: place for place, row in enumerate(distinct_rows)}
        rows = [row for row, number in enumerate(numbers) if number in places]
        result.append((rows, thoughts.select([places[numbers[row]] for row in rows])))
    return result
