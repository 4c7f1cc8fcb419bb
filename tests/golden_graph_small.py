"""The answers of graph-small on a fixed slice of its test task, in tests/golden/graph_small.json.

python tests/golden_graph_small.py        # writes the file again; check the difference
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from golden_noise import bounds

from lm_eval_latentref.evaluation.runs import Runs

GOLDEN = Path(__file__).parent / "golden" / "graph_small.json"
NUM_PROBLEMS = 25
TOLERANCE = 1e-4
"""In nats: how much a log-likelihood may differ between machines; or twice the noise, if more."""

PLAIN = {"memory_rate": 0.0, "search_step_size": 0.0}
REFINED = {"memory_rate": 0.1, "search_step_size": 19.2}
THROUGH = {"memory_rate": 0.1, "search_step_size": 6.4}
"""A shorter step: the gradient through the references amplifies rounding."""
ROWS: dict[str, dict[str, Any]] = {
    "no_cot": {"pretrained": "graph-small/no_cot"},
    "coconut": {"pretrained": "graph-small", **PLAIN},
    "refined": {"pretrained": "graph-small", **REFINED},
    "refined_through": {"pretrained": "graph-small", **THROUGH, "search_gradient": "through"},
    "control": {
        "pretrained": "graph-small",
        "strong": "graph-small/control",
        "weak": "graph-small",
        **REFINED,
    },
}

Measured = dict[str, dict[str, Any]]


def measure(folder: Path, names: Iterable[str] = tuple(ROWS)) -> Measured:
    """For each row of `names`, the answers (N) and the log-likelihoods of all candidates (N, 2).

    Everything goes through lm-eval, as a user's evaluation does; its results go to `folder`.
    """
    measured: Measured = {}
    runs = Runs(limit=NUM_PROBLEMS)
    for name in names:
        answers = _responses(runs, name, "latentref_graph", folder)
        scored = _responses(runs, name, "latentref_graph_mc", folder)
        measured[name] = {
            "answers": [answer for (answer,) in answers],
            "log_likelihoods": [[round(float(value), 6) for value, _ in row] for row in scored],
        }
    return measured


def differences(measured: Measured, golden: Measured) -> list[str]:
    """One line for each row and problem that differs from `golden`."""
    lines = []
    if measured.keys() != golden.keys():
        lines.append(f"rows {sorted(measured)}, not {sorted(golden)}")
    allowed = bounds("graph_small", at_least=TOLERANCE)
    for name in measured.keys() & golden.keys():
        ours, theirs = measured[name], golden[name]
        for kind in ("answers", "log_likelihoods"):
            if len(ours[kind]) != len(theirs[kind]):
                lines.append(f"{name}: {len(ours[kind])} {kind}, not {len(theirs[kind])}")
            for number, (mine, other) in enumerate(zip(ours[kind], theirs[kind], strict=False)):
                if not _equal(mine, other, allowed.get(name, TOLERANCE)):
                    lines.append(f"{name}, problem {number}: {kind} {mine}, not {other}")
    return lines


def _equal(first: Any, second: Any, bound: float) -> bool:
    if isinstance(first, str) or len(first) != len(second):
        return bool(first == second)
    # `not >` would let a nan pass.
    return all(abs(a - b) <= bound for a, b in zip(first, second, strict=True))


def _responses(runs: Runs, name: str, task: str, folder: Path) -> list[Any]:
    runs.evaluate(ROWS[name], task=task, folder=folder / name / task)
    (file,) = (folder / name / task).rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    samples.sort(key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps(measure(Path(scratch)), indent=0) + "\n", "utf-8")
