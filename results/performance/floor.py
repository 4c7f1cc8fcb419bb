"""How near six thoughts and 16 tokens come to the bare matrix products, and to a cached loop.

    python results/performance/floor.py -o results/performance/floor.json
    python results/performance/floor.py --work gpt2 --documents 64 --rounds 1 --profile

Four kinds of work on ProsQA questions of 62 tokens on average: `gpt2`, random weights in GPT-2's
shape in float32, for which the targets are; `threads`, the same with two threads; `smollm2`, the
base of the default set; `refined`, `gpt2` with both references. The loop and the products are those
of generation.py; with references, the products are those of three models, and the loop keeps a
cache for each. Of work that is not named, the output keeps what it holds of this machine. The bound
of the first ratio is what is left if everything but our linear layers took no time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import bench
import pages
import torch
import workload
from bench import Side
from generation import CACHED, LIMIT, OURS, bare_products, cached_texts
from torch import nn
from workload import LATENT_STEPS

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.provenance import command
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.torch_seams import by_onednn

AGAINST_CACHED, AGAINST_LIMIT = 1.6, 1.3
MOST_PADDING = 0.05
"""One thread, weights of GPT-2's shape."""
LEAST_EQUAL = 0.95
"""Of the texts in float32, where near-ties fall either way."""
LINEAR = ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm")
CONTEXT_TOKENS, NUM_PRODUCTS = 62, 10


@dataclass(frozen=True, kw_only=True)
class Work:
    shape: str | None = workload.GPT2
    threads: int = 1
    num_models: int = 1
    has_targets: bool = False


WORKS = {
    "gpt2": Work(has_targets=True),
    "threads": Work(threads=2),
    "smollm2": Work(shape=None),
    "refined": Work(num_models=3),
}
OPTIONS = [
    ("--work", {"default": ",".join(WORKS), "help": f"with commas between: {', '.join(WORKS)}"}),
    bench.PROFILE,
]


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(
        __doc__,
        argv,
        *OPTIONS,
        dtype="float32",
        rounds=2,
        documents=64,
        batch_size=16,
        any_model=False,
    )
    names = args.work.split(",")
    for name in names:
        if name not in WORKS:
            raise LatentRefError(f"--work {name}: give one or more of {', '.join(WORKS)}")
    works = pages.kept(args, "works")
    works.update({name: measured(WORKS[name], args) for name in names})
    works = {name: works[name] for name in WORKS if name in works}
    report = pages.Report(
        name="floor",
        header=("", "", "documents/s: median (range)", "IQR"),
        rows=[],
        record={"works": works},
    )
    for name, made in works.items():
        _show(name, made, report, tiny=args.tiny)
    return report.finish(args)


def measured(work: Work, args: Any) -> dict[str, Any]:
    """Times, counts, equal texts and a profile of one kind of work as JSON values."""
    given = {} if args.tiny else {"shape": work.shape}
    if work.threads > 1:
        given["clock"] = "wall"
    args, threads = argparse.Namespace(**{**vars(args), **given}), torch.get_num_threads()
    torch.set_num_threads(work.threads)
    try:
        lm = workload.load_lm(args)
        return {**timed(work, lm, args), "model": workload.identity(lm, args), "command": command()}
    finally:
        torch.set_num_threads(threads)


def timed(work: Work, lm: Any, args: Any) -> dict[str, Any]:
    """What is measured on the weights of `lm`."""
    ours, references = workload.thinking(lm, RefinementConfig(latent_steps=LATENT_STEPS)), []
    if work.num_models > 1:
        references = [workload.perturbed(lm.model, seed) for seed in (1, 2)]
        config = workload.refined(lm.reasoner.backbone.hidden_size)
        ours = workload.thinking(lm, config, *references)
    prompts = workload.prosqa(max(300, (args.rounds + 1) * args.documents), args.tiny)
    prompts = workload.shortened(lm, prompts, CONTEXT_TOKENS)
    sides = [
        Side(CACHED, partial(cached_texts, lm, references=references)),
        Side(OURS, partial(workload.write, ours)),
        Side(LIMIT, partial(bare_products, lm, num_models=work.num_models)),
    ]
    rounds, counts = bench.counted(ours, lambda: bench.alternate(sides, prompts, args))
    cached, written = ([*chain.from_iterable(rounds.answers[name])] for name in (CACHED, OURS))
    made = {
        **rounds.record(),
        "texts": [sum(a == b for a, b in zip(cached, written, strict=True)), len(written)],
        "counts": counts,
        "output_layer": output_layer(lm, bench.clock_of(args)),
    }
    if args.profile and work.has_targets:
        batch = partial(workload.write, ours, prompts[: args.batch_size])
        made["operators"] = bench.operators_of(batch)
    return made


def output_layer(lm: Any, clock: Any) -> dict[str, float]:
    """Seconds of the output layer for one batch of rows, by torch.mm and by oneDNN."""
    weight_VD = lm.reasoner.backbone.causal_lm.get_output_embeddings().weight
    rows_BD = weight_VD.new_ones(lm.batch_size, weight_VD.shape[1])
    calls = {
        "torch.mm": partial(torch.mm, rows_BD, weight_VD.T),
        "oneDNN": lambda: nn.functional.linear(rows_BD, weight_VD),
    }
    with torch.no_grad(), by_onednn():
        return {
            name: min(bench.timed(call, clock=clock)[0] for _ in range(NUM_PRODUCTS))
            for name, call in calls.items()
        }


def _show(name: str, made: dict[str, Any], report: pages.Report, *, tiny: bool) -> None:
    """Adds the rows and the verdicts of one kind of work."""
    rounds, judged = bench.Rounds(made["seconds_per_document"], {}), WORKS[name].has_targets
    report.rows = [*report.rows, *((name, *row) for row in rounds.rows())]
    counts = made["counts"]
    num_read = counts["tokens_encoded"] - counts["tokens_shared"] + counts["padding_columns"]
    limit = statistics.median(rounds.ratio(CACHED, LIMIT)), LIMIT
    against = f"time of {CACHED} / {OURS}"
    target = {"at_least": AGAINST_CACHED} if judged else {}
    report.judge(f"{name}: {against}", rounds.ratio(CACHED, OURS), tiny=tiny, limit=limit, **target)
    for what, values, bound in (
        (f"time of {OURS} / {LIMIT}", rounds.ratio(OURS, LIMIT), {"at_most": AGAINST_LIMIT}),
        (
            "share of the contexts' columns that is padding",
            [counts["padding_columns"] / num_read],
            {"at_most": MOST_PADDING},
        ),
    ):
        report.judge(f"{name}: {what}", values, tiny=tiny, **(bound if judged else {}))
    if "operators" in made:
        report.remarks.append(bound_by_profile(name, made, rounds))
        report.profile = bench.profile_table(made["operators"])
    layer = (f"{1000 * took:.1f} ms by {how}" for how, took in made["output_layer"].items())
    equal, num_texts = made["texts"]
    report.remarks.append(
        f"{name}: the output layer takes {', '.join(layer)} for a batch; {equal} of {num_texts} "
        f"texts are the loop's; measured by `python results/performance/{made['command']}`."
    )
    if (threads := WORKS[name].threads) > 1:
        report.remarks.append(
            f"{name}: {threads} threads, by the wall's clock; with other work on the second core, "
            "they wait for each other."
        )
    enough = equal >= LEAST_EQUAL * num_texts
    report.check(enough, f"{name}: only {equal} of {num_texts} texts are those of the loop")


def bound_by_profile(name: str, made: dict[str, Any], rounds: bench.Rounds) -> str:
    """Which ratio to the loop our linear layers alone would allow."""
    operators = made["operators"]
    products = sum(seconds for seconds, _, operator in operators if operator in LINEAR)
    share = products / sum(seconds for seconds, *_ in operators)
    ratio = statistics.median(rounds.ratio(CACHED, OURS))
    left = max(0.0, ratio / AGAINST_CACHED - share)
    return (
        f"{name}: linear layers take {share:.1%} of our time by profile. If attention, "
        f"activations, norms, caches and Python took no time at all, the loop would take "
        f"{ratio / share:.2f} times as long as ours. {AGAINST_CACHED:g} times would leave them "
        f"{left:.1%} of our time; they take {1 - share:.1%}."
    )


if __name__ == "__main__":
    bench.run(main)
