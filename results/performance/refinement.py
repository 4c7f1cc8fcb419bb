"""The price of refinement: both references, against plain Coconut, on the work of generation.py.

    python results/performance/refinement.py --batch_size 16 -o results/performance/refinement.json

Three models instead of one read each question and each thought; only the backbone decodes. The
references are the backbone with noise on its weights. That nothing else differs is checked with
two references that are the same, in float32: the search then moves nothing, and the texts must be
those of plain Coconut.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import bench
import pages
import workload
from bench import NUM_CHECKED, Side
from generation import LIMIT, bare_products
from workload import LATENT_STEPS

from lm_eval_latentref.latent.config import RefinementConfig

PLAIN, REFINED = "plain Coconut", "both references"
TARGET = 3.2
AGAINST_LIMIT = 1.4
"""Time over that of the bare products of all three models."""
PLAIN_CONFIG = RefinementConfig(latent_steps=LATENT_STEPS)
GRADIENT = ("--search_gradient", {"default": "detached", "choices": ("detached", "through")})


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(
        __doc__, argv, GRADIENT, bench.CONTEXT_TOKENS, bench.PROFILE, documents=16, batch_size=16
    )
    detached = args.search_gradient == "detached"
    prompts = workload.prosqa(max(300, (args.rounds + 1) * args.documents), args.tiny)
    lm = workload.load_lm(args)
    prompts = workload.shortened(lm, prompts, args.context_tokens)
    checked, timed = prompts[-NUM_CHECKED:], prompts[:-NUM_CHECKED]
    num_equal = equal_texts(args, checked)
    config = workload.refined(
        lm.reasoner.backbone.hidden_size, search_gradient=args.search_gradient
    )
    refined = workload.thinking(
        lm, config, *(workload.perturbed(lm.model, seed) for seed in (1, 2))
    )
    # One prompt, because contexts of other lengths are read in parts.
    forwards = forwards_a_thought(refined, checked[:1])
    sides = [
        Side(REFINED, partial(workload.write, refined)),
        Side(PLAIN, partial(workload.write, workload.thinking(lm, PLAIN_CONFIG))),
        Side(LIMIT, partial(bare_products, lm, num_models=3)),
    ]
    rounds = bench.alternate(sides, timed, args)
    report = pages.Report(
        name="refinement",
        header=("", "documents/s: median (range)", "IQR"),
        rows=rounds.rows(),
        record={
            **rounds.record(),
            "forwards_a_thought": forwards,
            "equal_texts_float32": [num_equal, NUM_CHECKED],
            "model": workload.identity(lm, args),
        },
    )
    judge(report, rounds, args)
    report.remarks.append(
        f"Forwards a thought: {', '.join(f'{n} {v:g}' for n, v in forwards.items())}; with equal "
        f"references {num_equal} of {NUM_CHECKED} texts are those without (float32)."
    )
    report.check(num_equal == NUM_CHECKED, f"equal references leave only {num_equal} texts equal")
    one_each = not detached or set(forwards.values()) == {1.0}
    report.check(one_each, f"forwards a thought are {forwards}, not one for each model")
    if args.profile:
        report.profile = bench.profile_of(
            partial(workload.write, refined, timed[: args.batch_size])
        )
    return report.finish(args)


def judge(report: pages.Report, rounds: Any, args: Any) -> None:
    """Adds both ratios with their targets, which are those of detached gradients."""
    detached = args.search_gradient == "detached"
    least = statistics.median(rounds.ratio(LIMIT, PLAIN))
    report.judge(
        f"time with {args.search_gradient} search",
        rounds.ratio(REFINED, PLAIN),
        at_most=TARGET if detached else None,
        tiny=args.tiny,
        limit=(least, f"{LIMIT} of three models"),
    )
    report.judge(
        f"time of {REFINED} / {LIMIT} of three models",
        rounds.ratio(REFINED, LIMIT),
        at_most=AGAINST_LIMIT if detached else None,
        tiny=args.tiny,
    )


def forwards_a_thought(lm: Any, prompts: Sequence[str]) -> dict[str, float]:
    """Forwards of each model from the context to the last thought, over the number of thoughts."""
    contexts = [tuple(lm.tok_encode(prompt)) for prompt in prompts]
    counted = bench.counts(lm, lambda: lm.reasoner.think(contexts))
    return {name: number / LATENT_STEPS for name, number in counted["forwards"].items()}


def equal_texts(args: Any, prompts: Sequence[str]) -> int:
    """How many texts two equal references leave as they are."""
    lm = workload.load_lm(args, dtype="float32")
    twin = workload.perturbed(lm.model, 1)
    search = workload.refined(lm.reasoner.backbone.hidden_size, memory_rate=0.0)
    sides = workload.thinking(lm, PLAIN_CONFIG), workload.thinking(lm, search, twin, twin)
    texts = [workload.write(side, prompts) for side in sides]
    return sum(a == b for a, b in zip(*texts, strict=True))


if __name__ == "__main__":
    bench.run(main)
