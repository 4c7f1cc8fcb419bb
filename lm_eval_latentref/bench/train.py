"""Training with six thoughts on ProsQA, a model of GPT-2's size: against the published trainer.

    latentref bench train --rounds 3 --documents 8 --batch_size 8

The published step is Coconut's (Hao et al., arXiv:2412.06769), in `bench.published_training`. Both
sides make whole steps, forward, backward and AdamW, on the same rows with weights of the same size.
A third, pause tokens in place of thoughts, reads everything in one pass: what is left to gain if
thoughts cost nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel

from lm_eval_latentref.bench.published_training import published_loss
from lm_eval_latentref.bench.report import (
    NUM_WARM_UP,
    Report,
    Round,
    Side,
    Spread,
    alternate,
    compare_speed,
    environment,
    timed_call,
    verdict,
)
from lm_eval_latentref.benchmarks import prosqa
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.protocol import answer_text, prompt
from lm_eval_latentref.latent.thoughts import Markers
from lm_eval_latentref.training.curriculum import Curriculum, Problem, Row
from lm_eval_latentref.training.learner import Learner
from lm_eval_latentref.training.loss import loss_sum, num_labelled
from lm_eval_latentref.training.models import Trainee
from lm_eval_latentref.training.recipe import Recipe

PUBLISHED, OURS, ONE_PASS = "published trainer", "latentref train", "pause tokens, one pass"
TARGET = 1.8
TOLERANCE = 1e-4
"""Largest relative difference of the losses in float32, without dropout."""
NUM_THOUGHTS = 6
LEARNING_RATE = 1e-4
VOCABULARY = 50257
MARKERS = Markers(start_id=VOCABULARY, end_id=VOCABULARY + 1, pause_id=VOCABULARY + 2)


def run(
    *, rounds: int = 3, documents: int = 8, batch_size: int = 8, layers: int = 12, width: int = 768
) -> Report:
    """Examples a second of both, after a check that both compute the same loss.

    Args:
        documents: examples of a round.
        layers: of the model; 12 layers of width 768 are GPT-2's.
    """
    rows = prosqa_rows(rounds * documents + NUM_WARM_UP)
    learner, model = _learner(layers, width, batch_size, "continuous")
    pausing, _ = _learner(layers, width, batch_size, "pause", model)
    difference = _difference(model, rows[:2])
    steps = {
        PUBLISHED: partial(_published_step, model, _adamw(model)),
        OURS: partial(learner.step, learning_rate=LEARNING_RATE),
        ONE_PASS: partial(pausing.step, learning_rate=LEARNING_RATE),
    }
    sides = [Side(name, partial(_in_batches, step, batch_size)) for name, step in steps.items()]
    found = alternate(sides, rows, rounds=rounds, per_round=documents)
    update = _update_share(learner, rows[:batch_size])
    options = {"rounds": rounds, "documents": documents, "batch_size": batch_size}
    options |= {"layers": layers, "width": width, "thoughts": NUM_THOUGHTS}
    return _report(found, options, difference, update, model.device)


def _report(
    found: Sequence[Round],
    options: dict[str, int],
    difference: float,
    update: float,
    device: torch.device,
) -> Report:
    documents = options["documents"]
    compared = compare_speed(found, slow=PUBLISHED, fast=OURS)
    one_pass = Spread.of([documents / one.seconds[ONE_PASS] for one in found])
    remarks = [
        verdict("time of the published trainer / ours", compared.ratio.median, at_least=TARGET),
        f"AdamW takes {update:.0%} of our step, which no way of thinking saves; with one pass for "
        f"all thoughts it would be {one_pass.median / compared.speeds[OURS].median:.2f} times as "
        "fast, which bounds what is left to gain.",
    ]
    failures = []
    if difference > TOLERANCE:
        failures.append(f"the losses differ by {difference:.2g}, more than {TOLERANCE:g}")
    return Report(
        bench="train",
        header=("", "examples/s: median (range)"),
        rows=[*compared.rows(), (ONE_PASS, str(one_pass))],
        remarks=remarks,
        record={
            **compared.record(),
            "one_pass_per_second": one_pass.rounded(),
            "update_share": round(update, 4),
            "loss_difference": difference,
            "options": options,
            **environment(device),
        },
        failures=failures,
    )


def prosqa_rows(num: int) -> list[Row]:
    """Rows of the last stage on generated ProsQA problems, about as long as in GPT-2's tokens.

    Pieces of words of at most three letters stand in for its tokens, which would need a download.
    """
    curriculum = Curriculum(max_latent_stage=NUM_THOUGHTS)
    rows = []
    for made in prosqa.generate(num):
        steps = tuple(_pieces(step + "\n") for step in made["steps"])
        answer = (*_pieces(answer_text(made["answer"])), 0)
        problem = Problem(_pieces(prompt(made["question"])), steps, answer)
        rows.append(curriculum.row(problem, curriculum.final_stage))
    return rows


def _pieces(text: str) -> tuple[int, ...]:
    return tuple(
        1 + int.from_bytes(piece.encode(), "big") % (VOCABULARY - 1)
        for piece in re.findall(r" ?\w{1,3}|\n|[^\w\s]", text)
    )


def _learner(
    layers: int, width: int, batch_size: int, kind: str, model: Any = None
) -> tuple[Learner, Any]:
    """A learner of `model`, or of a new one with random weights; no clipping, as published."""
    if model is None:
        torch.manual_seed(0)
        heads = max(1, width // 64)
        config = GPT2Config(vocab_size=VOCABULARY + 3, n_layer=layers, n_embd=width, n_head=heads)
        model = GPT2LMHeadModel(config).train()
    recipe = Recipe(
        output="", train=("bench",), pretrained="gpt2", batch_size=batch_size, max_grad_norm=0.0
    )
    learner = Learner(
        Trainee(model=model, tokenizer=None),
        recipe=recipe,
        accelerator=Accelerator(),
        markers=MARKERS,
        latent_kind=kind,
    )
    return learner, model


def _adamw(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)


def _in_batches(step: Any, batch_size: int, rows: Sequence[Row]) -> list[Any]:
    batches = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
    return [step(batch) for batch in batches]


def _published_step(model: Any, optimizer: torch.optim.Optimizer, batch: Sequence[Row]) -> float:
    loss = _published_loss(model, batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def _published_loss(model: Any, rows: Sequence[Row]) -> torch.Tensor:
    ids = {"start_id": MARKERS.start_id, "end_id": MARKERS.end_id}
    return published_loss(model, rows, latent_id=VOCABULARY + 2, **ids)


@torch.no_grad()
def _difference(model: Any, rows: Sequence[Row]) -> float:
    """The relative difference of both sides' losses on `rows`."""
    model.eval()
    theirs = _published_loss(model, rows).item()
    ours = loss_sum(rows, network=Network(model), markers=MARKERS).item() / num_labelled(rows)
    model.train()
    return abs(ours - theirs) / theirs


def _update_share(learner: Learner, batch: Sequence[Row]) -> float:
    """What part of a step the optimiser takes."""
    backward, _ = timed_call(learner.backward, batch)
    update, _ = timed_call(learner.optimizer.step)
    learner.optimizer.zero_grad()
    return update / (backward + update)
