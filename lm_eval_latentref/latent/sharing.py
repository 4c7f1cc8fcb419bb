"""Think about the same contexts under many configs; work that several configs need is done once.

    for index, groups in think_under(context, configs, backbone=network, ...):
        for rows, thoughts in groups:
            ... = score(thoughts, [continuations[row] for row in rows], max_rows=8)

The thoughts equal those of `think` under each config. The shared work is:

- for all configs: each model's forward over the context, the raw first thought and, with
  `search_gradient=detached`, the references' hidden states at that thought;
- for configs that differ only in memory rate: the first thought, which has no predecessor, and the
  raw second thought; later thoughts differ, but are read side by side where the models allow it;
- for configs that differ only in the number of thoughts: all thoughts that both have.

If rows can stop early, only the first of these is shared.

Thoughts side by side need no further copy of the context. On SmolLM2-135M and a CPU, a column costs
half as much if 64 are read at once as if 16 are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.groups import Group, think_until_stopped
from lm_eval_latentref.latent.kinds import CONTINUOUS, Kind
from lm_eval_latentref.latent.kinds.stops import StopRule
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.thoughts import Context, Markers, References, Thinking, Thoughts

COLUMNS_ABREAST = 128
"""The most columns of thoughts that a row holds side by side."""

_Indices = list[int]
"""Indices into a sequence of configs."""


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
    """Yield (index in `configs`, groups of rows and their thoughts), in any order.

    Score or continue each result before taking the next, and drop it then: it holds the caches.

    Args:
        configs: all must have the same `search_gradient`, and none may use random numbers.
        references: required if any config searches.
        markers: None if the thoughts follow the context directly.
        kind: the kind of thought.
        stop: None if every row thinks `latent_steps` thoughts.
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
        for index, thoughts in _without_stops(base, configs):
            yield index, [(all_rows, thoughts)]
        return
    base.read(searching[0] if searching else configs[0])
    for index, config in enumerate(configs):
        yield index, think_until_stopped(base.fork(), config, stop)


def _without_stops(
    base: Thinking, configs: Sequence[RefinementConfig]
) -> Iterator[tuple[int, Thoughts]]:
    """Yield (index in `configs`, thoughts of all rows), in any order."""
    searching = [config for config in configs if config.searches]
    without_thoughts = [i for i, config in enumerate(configs) if config.latent_steps == 0]
    if without_thoughts:
        base.read_but_last()
        for index in without_thoughts:
            yield index, base.fork().finish()
    with_thoughts = [i for i, config in enumerate(configs) if config.latent_steps > 0]
    if with_thoughts:
        base.read(searching[0] if searching else configs[with_thoughts[0]])
    for group in _groups(with_thoughts, configs, same_first=True):
        yield from _think_group(base.fork(), group, configs)


def _think_group(
    thinking: Thinking, group: _Indices, configs: Sequence[RefinementConfig]
) -> Iterator[tuple[int, Thoughts]]:
    """Yield the thoughts under the configs of `group`, whose first thought is the same."""
    thinking.step(configs[group[0]])
    yield from _finished(thinking, group, configs, 1)
    longer = [index for index in group if configs[index].latent_steps > 1]
    if not longer:
        return
    thinking.read(configs[longer[0]])
    subgroups = _groups(longer, configs, same_first=False)
    most = max(configs[index].latent_steps for index in longer)
    size = max(1, COLUMNS_ABREAST // most) if thinking.reads_abreast else 1
    for start in range(0, len(subgroups), size):
        yield from _think_abreast(thinking, subgroups[start : start + size], configs)


def _think_abreast(
    thinking: Thinking, groups: Sequence[_Indices], configs: Sequence[RefinementConfig]
) -> Iterator[tuple[int, Thoughts]]:
    """Yield the thoughts under the configs of `groups`, which differ in memory rate only.

    Attention multiplies the columns of other copies by 0, which leaves nan if they are not finite.
    So from the first thought that is not finite, each group thinks apart.
    """
    branch = thinking.abreast(len(groups)) if len(groups) > 1 else thinking.fork()
    rates = [configs[group[0]].memory_rate for group in groups]
    most = max(configs[index].latent_steps for group in groups for index in group)
    for num_thoughts in range(2, most + 1):
        branch.step(configs[groups[0][0]], rates)
        if len(groups) > 1 and not branch.is_finite:
            for group in groups:
                if rest := [i for i in group if configs[i].latent_steps >= num_thoughts]:
                    yield from _think_abreast(thinking, [rest], configs)
            return
        for copy, group in enumerate(groups):
            rows = [copy * thinking.num_rows + row for row in range(thinking.num_rows)]
            for index, thoughts in _finished(branch, group, configs, num_thoughts):
                yield index, thoughts.select(rows) if len(groups) > 1 else thoughts


def _finished(
    thinking: Thinking, group: _Indices, configs: Sequence[RefinementConfig], num_thoughts: int
) -> Iterator[tuple[int, Thoughts]]:
    for index in group:
        if configs[index].latent_steps == num_thoughts:
            yield index, thinking.fork().finish()


def _groups(
    indices: _Indices, configs: Sequence[RefinementConfig], *, same_first: bool
) -> list[_Indices]:
    """`indices` in groups of configs with equal thoughts, as far as both think.

    Args:
        same_first: only the first thoughts of a group must be equal.
    """
    groups: dict[tuple[float, int, float], _Indices] = {}
    for index in indices:
        config = configs[index]
        search = (config.search_step_size, config.search_steps) if config.searches else (0.0, 1)
        memory_rate = 0.0 if same_first else config.memory_rate
        groups.setdefault((*search, memory_rate), []).append(index)
    return list(groups.values())
