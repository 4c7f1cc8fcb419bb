"""Prompts that begin with the same examples: against `--model hf`, and against no examples.

    python results/performance/prefixes.py -o results/performance/prefixes.json
    python results/performance/prefixes.py --work gsm8k --documents 16 --rounds 1

Four kinds of work: `gsm8k`, 16 tokens after lm-eval's own `gsm8k_cot`, whose eight examples are
fixed; `choices`, MathQA's five choices after its first five documents; `drawn`, the same after five
examples drawn anew for each document, where there is nothing to share; and `thoughts`, six refined
thoughts and 16 tokens on the prompts of `gsm8k`, against the same questions without examples. The
limit is by tokens read. Of work that is not named, the output keeps what it holds of this machine.
All sides use the dtype in which this machine multiplies faster.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import bench
import lm_eval
import pages
import workload
import yaml
from bench import Side
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from workload import LATENT_STEPS, NEW_TOKENS

from lm_eval_latentref.benchmarks.splits import load_split
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.provenance import command
from lm_eval_latentref.latent import prefixes

HF, OURS = "--model hf", "--model latentref"
APART, BARE = "without sharing", "without examples"
TOLERANCE = 1e-4
"""Largest difference of log-likelihoods in float32."""
NUM_CHECKED = 2
GSM8K_COT = Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k-cot.yaml"
MATHQA = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{Problem}}\nAnswer:",
    "doc_to_target": "{{gold}}",
    "doc_to_choice": "{{choices}}",
    "fewshot_split": "train",
}
"""As lm-eval's own `mathqa` asks."""

Document = dict[bool, list[Instance]]
"""A document's requests, with and without examples."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is asked, of which two sides, and what the ratio of their times is to be."""

    task: str
    slow: str
    fast: str
    checked_by: str
    """The side that must answer as ours in float32."""
    sampler: str = "first_n"
    thinks: bool = False
    at_least: float | None = None
    at_most: float | None = None


WORKS = {
    "gsm8k": Work(task="gsm8k", slow=HF, fast=OURS, checked_by=HF, at_least=5.0),
    "choices": Work(task="mathqa", slow=HF, fast=OURS, checked_by=HF, at_least=10.0),
    "drawn": Work(
        **{"task": "mathqa", "sampler": "default"},
        **{"slow": OURS, "fast": APART, "checked_by": APART, "at_most": 1.02},
    ),
    "thoughts": Work(
        **{"task": "gsm8k", "thinks": True},
        **{"slow": OURS, "fast": BARE, "checked_by": APART, "at_most": 2.0},
    ),
}
OPTIONS = [
    ("--work", {"default": ",".join(WORKS), "help": f"with commas between: {', '.join(WORKS)}"}),
]


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(__doc__, argv, *OPTIONS, dtype="auto", documents=48, batch_size=16)
    names = args.work.split(",")
    for name in names:
        if name not in WORKS:
            raise LatentRefError(f"--work {name}: give one or more of {', '.join(WORKS)}")
    works = pages.kept(args, "works")
    report = pages.Report(
        name="prefixes",
        header=("", "", "documents/s: median (range)", "IQR"),
        rows=[],
        record={"works": works},
        remarks=[f"All sides in {args.dtype}."],
    )
    exact, lm = workload.load_lm(args, dtype="float32"), workload.load_lm(args)
    report.record["model"] = workload.identity(lm, args)
    works.update({name: measured(WORKS[name], exact, lm, args) for name in names})
    for name in WORKS:
        if name in works:
            _show(name, works[name], report, tiny=args.tiny)
    return report.finish(args)


def measured(work: Work, exact: Any, lm: Any, args: Any) -> dict[str, Any]:
    """Times, counts and the limit of one kind of work as JSON values."""
    num = args.rounds * args.documents + bench.NUM_WARM_UP
    documents = asked(work, num, args.tiny)
    sides, _ = sides_of(work, exact)
    first, second = (sides[side](documents[:NUM_CHECKED]) for side in (OURS, work.checked_by))
    sides, accounting = sides_of(work, lm)
    before = accounting.report()
    both = [Side(side, sides[side]) for side in (work.slow, work.fast)]
    rounds = bench.alternate(both, documents, args)
    cost = {k: v - before[k] for k, v in accounting.report().items() if k.startswith("tokens")}
    read = _tokens_read(work, lm, documents, cost)
    answers = {
        "equal_in_float32": _equal(first, second),
        "limit": read[work.slow] / read[work.fast],
    }
    return {**rounds.record(), **cost, **answers, "command": command()}


def _show(name: str, made: dict[str, Any], report: pages.Report, *, tiny: bool) -> None:
    """Adds the rows and the verdict of one kind of work."""
    work, rounds = WORKS[name], bench.Rounds(made["seconds_per_document"], {})
    report.check(made["equal_in_float32"], f"{name}: in float32 the answers of both sides differ")
    report.rows = [*report.rows, *((name, *row) for row in rounds.rows())]
    what, bounds = f"{name}: time of {work.slow} / {work.fast}", (work.at_least, work.at_most)
    ratio = rounds.ratio(work.slow, work.fast)
    limit = (made["limit"], "tokens read") if made["limit"] else None
    report.judge(what, ratio, at_least=bounds[0], at_most=bounds[1], tiny=tiny, limit=limit)
    report.remarks.append(f"{name}: measured by `python results/performance/{made['command']}`.")


def asked(work: Work, num: int, tiny: bool) -> list[Document]:
    """Requests of `num` documents, made by lm-eval."""
    config, num_examples = _gsm8k(tiny) if work.task == "gsm8k" else _mathqa(work, tiny)
    made = []
    for number in (1 if tiny else num_examples, 0):
        task = ConfigurableTask(config={**config, "task": work.task, "num_fewshot": number})
        task.set_fewshot_seed(0)
        task.build_all_requests(limit=num, rank=0, world_size=1)
        by_document: dict[int, list[Instance]] = {}
        for request in task.instances:
            by_document.setdefault(request.doc_id, []).append(request)
        made.append(list(by_document.values()))
    return [{True: few, False: none} for few, none in zip(*made, strict=True)]


def _gsm8k(tiny: bool) -> tuple[dict[str, Any], int]:
    config = yaml.safe_load(GSM8K_COT.read_text(encoding="utf-8"))
    rows = [{"question": f"{n} + 1 ?", "answer": f"#### {n + 1}"} for n in range(12)]
    if not tiny:
        rows = [
            {key: row[key] for key in ("question", "answer")}
            for row in load_split("gsm8k", "test").rows
        ]
    until = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    changed = {"dataset_path": "json", "test_split": "test", "generation_kwargs": until}
    data = {"custom_dataset": lambda **_: {"test": Dataset.from_list(rows)}}
    return {**config, **changed, **data, "filter_list": None}, config["num_fewshot"]


def _mathqa(work: Work, tiny: bool) -> tuple[dict[str, Any], int]:
    rows = workload.mathqa(tiny)
    examples, rest = rows[: len(rows) // 3], rows[len(rows) // 3 :]
    return {
        **MATHQA,
        "test_split": "test",
        "fewshot_config": {"sampler": work.sampler},
        "custom_dataset": lambda **_: {
            "train": Dataset.from_list(examples),
            "test": Dataset.from_list(rest),
        },
    }, 5


def sides_of(work: Work, lm: Any) -> tuple[dict[str, Any], Any]:
    """All sides on the weights of `lm`, and the counters of ours."""
    ours = lm
    if work.thinks:
        config = workload.refined(lm.reasoner.backbone.hidden_size)
        ours = workload.thinking(
            lm, config, *(workload.perturbed(lm.model, seed) for seed in (1, 2))
        )
    return {
        HF: partial(answers, workload.hf_beside(lm), True),
        OURS: partial(answers, ours, True),
        APART: partial(_apart, ours),
        BARE: partial(answers, ours, False),
    }, ours.reasoner.accounting


def answers(lm: Any, with_examples: bool, documents: Sequence[Document]) -> list[Any]:
    """What `lm` answers to all requests of `documents`."""
    requests = [request for document in documents for request in document[with_examples]]
    return getattr(lm, requests[0].request_type)(requests, disable_tqdm=True)


def _apart(lm: Any, documents: Sequence[Document]) -> list[Any]:
    with mock.patch.object(prefixes, "MIN_TOKENS", sys.maxsize):
        return answers(lm, True, documents)


def _equal(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Of texts, whether they are the same; of log-likelihoods, whether they are close."""
    pairs = list(zip(first, second, strict=True))
    if isinstance(first[0], str):
        return all(a == b for a, b in pairs)
    return all(abs(a[0] - b[0]) <= TOLERANCE for a, b in pairs)


def _tokens_read(
    work: Work, lm: Any, documents: Sequence[Document], cost: dict[str, int]
) -> dict[str, int]:
    """Tokens and thoughts that the backbone of each side reads for all `documents`.

    Args:
        cost: what the sides that are not `HF` counted together.
    """
    lengths = {
        few: [[len(lm.tok_encode(asked.args[0])) for asked in each[few]] for each in documents]
        for few in (True, False)
    }
    after = sum(_after(lm, asked) for each in documents for asked in each[True])
    after += len(documents) * LATENT_STEPS if work.thinks else 0
    contexts = {
        HF: sum(map(sum, lengths[True])),
        APART: sum(each[0] for each in lengths[True]),  # all choices have the same context
        BARE: sum(each[0] for each in lengths[False]),
    }
    others = sum(contexts[side] for side in (work.slow, work.fast) if side in (APART, BARE))
    contexts[OURS] = cost["tokens_encoded"] - cost["tokens_shared"] - others
    return {side: number + after for side, number in contexts.items()}


def _after(lm: Any, asked: Instance) -> int:
    """Tokens that are read after the context of a request; the last of its text is not."""
    text = asked.args[1]
    return (len(lm.tok_encode(text)) if isinstance(text, str) else NEW_TOKENS) - 1


if __name__ == "__main__":
    bench.run(main)
