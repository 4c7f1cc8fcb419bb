"""Multiple choice without thoughts, against `--model hf`: MathQA's five choices of one question.

    python results/performance/choices.py --documents 64 -o results/performance/choices.json

lm-eval's own class reads a question once for each choice; here every context is read once. Both
get the same requests, from text on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import bench
import pages
import workload
from bench import Side

from lm_eval_latentref.evaluation.statistics import mcnemar

HF, OURS = "--model hf", "--model latentref"
TARGET = 3.4
TOLERANCE = 1e-4
"""Largest difference of log-likelihoods in float32."""
SIGNIFICANT = 0.01
"""In half precision near-ties fall either way; accuracies must not differ by more than chance."""
NUM_CHECKED = 8


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(__doc__, argv, bench.PROFILE, documents=64, batch_size=8)
    asked = workload.mathqa(args.tiny)
    checked, timed = asked[-NUM_CHECKED:], asked[:-NUM_CHECKED]
    difference = largest_difference(args, checked)
    lm = workload.load_lm(args)
    ours = partial(workload.score_choices, lm)
    hf = partial(workload.score_choices, workload.hf_beside(lm))
    counting = {HF: workload.Counting(lm, hf), OURS: workload.Counting(lm, ours)}
    sides = [Side(name, answer) for name, answer in counting.items()]
    rounds = bench.alternate(sides, timed, args)
    right = {name: hits(rounds.answers[name], timed[bench.NUM_WARM_UP :]) for name in (HF, OURS)}
    accuracy = {name: sum(one) / len(one) for name, one in right.items()}
    report = pages.Report(
        name="choices",
        header=("", "documents/s: median (range)", "IQR"),
        rows=rounds.rows(),
        record={
            **rounds.record(),
            "max_difference_float32": difference,
            "accuracy": accuracy,
            "counts": bench.counts(lm, partial(ours, checked)),
            "model": workload.identity(lm, args),
        },
    )
    report.judge(
        f"time of {HF} / {OURS}",
        rounds.ratio(HF, OURS),
        at_least=TARGET,
        tiny=args.tiny,
        limit=(counting[HF].products / counting[OURS].products, "products of rows and weights"),
    )
    report.remarks.append(
        f"Log-likelihoods in float32 differ by at most {difference:.1e} over {len(checked)} "
        f"documents; accuracy in {args.dtype}: {HF} {accuracy[HF]:.3f}, "
        f"{OURS} {accuracy[OURS]:.3f}."
    )
    report.check(difference <= TOLERANCE, f"log-likelihoods in float32 differ by {difference:.2g}")
    p_value = mcnemar(right[HF], right[OURS]).p_value
    report.check(p_value >= SIGNIFICANT, f"accuracies differ (McNemar's p {p_value:.2g})")
    if args.profile:
        report.profile = bench.profile_of(partial(ours, checked))
    return report.finish(args)


def largest_difference(args: object, asked: Sequence[dict]) -> float:
    """Of any log-likelihood of both sides in float32."""
    lm = workload.load_lm(args, dtype="float32")
    sides = [workload.score_choices(side, asked) for side in (workload.hf_beside(lm), lm)]
    rows = zip(*sides, strict=True)
    return max(abs(a - b) for row in rows for a, b in zip(*row, strict=True))


def hits(answers: Sequence[Sequence[Sequence[float]]], asked: Sequence[dict]) -> list[bool]:
    """Of each document, whether its gold choice has the largest log-likelihood."""
    scores = [values for batch in answers for values in batch]
    return [
        values.index(max(values)) == one["gold"] for values, one in zip(scores, asked, strict=False)
    ]


if __name__ == "__main__":
    bench.run(main)
