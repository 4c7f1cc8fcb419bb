"""A case study of documents whose answer refinement changes: the tokens that thoughts decode to.

    study = study_cases("out/mine", task="latentref_mathqa_mc", work="out/cases", memory_rate=0.3)
    study.cases[0].thoughts[2].refined          # tokens and their probabilities

The cases are the first documents of the task that refinement turns from wrong to right, and the
first that it turns from right to wrong. The backbone's output layer decodes the thoughts.

Shape suffixes: B documents, T thoughts, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm_eval_latentref.checkpoints.files import holding
from lm_eval_latentref.checkpoints.sets import CheckpointNames, SetPlan, resolve
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.dev_tasks import DevTask, load_task
from lm_eval_latentref.evaluation.settings import Outcome, Setting
from lm_eval_latentref.evaluation.statistics import McNemar, mcnemar
from lm_eval_latentref.evaluation.sweep import JOURNAL_NAME
from lm_eval_latentref.evaluation.sweep_model import SweepModel
from lm_eval_latentref.evaluation.sweep_run import GridRun
from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.refinement import mix_residual
from lm_eval_latentref.latent.streams import Stream
from lm_eval_latentref.latent.thoughts import Context

NUM_TOKENS = 5
"""The number of tokens shown for a thought."""

MAX_NEW_TOKENS = 64
"""The maximum number of tokens of a free answer."""

Reading = tuple[tuple[str, float], ...]
"""The likeliest tokens with their probabilities, in descending order."""


@dataclass(frozen=True, kw_only=True)
class Thought:
    """One thought of one document; distances are Euclidean."""

    plain: Reading
    """The thought of plain Coconut, where no thought is refined."""
    raw: Reading
    """The backbone's output after the earlier, refined thoughts, before its own refinement."""
    refined: Reading
    """The thought after refinement, as it is fed."""
    cosine_to_plain: float
    """Cosine similarity of the refined thought and plain Coconut's."""
    moved: float
    """The distance between the raw and the refined thought."""
    to_strong: tuple[float, float]
    """Distances of the raw and the refined thought from the strong reference's state there."""
    to_weak: tuple[float, float]
    """Distances of the raw and the refined thought from the weak reference's state there."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One document whose answer refinement changes."""

    doc_id: int
    question: str
    gold: str
    answer_before: str
    answer_after: str
    margins: tuple[float, float]
    """Margins of the gold answer in nats, without and with refinement."""
    helped: bool
    """If true, the answer turned from wrong to right; if false, from right to wrong."""
    thoughts: tuple[Thought, ...]


@dataclass(frozen=True, kw_only=True)
class CaseStudy:
    """The cases of one set on one task."""

    folder: str
    task: str
    setting: Setting
    num_documents: int
    accuracy: tuple[float, float]
    """Accuracy without and with refinement."""
    test: McNemar
    """The test of accuracy without refinement against accuracy with it."""
    is_free: bool
    """Whether answers are free text; if false, candidates are compared."""
    model: dict[str, Any]
    """The identity of the model: checkpoints, dtype, markers."""
    cases: tuple[Case, ...]


def study_cases(
    folder: str,
    *,
    task: str,
    work: str,
    num: int = 6,
    latent_steps: int | None = None,
    memory_rate: float | None = None,
    step_size: float | None = None,
    limit: int | None = None,
    **loading: Any,
) -> CaseStudy:
    """Finds up to `num` cases, if possible half of each kind, and decodes their thoughts.

    Args:
        folder: a trained set with both references.
        task: any task with candidates or free answers, on any split.
        work: folder of finished work, from which the same call continues.
        latent_steps, memory_rate, step_size: None for the values in latentref.json. The step size
            is in units of d/2.
        limit: only the first `limit` documents.
        loading: `batch_size`, `device`, `dtype`.

    Raises:
        LatentRefError: the set has no references, nothing is refined, thoughts overflow, or another
            process works in `work`.
    """
    plan = resolve(CheckpointNames(pretrained=folder))
    if plan.strong is None or plan.weak is None:
        raise LatentRefError(
            f"{folder} lacks a strong or weak reference, but a case study measures distances from "
            "both; give a set whose latentref.json names both"
        )
    model = _load(folder, plan, {"latent_steps": latent_steps, **loading})
    num_thoughts = model.reasoner.config.latent_steps
    recorded = RefinementConfig.parse(plan.settings)
    setting = _setting(folder, model, recorded, memory_rate, step_size)
    loaded, plain = load_task(task, limit=limit), Setting(latent_steps=num_thoughts)
    run = GridRun(model, loaded, [plain, setting])
    with holding(work, "latentref thoughts"):
        run.fill(Path(work) / Path(folder).name / "cases" / task / JOURNAL_NAME)
    outcomes = {outcome.setting: outcome for outcome in run.outcomes()[0]}
    advices = {plain: "give --dtype float32", setting: "give a smaller step size"}
    for needed, advice in advices.items():
        if needed not in outcomes:
            raise LatentRefError(f"{folder}: thoughts overflowed under {needed.label}; {advice}")
    before, after = outcomes[plain], outcomes[setting]
    return CaseStudy(
        folder=folder,
        task=task,
        setting=setting,
        num_documents=len(loaded.documents),
        accuracy=(before.accuracy, after.accuracy),
        test=mcnemar(before.correct, after.correct),
        is_free=loaded.is_free,
        model=run.identity,
        cases=_cases(run, before, after, _changed(before, after, num)),
    )


def _load(folder: str, plan: SetPlan, options: dict[str, Any]) -> SweepModel:
    """The model of the set with both references, even if its latentref.json has no search."""
    given = {name: value for name, value in options.items() if value is not None}
    # References are loaded if there is a search step size.
    model = SweepModel(**{"pretrained": plan, **given, "search_step_size": 1.0})
    if not model.reasoner.kind.is_identity:
        raise LatentRefError(
            f"{folder}: latent_kind={model.reasoner.kind.name}: a case study needs thoughts that "
            "are hidden states; give a set of latent_kind=continuous"
        )
    return model


def _setting(
    folder: str,
    model: SweepModel,
    recorded: RefinementConfig,
    memory_rate: float | None,
    step_size: float | None,
) -> Setting:
    num_thoughts = model.reasoner.config.latent_steps
    if memory_rate is None:
        memory_rate = recorded.memory_rate
    if step_size is None:
        step_size = recorded.search_step_size * 2 / model.reasoner.backbone.hidden_size
    setting = Setting.of(num_thoughts, memory_rate, step_size, recorded.search_steps)
    if setting.row == "plain":
        raise LatentRefError(
            f"{folder}: nothing is refined with memory_rate={memory_rate:g}, step size "
            f"{step_size:g} and {num_thoughts} thoughts; give --memory_rate or --step_size"
        )
    return setting


def _changed(before: Outcome, after: Outcome, num: int) -> list[int]:
    """Indices of the first documents that turned right, then of the first that turned wrong."""
    pairs = list(enumerate(zip(before.correct, after.correct, strict=True)))
    helped = [place for place, (was, is_now) in pairs if is_now and not was]
    harmed = [place for place, (was, is_now) in pairs if was and not is_now]
    # If there are too few documents of one kind, more of the other kind are taken.
    num_helped = max(num - num // 2, num - len(harmed))
    helped = helped[:num_helped]
    return helped + harmed[: num - len(helped)]


def _cases(
    run: GridRun, before: Outcome, after: Outcome, places: Sequence[int]
) -> tuple[Case, ...]:
    if not places:
        return ()
    reasoner = run.model.reasoner
    settings = before.setting, after.setting
    plain, refined = (
        Reasoner(reasoner.loaded, run.configs[setting], max_length=run.model.max_length)
        for setting in settings
    )
    documents = [run.task.documents[place] for place in places]
    contexts = [run.pairs[document.requests[0]][0] for document in documents]
    thoughts = _thoughts(plain, refined, reasoner, contexts)
    answers = [
        _answers(run, setting, places, answering)
        for setting, answering in zip(settings, (plain, refined), strict=True)
    ]
    return tuple(
        Case(
            doc_id=document.doc_id,
            question=run.task.requests[document.requests[0]].args[0].strip(),
            gold=run.task.requests[document.requests[document.gold]].args[1].strip(),
            answer_before=answers[0][number],
            answer_after=answers[1][number],
            margins=(before.margins[place], after.margins[place]),
            helped=after.correct[place],
            thoughts=thoughts[number],
        )
        for number, (place, document) in enumerate(zip(places, documents, strict=True))
    )


def _answers(
    run: GridRun, setting: Setting, places: Sequence[int], reasoner: Reasoner
) -> list[str]:
    """The answers to the documents at `places`: the likeliest candidates, or generated texts."""
    task: DevTask = run.task
    documents = [task.documents[place] for place in places]
    if task.is_free:
        contexts = [run.pairs[document.requests[0]][0] for document in documents]
        written = reasoner.answer(contexts, max_new_tokens=MAX_NEW_TOKENS)
        return [answer.text.strip() for answer in written]
    scores = run.scores[setting]

    def likelihood(request: int) -> float:
        score = scores[request]
        assert score is not None
        return score.log_likelihood

    likeliest = [max(document.requests, key=likelihood) for document in documents]
    return [task.requests[request].args[1].strip() for request in likeliest]


@torch.no_grad()
def _thoughts(
    plain: Reasoner, refined: Reasoner, reasoner: Reasoner, contexts: Sequence[Tokens]
) -> list[tuple[Thought, ...]]:
    """The thoughts on each context.

    Args:
        plain: the model without refinement.
        refined: the model with refinement; it has references only if it searches.
        reasoner: the model with both references.
    """
    plain_BTD = plain.think(contexts).thoughts_BTD.float()
    refined_BTD = refined.think(contexts).thoughts_BTD.float()
    raw_BTD = raw_thoughts(reasoner, contexts, refined_BTD)
    mixed_BTD = raw_BTD.clone()
    mixed_BTD[:, 1:] = mix_residual(
        raw_BTD[:, 1:], refined_BTD[:, :-1], memory_rate=refined.config.memory_rate
    )
    references = reasoner.references
    assert references is not None
    targets = [
        states_at(network, reasoner, contexts, refined_BTD, mixed_BTD)
        for network in (references.strong, references.weak)
    ]
    states = (raw_BTD, refined_BTD)
    distances = [
        [(state_BTD - target_BTD).norm(dim=-1).tolist() for state_BTD in states]
        for target_BTD in targets
    ]
    cosine_BT = torch.cosine_similarity(plain_BTD, refined_BTD, dim=-1)
    moved_BT = (refined_BTD - raw_BTD).norm(dim=-1)
    readings = [_read(reasoner, states_BTD) for states_BTD in (plain_BTD, *states)]
    return [
        tuple(
            Thought(
                plain=readings[0][row][step],
                raw=readings[1][row][step],
                refined=readings[2][row][step],
                cosine_to_plain=float(cosine_BT[row, step]),
                moved=float(moved_BT[row, step]),
                to_strong=(distances[0][0][row][step], distances[0][1][row][step]),
                to_weak=(distances[1][0][row][step], distances[1][1][row][step]),
            )
            for step in range(refined_BTD.shape[1])
        )
        for row in range(len(contexts))
    ]


def raw_thoughts(reasoner: Reasoner, contexts: Sequence[Tokens], thoughts_BTD: Tensor) -> Tensor:
    """The backbone's outputs (B, T, D): the t-th follows the first t - 1 of `thoughts_BTD`."""
    backbone = reasoner.backbone
    stream, last_BD = _reading(backbone, reasoner, contexts)
    fed_BTD = thoughts_BTD[:, :-1].to(backbone.device, backbone.dtype)
    later_BTD = stream.feed(fed_BTD) if fed_BTD.shape[1] else fed_BTD
    return torch.cat([last_BD.unsqueeze(1), later_BTD], dim=1).float()


def states_at(
    network: Network,
    reasoner: Reasoner,
    contexts: Sequence[Tokens],
    thoughts_BTD: Tensor,
    probes_BTD: Tensor,
) -> Tensor:
    """States (B, T, D) of `network`: the t-th is its output for the t-th probe.

    The probe follows the first t - 1 of `thoughts_BTD`.
    """
    stream, _ = _reading(network, reasoner, contexts)
    states = []
    for step in range(probes_BTD.shape[1]):
        probe_B1D, thought_B1D = (
            inputs_BTD[:, step : step + 1].to(network.device, network.dtype)
            for inputs_BTD in (probes_BTD, thoughts_BTD)
        )
        states.append(stream.fork().feed(probe_B1D)[:, 0])
        stream.feed(thought_B1D)
    return torch.stack(states, 1).float().to(thoughts_BTD.device)


def _reading(
    network: Network, reasoner: Reasoner, contexts: Sequence[Tokens]
) -> tuple[Stream, Tensor]:
    """A stream of `network` after contexts and start markers, and its last states (B, D)."""
    context = Context.pad(contexts, device=network.device)
    if reasoner.markers is not None:
        context = context.then(reasoner.markers.opening)
    stream = Stream(network)
    return stream, stream.feed(network.embed(context.ids_BC), context.mask_BC)[:, -1]


def _read(reasoner: Reasoner, thoughts_BTD: Tensor) -> list[list[Reading]]:
    """The tokens that thoughts decode to, for each document and step."""
    backbone, tokenizer = reasoner.backbone, reasoner.tokenizer
    backbone.activate()
    states_BTD = thoughts_BTD.to(backbone.device, backbone.dtype)
    readings = []
    for states_TD in states_BTD:
        p_TV = backbone.project(states_TD).float().softmax(-1)
        values, ids = (top.tolist() for top in p_TV.topk(NUM_TOKENS))
        readings.append(
            [
                tuple((tokenizer.decode([token]), p) for token, p in zip(*step, strict=True))
                for step in zip(ids, values, strict=True)
            ]
        )
    return readings
