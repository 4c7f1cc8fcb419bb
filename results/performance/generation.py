"""Six thoughts, then 16 tokens, on ProsQA questions: against two loops, and against the limit.

    python results/performance/generation.py --batch_size 12 -o results/performance/generation.json
    python results/performance/generation.py --shape gpt2-124m --dtype float32 --batch_size 16 \\
        --context_tokens 62 --documents 128

The published loop is Coconut's (Hao et al., arXiv:2412.06769): one question at a time, thoughts
through a cache, text without. The cached loop is the fastest simple one: batches padded on the
left, a cache in every phase, sdpa, logits of the last position only, argmax. The limit is the bare
matrix products by torch.mm: each weight once a step, no padding, no attention; the output layer for
each row that writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import bench
import torch
import workload
from bench import NUM_CHECKED, Side
from torch import Tensor
from torch.nn.functional import linear
from transformers import DynamicCache, PreTrainedModel
from workload import LATENT_STEPS, NEW_TOKENS

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.torch_seams import by_onednn
from lm_eval_latentref.latent.transformers_seams import own_cache_argument

PUBLISHED, CACHED = "published loop", "batched loop with a cache"
OURS, LIMIT = "--model latentref", "bare matrix products"
TARGETS = {"cpu": 12.0, "cuda": 40.0}
"""Against the published loop."""
FLOOR_SHAPE = workload.GPT2
AGAINST_CACHED, AGAINST_LIMIT = 1.6, 1.3
"""On one thread, with contexts of equal mean length and weights of FLOOR_SHAPE."""
NUM_PRODUCTS = 10
LEAST_EQUAL = 0.95
"""Of the texts of the timed rounds in float32, where near-ties fall either way."""

FEWER = (
    "--published_documents",
    {"type": int, "help": "how many of a round's documents the published loop answers"},
)


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(
        __doc__, argv, FEWER, bench.CONTEXT_TOKENS, bench.PROFILE, documents=12, batch_size=12
    )
    prompts = workload.prosqa(max(300, (args.rounds + 1) * args.documents), args.tiny)
    lm = plain(args)
    prompts = workload.shortened(lm, prompts, args.context_tokens)
    checked, timed = prompts[-NUM_CHECKED:], prompts[:-NUM_CHECKED]
    equal = equal_texts(sides_of(plain(args, "float32"), args)[:3], checked)
    sides = sides_of(lm, args)
    rounds, counts = bench.counted(lm, lambda: bench.alternate(sides, timed, args))
    report = bench.Report(
        name="generation",
        header=("", "documents/s: median (range)", "IQR"),
        rows=rounds.rows(),
        record={
            **rounds.record(),
            "equal_texts_float32": equal,
            "counts": counts,
            "model": workload.identity(lm, args),
        },
    )
    judge(report, rounds, args)
    report.remarks.append(kernels(lm, bench.clock_of(args)))
    report.remarks.append(padding(lm, timed[: args.rounds * args.documents], counts))
    compare_texts(report, rounds, args)
    for name, num in equal.items():
        report.remarks.append(f"Equal texts in float32, {name}: {num} of {NUM_CHECKED}.")
        report.check(num == NUM_CHECKED, f"in float32 only {num} texts are those of the {name}")
    if args.profile:
        report.profile = bench.profile_of(partial(sides[2].answer, timed[: args.batch_size]))
    return report.finish(args)


def judge(report: bench.Report, rounds: bench.Rounds, args: Any) -> None:
    """Adds the ratios, with targets for the work that these are set for."""
    floor = args.shape == FLOOR_SHAPE and args.context_tokens and torch.get_num_threads() == 1
    published = None if args.context_tokens else TARGETS[workload.device().type]
    for slow, fast, targets in (
        (PUBLISHED, OURS, {"at_least": published}),
        (CACHED, OURS, {"at_least": AGAINST_CACHED if floor else None}),
        (OURS, LIMIT, {"at_most": AGAINST_LIMIT if floor else None}),
        (CACHED, LIMIT, {}),
    ):
        report.judge(_ratio(slow, fast), rounds.ratio(slow, fast), tiny=args.tiny, **targets)


def kernels(lm: Any, clock: Callable[[], float]) -> str:
    """How long the output layer takes for one batch of rows, by torch.mm and by oneDNN."""
    weight_VD = lm.reasoner.backbone.causal_lm.get_output_embeddings().weight
    rows_BD = weight_VD.new_ones(lm.batch_size, weight_VD.shape[1])
    calls = {
        "torch.mm": partial(torch.mm, rows_BD, weight_VD.T),
        "oneDNN": partial(linear, rows_BD, weight_VD),
    }
    with torch.no_grad(), by_onednn():
        times = {
            name: min(bench.timed(call, clock=clock)[0] for _ in range(NUM_PRODUCTS))
            for name, call in calls.items()
        }
    shown = " and ".join(f"{1000 * seconds:.1f} ms by {name}" for name, seconds in times.items())
    return f"The output layer takes {shown} for {lm.batch_size} rows."


def padding(lm: Any, prompts: Sequence[str], counts: dict[str, Any]) -> str:
    """Which share of the columns of contexts is padding in the batches of both sides."""
    lengths = [len(lm.tok_encode(prompt)) for prompt in prompts]
    batches = [lengths[at : at + lm.batch_size] for at in range(0, len(lengths), lm.batch_size)]
    given = 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)
    num_padding, num_read = counts["padding_columns"], counts["tokens_encoded"]
    sorted_ = num_padding / (num_padding + num_read - counts["tokens_shared"])
    return (
        f"Contexts have {sum(lengths) / len(lengths):.1f} tokens on average; padding is "
        f"{given:.1%} of their columns as they come and {sorted_:.1%} as {OURS} sorts them; "
        f"{counts['tokens_generated']} tokens were written."
    )


def compare_texts(report: bench.Report, rounds: bench.Rounds, args: Any) -> None:
    """Adds how many texts of the timed rounds are those of the cached loop."""
    cached, ours = ([*chain.from_iterable(rounds.answers[name])] for name in (CACHED, OURS))
    num_equal = sum(a == b for a, b in zip(cached, ours, strict=True))
    report.record["equal_texts"] = [num_equal, len(ours)]
    report.remarks.append(
        f"Equal texts in {args.dtype}, {CACHED}, while timed: {num_equal} of {len(ours)}."
    )
    enough = args.dtype != "float32" or num_equal >= LEAST_EQUAL * len(ours)
    report.check(enough, f"only {num_equal} of {len(ours)} texts are those of the {CACHED}")


def _ratio(slow: str, fast: str) -> str:
    return f"time of {slow} / {fast}"


def plain(args: Any, dtype: str | None = None) -> Any:
    """Coconut without refinement."""
    return workload.thinking(
        workload.load_lm(args, dtype=dtype), RefinementConfig(latent_steps=LATENT_STEPS)
    )


def sides_of(lm: Any, args: Any) -> list[Side]:
    """All four on the weights of `lm`."""
    return [
        Side(PUBLISHED, partial(published_texts, lm), args.published_documents),
        Side(CACHED, partial(cached_texts, lm)),
        Side(OURS, partial(workload.write, lm)),
        Side(LIMIT, partial(bare_products, lm, num_models=1)),
    ]


def equal_texts(sides: Sequence[Side], prompts: Sequence[str]) -> dict[str, int]:
    """How many texts of the last side each other side writes too."""
    *others, ours = (side.answer(prompts) for side in sides)
    return {
        side.name: sum(a == b for a, b in zip(texts, ours, strict=True))
        for side, texts in zip(sides, others, strict=False)
    }


def published_texts(lm: Any, prompts: Sequence[str]) -> list[str]:
    """What the published loop writes after each prompt."""
    model, eos_id = lm.reasoner.backbone.causal_lm, lm.eot_token_id
    written = [published_ids(model, lm.tok_encode(prompt), eos_id) for prompt in prompts]
    return lm.tokenizer.batch_decode(written, skip_special_tokens=True)


@torch.no_grad()
def published_ids(
    model: PreTrainedModel, context: Sequence[int], eos_id: int | None, *, num_new: int = NEW_TOKENS
) -> list[int]:
    """The tokens after `context` and its thoughts; as published, the first may be EOS."""
    embed = model.get_input_embeddings()
    columns_1LD = embed(torch.tensor([list(context)], device=model.device))
    cache, unread_1LD = DynamicCache(config=model.config), columns_1LD
    for _ in range(LATENT_STEPS):
        read = {own_cache_argument(): cache}
        output = model(inputs_embeds=unread_1LD, output_hidden_states=True, **read)
        unread_1LD = output.hidden_states[-1][:, -1:]
        columns_1LD = torch.cat([columns_1LD, unread_1LD], dim=1)
    written: list[int] = []
    while len(written) < num_new:
        token = int(model(inputs_embeds=columns_1LD).logits[0, -1].argmax())
        if token == eos_id and written:
            break
        written.append(token)
        new_11D = embed(torch.tensor([[token]], device=model.device))
        columns_1LD = torch.cat([columns_1LD, new_11D], dim=1)
    return written


def cached_texts(lm: Any, prompts: Sequence[str]) -> list[str]:
    """What the cached loop writes, in batches of the size that `lm` has."""
    model, eos_id, texts = lm.reasoner.backbone.causal_lm, lm.eot_token_id, []
    for start in range(0, len(prompts), lm.batch_size):
        contexts = [lm.tok_encode(prompt) for prompt in prompts[start : start + lm.batch_size]]
        texts += lm.tokenizer.batch_decode(
            cached_ids(model, contexts, eos_id), skip_special_tokens=True
        )
    return texts


@torch.no_grad()
def cached_ids(
    model: PreTrainedModel, contexts: Sequence[Sequence[int]], eos_id: int | None
) -> list[list[int]]:
    """The tokens after each context and its thoughts, up to EOS."""
    width = max(map(len, contexts))
    pad = [width - len(context) for context in contexts]
    ids_BL = torch.tensor(
        [[0] * num + list(one) for num, one in zip(pad, contexts, strict=True)], device=model.device
    )
    mask_BL = torch.tensor([[0] * num + [1] * (width - num) for num in pad], device=model.device)
    position_B1 = mask_BL.sum(1, keepdim=True) - 1
    cache = DynamicCache(config=model.config)
    positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
    how = {own_cache_argument(): cache, "use_cache": True}
    state_B1D = model.base_model(
        input_ids=ids_BL, attention_mask=mask_BL, position_ids=positions_BL, **how
    ).last_hidden_state[:, -1:]
    written: list[Tensor] = []
    done_B1 = torch.zeros_like(position_B1, dtype=torch.bool)
    for step in range(LATENT_STEPS + NEW_TOKENS):
        if step >= LATENT_STEPS:
            token_B1 = model.get_output_embeddings()(state_B1D)[:, 0].argmax(-1, keepdim=True)
            written.append(token_B1)
            done_B1 = done_B1 | (token_B1 == (-1 if eos_id is None else eos_id))
            if len(written) == NEW_TOKENS or done_B1.all():
                break
        fed = {"inputs_embeds": state_B1D} if step < LATENT_STEPS else {"input_ids": token_B1}
        mask_BL = torch.cat([mask_BL, torch.ones_like(mask_BL[:, :1])], dim=1)
        position_B1 = position_B1 + 1
        state_B1D = model.base_model(
            **fed, attention_mask=mask_BL, position_ids=position_B1, **how
        ).last_hidden_state
    rows = torch.cat(written, dim=1).tolist()
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]


@torch.no_grad()
def bare_products(lm: Any, prompts: Sequence[str], *, num_models: int) -> None:
    """The products of all batches; `num_models` read and think, one writes."""
    model = lm.reasoner.backbone.causal_lm
    embedding = model.get_input_embeddings().weight
    weights = [
        module.weight.T if isinstance(module, torch.nn.Linear) else module.weight
        for module in model.base_model.modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
        and not isinstance(module, torch.nn.Embedding)
    ]
    head = model.get_output_embeddings().weight.T
    for start in range(0, len(prompts), lm.batch_size):
        batch = prompts[start : start + lm.batch_size]
        num_tokens = sum(len(lm.tok_encode(prompt)) for prompt in batch)
        of_width = {
            width: embedding.new_ones(num_tokens, width)
            for width in {weight.shape[0] for weight in weights}
        }
        reading = [num_tokens, *[len(batch)] * LATENT_STEPS] * num_models
        for num_rows in reading + [len(batch)] * (NEW_TOKENS - 1):
            for weight_IO in weights:
                torch.mm(of_width[weight_IO.shape[0]][:num_rows], weight_IO)
        for _ in range(NEW_TOKENS):
            torch.mm(of_width[head.shape[0]][: len(batch)], head)


if __name__ == "__main__":
    bench.run(main)
