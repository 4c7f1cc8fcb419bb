"""Training with six thoughts on ProsQA, a model of GPT-2's size: against the published trainer.

    python results/performance/train.py --batch_size 4 -o results/performance/train.json

The published step is Coconut's (Hao et al., arXiv:2412.06769): thoughts go through a cache, one
pass each over the new columns only, but every pass takes the embeddings apart and stacks them anew,
fetches each position of a thought from the device by itself, and returns hidden states of all
layers and logits at every column. Written from that description, not copied. Both sides make whole
steps, forward, backward and AdamW, on the same rows with weights of the same size. A third, pause
tokens in place of thoughts, reads everything in one pass: what is left to gain if thoughts cost
nothing.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import bench
import pages
import torch
import workload
from accelerate import Accelerator
from bench import Side
from torch import Tensor
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from workload import LATENT_STEPS

from lm_eval_latentref.benchmarks import prosqa
from lm_eval_latentref.latent.kinds import CONTINUOUS, Kind, Pause
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.protocol import answer_text, prompt
from lm_eval_latentref.latent.thoughts import Markers
from lm_eval_latentref.latent.transformers_seams import own_cache_argument
from lm_eval_latentref.training.curriculum import Curriculum, Problem, Row
from lm_eval_latentref.training.learner import Learner
from lm_eval_latentref.training.loss import loss_sum, num_labelled
from lm_eval_latentref.training.models import Trainee
from lm_eval_latentref.training.recipe import Recipe

PUBLISHED, OURS, ONE_PASS = "published trainer", "latentref train", "pause tokens, one pass"
TARGET = 1.8
TOLERANCE = 1e-4
"""Largest relative difference of the losses in float32, without dropout."""
LEARNING_RATE = 1e-4
VOCABULARY = 50257
MARKERS = Markers((VOCABULARY,), (VOCABULARY + 1,))
LATENT_ID = VOCABULARY + 2
NOT_LABELLED = -100


def main(argv: Sequence[str] | None = None) -> int:
    options = [(f"--{name}", {"type": int}) for name in ("layers", "width")]
    args = bench.parse(__doc__, argv, *options, bench.PROFILE, documents=8, batch_size=8)
    small = (1, 64) if args.tiny else (12, 768)
    model = new_model(args.layers or small[0], args.width or small[1])
    rows = prosqa_rows(args.rounds * args.documents + bench.NUM_WARM_UP)
    learner, pausing = (new_learner(model, args, kind) for kind in (CONTINUOUS, Pause(LATENT_ID)))
    difference = relative_difference(model, rows[:2])
    steps: dict[str, Callable[..., Any]] = {
        PUBLISHED: partial(published_step, model, new_adamw(model)),
        OURS: partial(learner.step, learning_rate=LEARNING_RATE),
        ONE_PASS: partial(pausing.step, learning_rate=LEARNING_RATE),
    }
    sides = [Side(name, partial(_in_batches, step, args)) for name, step in steps.items()]
    rounds = bench.alternate(sides, rows, args)
    update = update_share(learner, rows[: args.batch_size])
    report = pages.Report(
        name="train",
        header=("", "examples/s: median (range)", "IQR"),
        rows=rounds.rows(),
        record={**rounds.record(), "update_share": update, "loss_difference": difference},
    )
    ratio = rounds.ratio(PUBLISHED, OURS)
    report.judge(
        f"time of {PUBLISHED} / {OURS}",
        ratio,
        at_least=TARGET,
        tiny=args.tiny,
        limit=(statistics.median(rounds.ratio(PUBLISHED, ONE_PASS)), ONE_PASS),
    )
    report.remarks.append(f"AdamW takes {update:.0%} of our step, which no way of thinking saves.")
    report.check(difference <= TOLERANCE, f"the losses differ by {difference:.2g}")
    if args.profile:
        report.profile = bench.profile_of(partial(learner.backward, rows[: args.batch_size]))
    return report.finish(args)


def prosqa_rows(num: int) -> list[Row]:
    """Rows of the last stage on generated ProsQA problems, about as long as in GPT-2's tokens.

    Pieces of words of at most three letters replace its tokens, which would need a download.
    """
    curriculum = Curriculum(max_latent_stage=LATENT_STEPS)
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


def new_model(layers: int, width: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    heads = max(1, width // 64)
    config = GPT2Config(vocab_size=VOCABULARY + 3, n_layer=layers, n_embd=width, n_head=heads)
    return GPT2LMHeadModel(config).train().to(workload.device())


def new_learner(model: Any, args: Any, kind: Kind) -> Learner:
    """Gradients are not clipped, as published."""
    batch_size = args.batch_size
    recipe = Recipe(
        output="out", train=("bench",), pretrained="gpt2", batch_size=batch_size, max_grad_norm=0.0
    )
    trainee = Trainee(model=model, tokenizer=None)
    accelerator = Accelerator()
    return Learner(trainee, recipe=recipe, accelerator=accelerator, markers=MARKERS, kind=kind)


def new_adamw(model: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)


def _in_batches(step: Callable[..., Any], args: Any, rows: Sequence[Row]) -> list[Any]:
    return [step(rows[at : at + args.batch_size]) for at in range(0, len(rows), args.batch_size)]


def update_share(learner: Learner, batch: Sequence[Row]) -> float:
    """What part of a step the optimiser takes."""
    backward, _ = bench.timed(learner.backward, batch)
    update, _ = bench.timed(learner.optimizer.step)
    learner.optimizer.zero_grad()
    return update / (backward + update)


@torch.no_grad()
def relative_difference(model: Any, rows: Sequence[Row]) -> float:
    """Of both sides' losses on `rows`."""
    model.eval()
    theirs = published_loss(model, rows, MARKERS).item()
    ours = loss_sum(rows, network=Network(model), markers=MARKERS).item() / num_labelled(rows)
    model.train()
    return abs(ours - theirs) / theirs


def published_step(model: Any, optimizer: torch.optim.Optimizer, batch: Sequence[Row]) -> float:
    loss = published_loss(model, batch, MARKERS)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def published_loss(model: PreTrainedModel, rows: Sequence[Row], markers: Markers) -> Tensor:
    """Mean cross-entropy of the labelled tokens of `rows`, which have equal numbers of thoughts."""
    columns = {
        name: torch.tensor(one, device=model.device)
        for name, one in _collated(rows, markers).items()
    }
    places = [[at.item() for at in (row == LATENT_ID).nonzero()[:, 0]] for row in columns["ids"]]
    embeds_BLD = model.get_input_embeddings()(columns["ids"])
    cache = DynamicCache(config=model.config)
    logits: list[Tensor] = []
    done = 0
    for number in range(rows[0].num_thoughts + 1):
        last = number == rows[0].num_thoughts
        upto = embeds_BLD.shape[1] if last else min(row[number] for row in places)
        output = model(
            inputs_embeds=embeds_BLD[:, done:upto],
            attention_mask=columns["mask"][:, :upto],
            position_ids=columns["positions"][:, done:upto],
            output_hidden_states=True,
            **{own_cache_argument(): cache},
        )
        logits.append(output.logits)
        if not last:
            vectors = [list(row_LD) for row_LD in embeds_BLD]
            for row, row_places in enumerate(places):
                vectors[row][row_places[number]] = output.hidden_states[-1][row, -1]
            embeds_BLD = torch.stack([torch.stack(row) for row in vectors])
        done = upto
    logits_BLV = torch.cat(logits, dim=1)[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits_BLV.flatten(0, 1), columns["labels"][:, 1:].flatten(), ignore_index=NOT_LABELLED
    )


def _collated(rows: Sequence[Row], markers: Markers) -> dict[str, list[list[int]]]:
    """`rows` padded so that their first thoughts are in one column."""
    columns: dict[str, list[list[int]]] = {"ids": [], "mask": [], "positions": [], "labels": []}
    num_context = max(len(row.context) for row in rows)
    num_text = max(len(row.target) for row in rows)
    for row in rows:
        before, after = num_context - len(row.context), num_text - len(row.target)
        thoughts = [LATENT_ID] * row.num_thoughts
        ids = [*row.context, *markers.opening, *thoughts, *markers.closing, *row.target]
        unlabelled = [NOT_LABELLED] * (len(ids) - len(row.target))
        columns["ids"].append([0] * before + ids + [0] * after)
        columns["mask"].append([0] * before + [1] * len(ids) + [0] * after)
        columns["positions"].append([0] * before + list(range(len(ids))) + [0] * after)
        labels = [NOT_LABELLED] * before + unlabelled + list(row.target)
        columns["labels"].append(labels + [NOT_LABELLED] * after)
    return columns


if __name__ == "__main__":
    bench.run(main)
