"""The answers of graph-small on a fixed slice of its test task, in tests/golden/graph_small.json.

python tests/golden_graph_small.py        # writes the file again; check the difference
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from golden_noise import bounds

from lm_eval_latentref.evaluation.runs import evaluate

GOLDEN = Path(__file__).parent / "golden" / "graph_small.json"
NUM_PROBLEMS = 25
TOLERANCE = 1e-4
"""Nats: of a log-likelihood, from one machine to another; twice the noise where that is more."""

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


def measure(folder: Path) -> Measured:
    """By row: the answers (N), and log-likelihoods of all candidates (N, 2); runs go to `folder`.

    Everything goes through lm-eval, as a user's evaluation does.
    """
    found: Measured = {}
    for name, model_args in ROWS.items():
        answers = _responses(model_args, "latentref_graph", folder / name)
        scored = _responses(model_args, "latentref_graph_mc", folder / name)
        found[name] = {
            "answers": [answer for (answer,) in answers],
            "log_likelihoods": [[round(float(one), 6) for one, _ in row] for row in scored],
        }
    return found


def differences(found: Measured, golden: Measured) -> list[str]:
    """One line for each row and problem that is not as in `golden`."""
    lines = [f"rows {sorted(found)}, not {sorted(golden)}"] if found.keys() != golden.keys() else []
    allowed = bounds("graph_small", at_least=TOLERANCE)
    for name in found.keys() & golden.keys():
        ours, theirs = found[name], golden[name]
        for kind in ("answers", "log_likelihoods"):
            if len(ours[kind]) != len(theirs[kind]):
                lines.append(f"{name}: {len(ours[kind])} {kind}, not {len(theirs[kind])}")
            for number, (one, other) in enumerate(zip(ours[kind], theirs[kind], strict=False)):
                if not _equal(one, other, allowed.get(name, TOLERANCE)):
                    lines.append(f"{name}, problem {number}: {kind} {one}, not {other}")
    return lines


def _equal(one: Any, other: Any, bound: float) -> bool:
    if isinstance(one, str) or len(one) != len(other):
        return bool(one == other)
    # Not `>`: a nan must not pass.
    return all(abs(a - b) <= bound for a, b in zip(one, other, strict=True))


def _responses(model_args: dict[str, Any], task: str, folder: Path) -> list[Any]:
    evaluate(model_args, task=task, folder=folder / task, limit=NUM_PROBLEMS)
    (file,) = (folder / task).rglob("samples_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [one["filtered_resps"] for one in sorted(samples, key=lambda one: one["doc_id"])]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps(measure(Path(scratch)), indent=0) + "\n", "utf-8")
