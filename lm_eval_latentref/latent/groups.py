"""Rows that think until they stop, in groups of equally many thoughts.

    groups = think_until_stopped(thinking, config, stop)
    groups = think_about(parts, rows, config, stop)     # several batches and samples
    groups = for_all(groups, [0, 0, 1])                 # the first row twice

A row that has stopped is taken out of the batch. What follows goes on among rows of equal length,
so that nothing is masked in the middle and no position is skipped.
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
"""Numbers of rows that thought equally many thoughts, and their thoughts."""

Sample = tuple[Tokens, int]
"""A context and the number of its sample."""


def think_until_stopped(
    thinking: Thinking, config: RefinementConfig, stop: StopRule | None
) -> list[Group]:
    """Think up to `config.latent_steps` thoughts, in each row until it stops.

    A row that stops leaves the batch: it is not fed again, and nothing is masked in its place. The
    result has a group for each number of thoughts: row numbers, and the thoughts of these rows.
    """
    groups = []
    rows = list(range(thinking.num_rows))
    for step in range(config.latent_steps):
        if stop is not None and step >= thinking.kind.min_thoughts:
            stops = thinking.stops(stop).tolist()
            done = [number for number, has_stopped in enumerate(stops) if has_stopped]
            left = [number for number, has_stopped in enumerate(stops) if not has_stopped]
            if done:
                groups.append(([rows[n] for n in done], thinking.select(done).finish()))
                if not left:
                    return groups
                thinking, rows = thinking.select(left), [rows[n] for n in left]
        thinking.step(config)
    return [*groups, (rows, thinking.finish())]


def think_about(
    parts: Iterable[tuple[Sequence[Tokens], Thinking]],
    rows: Sequence[Sample],
    config: RefinementConfig,
    stop: StopRule | None,
) -> list[Group]:
    """Groups of `rows`.

    Args:
        parts: batches of distinct contexts and what reads them, equally many columns in each.
        rows: distinct samples, in the order of the contexts.
    """
    by_number: dict[int, list[Group]] = {}
    for contexts, thinking in parts:
        places = {context: place for place, context in enumerate(contexts)}
        members = [row for row, (context, _) in enumerate(rows) if context in places]
        if config.draws:
            draws = Draws.of([rows[row] for row in members], seed=config.thought_seed)
            of_row = [places[rows[row][0]] for row in members]
            thinking = thinking.samples(of_row, draws, config.thought_dropout)
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


def for_all(groups: Sequence[Group], numbers: Sequence[int]) -> list[Group]:
    """`groups` of distinct rows, for rows that are the distinct ones `numbers`."""
    if len(numbers) == sum(len(rows) for rows, _ in groups):
        return list(groups)
    places = [{row: place for place, row in enumerate(rows)} for rows, _ in groups]
    expanded = []
    for places_of_group, (_, thoughts) in zip(places, groups, strict=True):
        rows = [row for row, number in enumerate(numbers) if number in places_of_group]
        chosen = thoughts.select([places_of_group[numbers[row]] for row in rows])
        expanded.append((rows, chosen))
    return expanded
