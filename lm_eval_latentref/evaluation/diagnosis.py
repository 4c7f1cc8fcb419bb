"""Why refinement helps a trained set, or not: the geometry of its thoughts, and what moves them.

    found = diagnose("out/hops-s0", task="latentref_hops_mc_dev", work="out/diagnosis")
    found.geometry.gap, found.effects[0].margin

Measured on a dev split, problem by problem, so that every claim has an interval. Deliberately
prints nothing: that is `diagnosis_report`.

Shape suffixes: B problems, C context columns, T thoughts, D hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.dev_tasks import load_dev_task
from lm_eval_latentref.evaluation.grid import Setting
from lm_eval_latentref.evaluation.selection import Outcome
from lm_eval_latentref.evaluation.statistics import Interval, McNemar, mcnemar, paired_interval
from lm_eval_latentref.evaluation.sweep import sweep
from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.streams import Stream
from lm_eval_latentref.latent.thoughts import Context

STEP_SIZES = (0.03, 0.1, 0.3, 1.0)
"""In units of d/2, tried with both signs and both gradients."""

NUM_STEPS_AROUND = (-4, -2, -1, 1, 2, 4)
"""Numbers of thoughts tried, relative to the set's own."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes and distances of thoughts z_t without refinement: a mean over problems for each t."""

    embedding_norm: float
    """Mean norm of the backbone's input embeddings."""
    thought_norm: tuple[float, ...]
    """|z_t|."""
    to_previous: tuple[float, ...]
    """|z_t - z_{t-1}|, from t = 2 on: what a memory rate of 1 would move."""
    gap: tuple[float, ...]
    """|g_t - b_t|: what a step size of d/2 moves."""
    strong_to_own: tuple[float, ...]
    """|g_t - z_t|: how far the strong reference's state is from the thought it has just read."""
    strong_to_next: tuple[float, ...]
    """|g_t - z_{t+1}|, up to t = T - 1: likewise from the thought after."""
    ahead: Interval
    """Of the mean over t < T of |g_t - z_{t+1}| - |g_t - z_t|: below 0, the reference's state is
    nearer to the next thought than to the one that it refines."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One way of changing the thoughts, against the set's own number of plain ones."""

    what: str
    """"T", "detached" or "through"."""
    setting: Setting
    accuracy: float
    accuracy_test: McNemar
    margin: Interval
    """Of the mean margin's difference in nats."""


@dataclass(frozen=True, kw_only=True)
class SignTest:
    """+eta against -eta on the same problems."""

    gradient: str
    step_size: float
    margin: Interval
    """Of the mean margin at +eta minus that at -eta."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that was measured on one set."""

    folder: str
    task: str
    num_problems: int
    latent_steps: int
    accuracy: float
    """Without refinement."""
    margin: float
    geometry: Geometry
    effects: tuple[Effect, ...]
    signs: tuple[SignTest, ...]


def diagnose(
    folder: str,
    *,
    task: str,
    work: str,
    latent_steps: int | None = None,
    limit: int | None = None,
    batch_size: int = 100,
    seed: int = 0,
) -> Diagnosis:
    """Measures one trained set on a multiple-choice dev task.

    Args:
        latent_steps: thoughts; default: what latentref.json says.
        seed: of the bootstrap.

    Raises:
        LatentRefError: the set has no references, or the task is none to tune on.
    """
    options: dict[str, Any] = {} if latent_steps is None else {"latent_steps": latent_steps}
    reasoner = load(folder, search_step_size=1.0, device="cpu", **options)
    num_thoughts = reasoner.config.latent_steps
    if num_thoughts < 2:
        raise LatentRefError(
            f"{folder}: latent_steps={num_thoughts}: nothing to compare; give 2 or more"
        )
    requests = load_dev_task(task, limit=limit).requests
    contexts = list(dict.fromkeys(request.args[0] for request in requests))
    geometry = _geometry(reasoner, contexts, seed)
    outcomes = _outcomes(folder, task, Path(work), num_thoughts, limit, batch_size)
    plain = outcomes["T", Setting(latent_steps=num_thoughts)]
    return Diagnosis(
        folder=folder,
        task=task,
        num_problems=len(plain.correct),
        latent_steps=num_thoughts,
        accuracy=plain.accuracy,
        margin=plain.margin,
        geometry=geometry,
        effects=tuple(
            _effect(what, one, plain, seed) for (what, _), one in outcomes.items() if one != plain
        ),
        signs=tuple(_signs(outcomes, num_thoughts, seed)),
    )


def _outcomes(
    folder: str, task: str, work: Path, num_thoughts: int, limit: int | None, batch_size: int
) -> dict[tuple[str, Setting], Outcome]:
    """By what was changed and how: more and fewer thoughts, steps of both signs and gradients."""
    numbers = sorted({num_thoughts + n for n in (0, *NUM_STEPS_AROUND) if num_thoughts + n > 0})
    signed = tuple(sign * size for size in STEP_SIZES for sign in (1, -1))
    plans: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "T": ({}, {"latent_steps": numbers, "step_sizes": (0.0,)}),
        "detached": ({}, {"latent_steps": (num_thoughts,), "step_sizes": signed}),
        "through": (
            {"search_gradient": "through"},
            {"latent_steps": (num_thoughts,), "step_sizes": signed},
        ),
    }
    found = {}
    for what, (model_args, grid) in plans.items():
        result = sweep(
            {"pretrained": folder, "batch_size": batch_size, **model_args},
            task=task,
            output=str(work / Path(folder).name / what),
            memory_rates=(0.0,),
            limit=limit,
            **grid,
        )
        for outcome in result.outcomes:
            if what == "T" or outcome.setting.step_size:
                found[what, outcome.setting] = outcome
    return found


def _effect(what: str, outcome: Outcome, plain: Outcome, seed: int) -> Effect:
    return Effect(
        what=what,
        setting=outcome.setting,
        accuracy=outcome.accuracy,
        accuracy_test=mcnemar(plain.correct, outcome.correct),
        margin=paired_interval(outcome.margins, plain.margins, seed=seed),
    )


def _signs(
    outcomes: dict[tuple[str, Setting], Outcome], num_thoughts: int, seed: int
) -> Sequence[SignTest]:
    found = []
    for gradient in ("detached", "through"):
        for size in STEP_SIZES:
            pair = [
                outcomes.get((gradient, Setting(latent_steps=num_thoughts, step_size=sign * size)))
                for sign in (1, -1)
            ]
            if pair[0] and pair[1]:  # a setting under which thoughts overflowed is left out
                margin = paired_interval(pair[0].margins, pair[1].margins, seed=seed)
                found.append(SignTest(gradient=gradient, step_size=size, margin=margin))
    return found


def _geometry(reasoner: Reasoner, contexts: Sequence[str], seed: int) -> Geometry:
    config = dataclasses.replace(reasoner.config, memory_rate=0.0, search_step_size=0.0)
    plain = Reasoner(reasoner.loaded, config)
    ids = [tuple(reasoner.tokenizer.encode(text)) for text in contexts]
    with torch.no_grad():
        thoughts_BTD = plain.think(ids).thoughts_BTD.float()
        references = reasoner.references
        assert references is not None
        strong_BTD, weak_BTD = (
            _states(network, reasoner, ids, thoughts_BTD)
            for network in (references.strong, references.weak)
        )
        embeddings = reasoner.backbone.causal_lm.get_input_embeddings().weight
    own_BT = (strong_BTD - thoughts_BTD).norm(dim=-1)
    next_BT = (strong_BTD[:, :-1] - thoughts_BTD[:, 1:]).norm(dim=-1)
    return Geometry(
        embedding_norm=float(embeddings.norm(dim=-1).mean()),
        thought_norm=_means(thoughts_BTD.norm(dim=-1)),
        to_previous=_means((thoughts_BTD[:, 1:] - thoughts_BTD[:, :-1]).norm(dim=-1)),
        gap=_means((strong_BTD - weak_BTD).norm(dim=-1)),
        strong_to_own=_means(own_BT),
        strong_to_next=_means(next_BT),
        ahead=paired_interval(next_BT.mean(1).numpy(), own_BT[:, :-1].mean(1).numpy(), seed=seed),
    )


def _states(
    network: Network, reasoner: Reasoner, ids: Sequence[Tokens], thoughts_BTD: Tensor
) -> Tensor:
    """The reference's final hidden states (B, T, D) at the thoughts, having read all before."""
    context = Context.pad(ids, device=network.device)
    if reasoner.markers is not None:
        context = context.then(reasoner.markers.start_id)
    stream = Stream(network)
    stream.feed(network.embed(context.ids_BC), context.mask_BC)
    hidden_BTD = stream.feed(thoughts_BTD.to(network.device, network.dtype))
    return hidden_BTD.float().cpu()


def _means(values_BT: Tensor) -> tuple[float, ...]:
    return tuple(values_BT.mean(0).tolist())
