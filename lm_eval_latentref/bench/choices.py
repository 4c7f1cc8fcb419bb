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
    accuracy,
    facts,
    hf_beside,
    load_lm,
    mathqa_documents,
    score_choices,
)

HF, OURS = "--model hf", "--model latentref"
TARGET = 2.5
TOLERANCE = 1e-4
"""Largest difference of log-likelihoods in float32."""
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
    difference = _check_in_float32(asked[-NUM_CHECKED:], pretrained, batch_size)
    lm = load_lm(pretrained=pretrained, dtype=dtype, batch_size=batch_size)
    sides = [
        Side(HF, partial(score_choices, hf_beside(lm))),
        Side(OURS, partial(score_choices, lm)),
    ]
    found = alternate(sides, asked[:-NUM_CHECKED], rounds=rounds, per_round=documents)
    timed = asked[NUM_WARM_UP : NUM_WARM_UP + rounds * documents]
    accuracies = {side.name: _accuracy(side.name, found, timed) for side in sides}
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
    return compared.report(
        "choices",
        remarks=remarks,
        failures=failures,
        target=TARGET,
        max_difference_float32=difference,
        accuracy=accuracies,
        counts=lm.reasoner.accounting.report(),
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


def _accuracy(name: str, found: Sequence[Round], asked: Sequence[Document]) -> float:
    return accuracy([values for one in found for values in one.answers[name]], asked)
