"""Measures how rounding changes golden log-likelihoods, in tests/golden/graph_small_noise.json.

python tests/golden_noise.py graph_small    # takes minutes; writes the file again

The same numbers are computed with other vector instructions, threads, batch sizes and attention
kernels, one changed at a time; only the order in which floats are added up differs. The
gradient through the references amplifies that from thought to thought, whichever operation rounded
differently; without it nothing moves by more than 2e-5.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"
INSTRUCTIONS = (
    "ATEN_CPU_CAPABILITY=avx2",
    "ATEN_CPU_CAPABILITY=default",
    "ONEDNN_MAX_CPU_ISA=SSE41",
    "MKL_ENABLE_INSTRUCTIONS=SSE4_2",
)
"""For processes of their own: libraries read these when they are loaded."""

Scores = dict[str, list[float]]
"""By row of the golden file: the log-likelihoods of all candidates."""


@dataclasses.dataclass(frozen=True)
class How:
    """What may change without changing anything but rounding."""

    threads: int = 1
    batch_size: int = 100
    attn_implementation: str = "sdpa"


HERE = {
    "usual": How(),
    "threads=2": How(threads=2),
    "batch_size=1": How(batch_size=1),
    "batch_size=7": How(batch_size=7),
    "attn_implementation=eager": How(attn_implementation="eager"),
}


def bounds(name: str, at_least: float) -> dict[str, float]:
    """By row, how far a log-likelihood of set `name` may be off: twice the noise, if that is more.

    Args:
        at_least: nats.
    """
    measured = json.loads((FOLDER / f"{name}_noise.json").read_text(encoding="utf-8"))
    return {row: max(at_least, 2 * max(by.values())) for row, by in measured.items()}


def score(name: str, how: How) -> Scores:
    """The scores of all rows of set `name` that think, computed in this process."""
    import torch

    from lm_eval_latentref import load
    from lm_eval_latentref.benchmarks.documents import generated_documents

    golden = importlib.import_module(f"golden_{name}")
    torch.set_num_threads(how.threads)
    task = name.removesuffix("_small")
    documents = generated_documents(task, num=golden.NUM_PROBLEMS, seed=0)
    scores: Scores = {}
    for row, arguments in golden.ROWS.items():
        reasoner = load(**arguments, device="cpu", attn_implementation=how.attn_implementation)
        if not reasoner.thinks:
            continue
        encode = reasoner.tokenizer.encode
        contexts = [tuple(encode(document["prompt"])) for document in documents]
        choices = [[tuple(encode(text)) for text in d["choices"]] for d in documents]
        scores[row] = []
        for first in range(0, len(documents), how.batch_size):
            part = slice(first, first + how.batch_size)
            groups = reasoner.score(contexts[part], choices[part], max_rows=how.batch_size)
            scores[row] += [choice.log_likelihood for group in groups for choice in group]
    return scores


def in_process(name: str, setting: str) -> Scores:
    """The usual scores of set `name`, where the environment has `setting`."""
    variable, _, value = setting.partition("=")
    command, environment = (
        [sys.executable, __file__, name, "usual"],
        {**os.environ, variable: value},
    )
    made = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(made.stdout.splitlines()[-1])


def noise(scores: dict[str, Scores]) -> dict[str, dict[str, float]]:
    """By row, then by what was changed: the largest difference to the usual scores, in nats."""
    usual = scores["usual"]
    return {
        row: {
            changed: float(f"{max(map(_apart, rows[row], right)):.2g}")
            for changed, rows in scores.items()
            if changed != "usual"
        }
        for row, right in usual.items()
    }


def _apart(a: float, b: float) -> float:
    return abs(a - b)


if __name__ == "__main__":
    name, *only = sys.argv[1:]
    if only:
        print(json.dumps(score(name, HERE[only[0]])))
    else:
        measured = noise(
            {changed: score(name, how) for changed, how in HERE.items()}
            | {setting: in_process(name, setting) for setting in INSTRUCTIONS}
        )
        (FOLDER / f"{name}_noise.json").write_text(json.dumps(measured, indent=2) + "\n", "utf-8")
