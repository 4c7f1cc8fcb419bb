"""Multiple choice without thoughts against `--model hf`: MathQA's five choices, one question.

    latentref bench choices --rounds 3 --documents 64

lm-eval's own class reads a question once for each choice; here every context is read once. Both
get the same requests, from text on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lm_eval_latentref.bench.report import (
    NUM_WARM_UP,
    Report,
    Round,
    Side,
    alternate,
    compare_speed,
    verdict,
)
from lm_eval_latentref.bench.sides import (
    Document,
    counts_of,
    facts,
    hf_beside,
    hits_gold,
    load_lm,
    mathqa_documents,
    score_choices,
)
from lm_eval_latentref.evaluation.statistics import mcnemar

HF, OURS = "--model hf", "--model latentref"
TARGET = 2.5
TOLERANCE = 1e-4
"""Largest difference of log-likelihoods in float32."""
SIGNIFICANT = 0.01
"""In half precision near-ties fall either way; accuracies must not differ by more than chance."""
NUM_CHECKED = 8


def run(
    *,
    rounds: int = 3,
    documents: int = 64,
    dtype: str = "bfloat16",
    batch_size: int = 8,
    pretrained: str | None = None,
) -> Report:
    """Documents a second of both, after a check in float32 that both find the same numbers."""
    asked = mathqa_documents()
    checked = asked[-NUM_CHECKED:]
    difference = _check_in_float32(checked, pretrained, batch_size)
    lm = load_lm(pretrained=pretrained, dtype=dtype, batch_size=batch_size)
    ours = partial(score_choices, lm)
    sides = [Side(HF, partial(score_choices, hf_beside(lm))), Side(OURS, ours)]
    found = alternate(sides, asked[:-NUM_CHECKED], rounds=rounds, per_round=documents)
    timed = asked[NUM_WARM_UP : NUM_WARM_UP + rounds * documents]
    hits = {side.name: _hits(side.name, found, timed) for side in sides}
    accuracies = {name: sum(of_side) / len(timed) for name, of_side in hits.items()}
    compared = compare_speed(found, slow=HF, fast=OURS)
    remarks = [
        verdict(f"{OURS} against {HF}", compared.ratio.median, at_least=TARGET),
        f"Log-likelihoods in float32 differ by at most {difference:.1e} over {NUM_CHECKED} "
        f"documents; accuracy in {dtype}: "
        + ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items())
        + ".",
    ]
    failures = []
    if difference > TOLERANCE:
        failures.append(f"log-likelihoods in float32 differ by {difference:.2g}")
    if (paired := mcnemar(hits[HF], hits[OURS])).p_value < SIGNIFICANT:
        failures.append(f"accuracies in {dtype} differ (McNemar's p {paired.p_value:.2g})")
    return compared.report(
        "choices",
        remarks=remarks,
        failures=failures,
        target=TARGET,
        max_difference_float32=difference,
        accuracy=accuracies,
        counts=counts_of(lm, partial(ours, checked), len(checked)),
        rounds=rounds,
        documents=documents,
        **facts(lm),
    )


def _check_in_float32(asked: Sequence[Document], pretrained: str | None, batch_size: int) -> float:
    lm = load_lm(pretrained=pretrained, dtype="float32", batch_size=batch_size)
    theirs, ours = (score_choices(side, asked) for side in (hf_beside(lm), lm))
    return max(
        abs(a - b)
        for row_a, row_b in zip(theirs, ours, strict=True)
        for a, b in zip(row_a, row_b, strict=True)
    )


def _hits(name: str, found: Sequence[Round], asked: Sequence[Document]) -> list[bool]:
    return hits_gold([values for one in found for values in one.answers[name]], asked)
