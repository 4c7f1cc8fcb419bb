"""Writes the files that lm-eval writes, without running it: results and samples.

    write_run(tmp_path / "a", {"t": {"acc": [0, 1, 1]}}, name="org/model")

The layout is that of lm-eval 0.4.8 to 0.4.13; differences between them are arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATE = "2026-01-01T10-00-00.000001"


def digest(text: str) -> str:
    """lm-eval's `hash_string`."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sample(doc_id: int, values: Mapping[str, Any], *, filter_name="none", candidates=2, text=""):
    """One logged sample; candidate 0 is the gold one, and likeliest where acc is 1."""
    right = bool(values.get("acc", 1))
    scores = [["-1.0" if (k == 0) == right else "-2.0", "False"] for k in range(candidates)]
    question = text or f"question {doc_id}"
    return {
        "doc_id": doc_id,
        "doc": {"question": question},
        "target": "0",
        "arguments": {
            f"gen_args_{k}": {"arg_0": question, "arg_1": f" {k}"} for k in range(candidates)
        },
        "resps": [[score] for score in scores],
        "filtered_resps": scores,
        "filter": filter_name,
        "metrics": list(values),
        "doc_hash": digest(question),
        "prompt_hash": digest(f"prompt of {question}"),
        "target_hash": digest("0"),
        **values,
    }


def write_run(
    folder: Path,
    tasks: Mapping[str, Mapping[str, Sequence[Any]]],
    *,
    name: str = "org/model",
    date: str = DATE,
    log_samples: bool = True,
    candidates: int = 2,
    stderr: Any = None,
    order: Sequence[int] | None = None,
    text: str = "",
    versions: Mapping[str, Any] | None = None,
    shots: int = 0,
    available: int | None = None,
    **content: Any,
) -> Path:
    """Writes one run below `folder`; returns its results file.

    Args:
        tasks: by task and metric ("acc", or "acc,FILTER") the value of each document.
        stderr: of every metric; None for what lm-eval computes.
        order: of the samples in their file (several processes log 0, 2, 4, 1, 3).
        text: of every question, in front of its number.
        content: more or other fields of the results file; `config` is added to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results, hashes, counts, configs, better = {}, {}, {}, {}, {}
    for task, metrics in tasks.items():
        num = len(next(iter(metrics.values())))
        results[task] = {"alias": task}
        counts[task] = {"original": available or num, "effective": num}
        better[task] = {key.partition(",")[0]: True for key in metrics}
        configs[task] = {
            "task": task,
            "output_type": "multiple_choice" if candidates > 1 else "generate_until",
            "metadata": {"version": 1.0},
        }
        lines = []
        filters = {key.partition(",")[2] or "none" for key in metrics}
        for filter_name in sorted(filters):
            own = {
                key.partition(",")[0]: values
                for key, values in metrics.items()
                if (key.partition(",")[2] or "none") == filter_name
            }
            for metric, values in own.items():
                key = f"{metric},{filter_name}"
                numbers = [v if isinstance(v, int | float) else float(len(v)) for v in values]
                mean = sum(numbers) / num
                spread = sum((v - mean) ** 2 for v in numbers) / max(1, num - 1)
                results[task][key] = mean
                results[task][f"{metric}_stderr,{filter_name}"] = (
                    (spread / num) ** 0.5 if stderr is None else stderr
                )
            for doc_id in order or range(num):
                values = {metric: values[doc_id] for metric, values in own.items()}
                question = f"{text}{task} {doc_id}"
                lines.append(
                    sample(
                        doc_id,
                        values,
                        filter_name=filter_name,
                        candidates=candidates,
                        text=question,
                    )
                )
        if log_samples:
            hashes[task] = digest(
                "".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in lines)
            )
            path = folder / f"samples_{task}_{date}.jsonl"
            path.write_text(
                "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in lines), "utf-8"
            )
    given = content.pop("config", {})
    whole = {
        "results": results,
        "group_subtasks": {task: [] for task in tasks},
        "configs": configs,
        "versions": {task: (versions or {}).get(task, 1.0) for task in tasks},
        "n-shot": dict.fromkeys(tasks, shots),
        "higher_is_better": better,
        "n-samples": counts,
        "config": {
            "model": "hf",
            "model_args": {"pretrained": name},
            "limit": None,
            "device": "cpu",
            "model_dtype": "torch.float32",
            "random_seed": 0,
            **given,
        },
        "date": 1767261600.0,
        "transformers_version": "5.24.0",
        "lm_eval_version": "0.4.13",
        "task_hashes": hashes,
        "model_source": "hf",
        "model_name": name,
        "total_evaluation_time_seconds": "12.5",
        **content,
    }
    file = folder / f"results_{date}.json"
    file.write_text(json.dumps(whole, indent=2, ensure_ascii=False), "utf-8")
    return file
