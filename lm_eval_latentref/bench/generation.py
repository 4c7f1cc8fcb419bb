"""Six thoughts, then 16 tokens, on ProsQA questions: against the published evaluation loop.

    latentref bench generation --rounds 3 --documents 12 --batch_size 12

The published loop is Coconut's (Hao et al., arXiv:2412.06769), in `bench.published`. Both get the
same prompts, from text to text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lm_eval_latentref.bench import published
from lm_eval_latentref.bench.report import Report, Side, alternate, compare_speed, verdict
from lm_eval_latentref.bench.sides import counts_of, facts, load_lm, prosqa_prompts, thinking, write
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.config import RefinementConfig

PUBLISHED, OURS = "published loop", "--model latentref"
TARGETS = {"cpu": 12.0, "cuda": 40.0}
LATENT_STEPS, NEW_TOKENS = 6, 16
NUM_CHECKED = 2


def run(
    *,
    rounds: int = 3,
    documents: int = 12,
    dtype: str = "bfloat16",
    batch_size: int = 12,
    published_documents: int | None = None,
    pretrained: str | None = None,
) -> Report:
    """Documents a second of both, after a check in float32 that both write the same text.

    Args:
        published_documents: how many of a round's documents the published loop answers, where all
            would take it too long; None for all.
    """
    if published_documents is not None and published_documents < 1:
        raise LatentRefError(f"published_documents={published_documents}; give at least 1")
    prompts = prosqa_prompts(max(300, (rounds + 1) * documents))
    checked = prompts[-NUM_CHECKED:]
    num_equal = _check_in_float32(checked, pretrained)
    lm = _plain_coconut(pretrained, dtype, batch_size)
    ours = partial(write, lm, max_new_tokens=NEW_TOKENS)
    sides = [
        Side(PUBLISHED, partial(published_texts, lm), most=published_documents),
        Side(OURS, ours),
    ]
    found = alternate(sides, prompts[:-NUM_CHECKED], rounds=rounds, per_round=documents)
    compared = compare_speed(found, slow=PUBLISHED, fast=OURS)
    target = TARGETS.get(lm.device.type, TARGETS["cpu"])
    pairs = [
        pair
        for one in found
        for pair in zip(one.answers[PUBLISHED], one.answers[OURS], strict=False)
    ]
    num_same = sum(a == b for a, b in pairs)
    remarks = [
        verdict(f"{OURS} against the {PUBLISHED}", compared.ratio.median, at_least=target),
        f"Equal texts: {num_equal} of {NUM_CHECKED} in float32, {num_same} of {len(pairs)} in "
        f"{dtype}.",
    ]
    failures = []
    if num_equal < NUM_CHECKED:
        failures.append(f"in float32 only {num_equal} of {NUM_CHECKED} texts are equal")
    return compared.report(
        "generation",
        remarks=remarks,
        failures=failures,
        target=target,
        equal_texts_float32=[num_equal, NUM_CHECKED],
        equal_texts=[num_same, len(pairs)],
        counts=counts_of(lm, partial(ours, checked), len(checked)),
        latent_steps=LATENT_STEPS,
        new_tokens=NEW_TOKENS,
        rounds=rounds,
        documents=documents,
        published_documents=published_documents or documents,
        **facts(lm),
    )


def published_texts(lm: LatentRefLM, prompts: Sequence[str]) -> list[str]:
    """What the published loop writes after each prompt, with the weights of `lm`."""
    reasoner, markers = lm.reasoner, lm.reasoner.markers
    written = [
        published.generate(
            reasoner.backbone.causal_lm,
            lm.tok_encode(prompt),
            markers=(markers.start_id, markers.end_id) if markers else None,
            latent_steps=reasoner.config.latent_steps,
            max_new_tokens=NEW_TOKENS,
            eos_id=lm.eot_token_id,
        )
        for prompt in prompts
    ]
    return lm.tokenizer.batch_decode(written, skip_special_tokens=True)


def _plain_coconut(pretrained: str | None, dtype: str, batch_size: int) -> LatentRefLM:
    lm = load_lm(pretrained=pretrained, dtype=dtype, batch_size=batch_size)
    return thinking(lm, RefinementConfig(latent_steps=LATENT_STEPS))


def _check_in_float32(prompts: Sequence[str], pretrained: str | None) -> int:
    lm = _plain_coconut(pretrained, "float32", len(prompts))
    ours = write(lm, prompts, max_new_tokens=NEW_TOKENS)
    return sum(a == b for a, b in zip(published_texts(lm, prompts), ours, strict=True))
