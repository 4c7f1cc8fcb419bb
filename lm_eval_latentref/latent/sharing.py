"""Think about the same contexts under many settings, and do the work that settings share once.

    for number, groups in think_under(context, configs, backbone=network, ...):
        for rows, thoughts in groups:
            ... = score(thoughts, [continuations[row] for row in rows], max_rows=8)

The thoughts are the same as those of `think` under each config. What is shared:

- by all settings: each model's reading of the context, the raw first thought and (with `detached`)
  the references' states at it;
- by settings that differ in memory rate only: the first thought, which has no predecessor, and the
  raw second thought;
- by settings that differ in their number of thoughts only: all thoughts that both have.

Where rows stop early, settings share the first of these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.groups import Group, think_until_stopped
from lm_eval_latentref.latent.kinds import CONTINUOUS, Kind
from lm_eval_latentref.latent.kinds.stops import StopRule
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.thoughts import Context, Markers, References, Thinking, Thoughts

_Members = list[int]


def think_under(
    context: Context,
    configs: Sequence[RefinementConfig],
    *,
    backbone: Network,
    references: References | None,
    markers: Markers | None,
    kind: Kind = CONTINUOUS,
    stop: StopRule | None = None,
) -> Iterator[tuple[int, list[Group]]]:
    """Yields the index of each config and the thoughts under it, not in the order of `configs`.

    Score or continue each result before asking for the next. A result holds memory only as long as
    the caller keeps it.

    Args:
        configs: with the same `search_gradient`, and without random numbers.
        references: needed if any config searches.
        kind: what is fed as a thought.
        stop: when a row stops before its last thought; None: none does.
    """
    assert len({config.search_gradient for config in configs}) <= 1
    searching = [config for config in configs if config.searches]
    base = Thinking(
        context,
        backbone=backbone,
        references=references if searching else None,
        markers=markers,
        kind=kind,
        stops_early=stop is not None,
    )
    if stop is None:
        all_rows = list(range(base.num_rows))
        for number, thoughts in _of_all_rows(base, configs):
            yield number, [(all_rows, thoughts)]
        return
    base.read(searching[0] if searching else configs[0])
    for number, config in enumerate(configs):
        yield number, think_until_stopped(base.fork(), config, stop)


def _of_all_rows(
    base: Thinking, configs: Sequence[RefinementConfig]
) -> Iterator[tuple[int, Thoughts]]:
    """Yields the thoughts of configs under which all rows think equally many."""
    searching = [config for config in configs if config.searches]
    by_steps = {number: configs[number].latent_steps for number in range(len(configs))}
    thoughtless = [number for number, steps in by_steps.items() if steps == 0]
    if thoughtless:
        base.read_but_last()
        for number in thoughtless:
            yield number, base.fork().finish()
    thinking = [number for number, steps in by_steps.items() if steps > 0]
    if thinking:
        base.read(searching[0] if searching else configs[thinking[0]])
    for members in _alike(thinking, configs, on_first_thought=True):
        yield from _after_first(base.fork(), members, configs)


def _after_first(
    branch: Thinking, members: _Members, configs: Sequence[RefinementConfig]
) -> Iterator[tuple[int, Thoughts]]:
    """Yields the thoughts of configs whose first thought is the same."""
    branch.step(configs[members[0]])
    yield from _finished(branch, members, configs, 1)
    deeper = [number for number in members if configs[number].latent_steps > 1]
    if not deeper:
        return
    branch.read(configs[deeper[0]])
    for twins in _alike(deeper, configs, on_first_thought=False):
        twig = branch.fork()
        for num_thoughts in range(2, max(configs[number].latent_steps for number in twins) + 1):
            twig.step(configs[twins[0]])
            yield from _finished(twig, twins, configs, num_thoughts)


def _finished(
    thinking: Thinking, members: _Members, configs: Sequence[RefinementConfig], num_thoughts: int
) -> Iterator[tuple[int, Thoughts]]:
    for number in members:
        if configs[number].latent_steps == num_thoughts:
            yield number, thinking.fork().finish()


def _alike(
    members: _Members, configs: Sequence[RefinementConfig], *, on_first_thought: bool
) -> list[_Members]:
    """Members in groups whose thoughts are the same, up to each member's number of thoughts."""
    groups: dict[tuple[float, int, float], _Members] = {}
    for number in members:
        config = configs[number]
        search = (config.search_step_size, config.search_steps) if config.searches else (0.0, 1)
        rate = 0.0 if on_first_thought else config.memory_rate
        groups.setdefault((*search, rate), []).append(number)
    return list(groups.values())
