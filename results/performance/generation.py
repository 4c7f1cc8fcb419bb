"""Six thoughts, then 16 tokens, on ProsQA questions: against two loops, and against the limit.

    python results/performance/generation.py --batch_size 12 -o results/performance/generation.json

The published loop is Coconut's (Hao et al., arXiv:2412.06769): one question at a time, thoughts
through a cache, text without. The cached loop is the fastest simple one: batches padded on the
left, a cache in every phase, sdpa, logits of the last position only, argmax. The limit is the bare
matrix products by torch.mm: each weight once a step, no padding, no attention; the output layer for
each row that writes. floor.py has the targets against these two.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import bench
import pages
import torch
import workload
from bench import NUM_CHECKED, Side
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from workload import LATENT_STEPS, MEMORY_RATE, NEW_TOKENS

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.transformers_seams import own_cache_argument

PUBLISHED, CACHED = "published loop", "batched loop with a cache"
OURS, LIMIT = "--model latentref", "bare matrix products"
TARGETS = {"cpu": 12.0, "cuda": 40.0}
"""Against the published loop."""

FEWER = (
    "--published_documents",
    {"type": int, "help": "how many of a round's documents the published loop answers"},
)


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(__doc__, argv, FEWER, bench.PROFILE, documents=12, batch_size=12)
    prompts = workload.prosqa(max(300, (args.rounds + 1) * args.documents), args.tiny)
    lm = plain(args)
    checked, timed = prompts[-NUM_CHECKED:], prompts[:-NUM_CHECKED]
    equal = equal_texts(sides_of(plain(args, "float32"), args)[:3], checked)
    sides = sides_of(lm, args)
    rounds = bench.alternate(sides, timed, args)
    report = pages.Report(
        name="generation",
        header=("", "documents/s: median (range)", "IQR"),
        rows=rounds.rows(),
        record={
            **rounds.record(),
            "equal_texts_float32": equal,
            "model": workload.identity(lm, args),
        },
    )
    judge(report, rounds, args)
    for name, num in equal.items():
        report.remarks.append(f"Equal texts in float32, {name}: {num} of {NUM_CHECKED}.")
        report.check(num == NUM_CHECKED, f"in float32 only {num} texts are those of the {name}")
    if args.profile:
        report.profile = bench.profile_of(partial(sides[2].answer, timed[: args.batch_size]))
    return report.finish(args)


def judge(report: pages.Report, rounds: bench.Rounds, args: Any) -> None:
    """Adds the ratios."""
    for slow, fast, target in (
        (PUBLISHED, OURS, TARGETS[workload.device().type]),
        (CACHED, OURS, None),
        (OURS, LIMIT, None),
    ):
        ratio = rounds.ratio(slow, fast)
        most = statistics.median(rounds.ratio(slow, LIMIT))
        limit = (most, LIMIT) if fast == OURS else None
        report.judge(
            f"time of {slow} / {fast}", ratio, at_least=target, tiny=args.tiny, limit=limit
        )


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


def cached_texts(
    lm: Any, prompts: Sequence[str], references: Sequence[PreTrainedModel] = ()
) -> list[str]:
    """What the cached loop writes, in batches of the size that `lm` has."""
    model, eos_id, texts = lm.reasoner.backbone.causal_lm, lm.eot_token_id, []
    for start in range(0, len(prompts), lm.batch_size):
        contexts = [lm.tok_encode(prompt) for prompt in prompts[start : start + lm.batch_size]]
        texts += lm.tokenizer.batch_decode(
            cached_ids(model, contexts, eos_id, references), skip_special_tokens=True
        )
    return texts


class Reader:
    """A model that reads a batch of contexts, padded on the left, and keeps a DynamicCache."""

    def __init__(self, model: PreTrainedModel, contexts: Sequence[Sequence[int]]) -> None:
        width = max(map(len, contexts))
        pad = [width - len(context) for context in contexts]
        rows = [[0] * num + list(context) for num, context in zip(pad, contexts, strict=True)]
        mask = [[0] * num + [1] * (width - num) for num in pad]
        self.model, self.cache = model, DynamicCache(config=model.config)
        self.ids_BL = torch.tensor(rows, device=model.device)
        self.mask_BK = torch.tensor(mask, device=model.device)

    def read(self) -> Tensor:
        """The state of the contexts' last column (B, 1, D)."""
        return self._forward(input_ids=self.ids_BL)

    def feed(self, **columns: Tensor) -> Tensor:
        """The state of the last of the new columns (B, 1, D), given as `generate` takes them."""
        num_new = next(iter(columns.values())).shape[1]
        self.mask_BK = torch.nn.functional.pad(self.mask_BK, (0, num_new), value=1)
        return self._forward(**columns)

    def forget(self) -> None:
        """Forget the newest column."""
        self.cache.crop(-1)
        self.mask_BK = self.mask_BK[:, :-1]

    def _forward(self, **columns: Tensor) -> Tensor:
        num_new = next(iter(columns.values())).shape[1]
        position_BK = (self.mask_BK.cumsum(1) - 1).clamp(min=0)
        state_BLD: Tensor = self.model.base_model(
            **columns,
            **{own_cache_argument(): self.cache},
            attention_mask=self.mask_BK,
            position_ids=position_BK[:, -num_new:],
            use_cache=True,
        ).last_hidden_state
        return state_BLD[:, -1:]


@torch.no_grad()
def cached_ids(
    model: PreTrainedModel,
    contexts: Sequence[Sequence[int]],
    eos_id: int | None,
    references: Sequence[PreTrainedModel] = (),
) -> list[list[int]]:
    """The tokens after each context and its thoughts, up to EOS.

    Args:
        references: strong and weak, for thoughts that `workload.refined` refines; none: Coconut's.
    """
    reader = Reader(model, contexts)
    state_B1D = reader.read()
    refine = partial(refined, [Reader(each, contexts) for each in references])
    thoughts: list[Tensor] = []
    for _ in range(LATENT_STEPS):
        thoughts.append(refine(state_B1D, thoughts) if references else state_B1D)
        state_B1D = reader.feed(inputs_embeds=thoughts[-1])
    written: list[Tensor] = []
    done_B1 = torch.zeros(len(contexts), 1, dtype=torch.bool, device=model.device)
    while True:
        token_B1 = model.get_output_embeddings()(state_B1D)[:, 0].argmax(-1, keepdim=True)
        written.append(token_B1)
        done_B1 = done_B1 | (token_B1 == (-1 if eos_id is None else eos_id))
        if len(written) == NEW_TOKENS or done_B1.all():
            break
        state_B1D = reader.feed(input_ids=token_B1)
    rows = torch.cat(written, dim=1).tolist()
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]


def refined(readers: Sequence[Reader], state_B1D: Tensor, thoughts: Sequence[Tensor]) -> Tensor:
    """The next thought, mixed with the last one and moved from weak to strong by their states."""
    mixed_B1D = state_B1D
    if thoughts:
        mixed_B1D = MEMORY_RATE * thoughts[-1] + (1 - MEMORY_RATE) * state_B1D
    states = []
    for reader in readers:
        if not thoughts:
            reader.read()
        states.append(reader.feed(inputs_embeds=torch.cat([*thoughts[-1:], mixed_B1D], dim=1)))
        reader.forget()
    return mixed_B1D + states[0] - states[1]


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
