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
    """One logged sample; candidate 0 is the gold one, and the likeliest if acc is 1."""
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
        tasks: by task and metric ("acc", or "acc,FILTER"), the value of each document.
        stderr: the standard error of every metric; None for the one that lm-eval computes.
        order: the order of the samples in their file (several processes log 0, 2, 4, 1, 3).
        text: what every question begins with, before its number.
        content: further or other fields of the results file; `config` extends the usual one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for task, metrics in tasks.items() if log_samples else ():
        samples = _samples(task, metrics, candidates=candidates, order=order, text=text)
        hashes[task] = _write_samples(folder / f"samples_{task}_{date}.jsonl", samples)
    file_content = {
        **_results(tasks, candidates, stderr, versions or {}, shots, available),
        **_about_run(name, content.pop("config", {})),
        "task_hashes": hashes,
        **content,
    }
    file = folder / f"results_{date}.json"
    file.write_text(json.dumps(file_content, indent=2, ensure_ascii=False), "utf-8")
    return file


def _results(
    tasks: Mapping[str, Mapping[str, Sequence[Any]]],
    candidates: int,
    stderr: Any,
    versions: Mapping[str, Any],
    shots: int,
    available: int | None,
) -> dict[str, Any]:
    """The fields of a results file that have an entry for each task."""
    nums = {task: len(next(iter(metrics.values()))) for task, metrics in tasks.items()}
    return {
        "results": {task: _scores(task, metrics, stderr) for task, metrics in tasks.items()},
        "group_subtasks": {task: [] for task in tasks},
        "configs": {task: _config(task, candidates) for task in tasks},
        "versions": {task: versions.get(task, 1.0) for task in tasks},
        "n-shot": dict.fromkeys(tasks, shots),
        "higher_is_better": {
            task: {_split(key)[0]: True for key in metrics} for task, metrics in tasks.items()
        },
        "n-samples": {
            task: {"original": available or num, "effective": num} for task, num in nums.items()
        },
    }


def _about_run(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a results file that are of the whole run."""
    return {
        "config": {
            "model": "hf",
            "model_args": {"pretrained": name},
            "limit": None,
            "device": "cpu",
            "model_dtype": "torch.float32",
            "random_seed": 0,
            **config,
        },
        "date": 1767261600.0,
        "transformers_version": "5.24.0",
        "lm_eval_version": "0.4.13",
        "model_source": "hf",
        "model_name": name,
        "total_evaluation_time_seconds": "12.5",
    }


def _split(key: str) -> tuple[str, str]:
    metric, _, filter_name = key.partition(",")
    return metric, filter_name or "none"


def _scores(task: str, metrics: Mapping[str, Sequence[Any]], stderr: Any) -> dict[str, Any]:
    """The means and standard errors in the results of `task`."""
    scores: dict[str, Any] = {"alias": task}
    for key, values in sorted(metrics.items(), key=lambda item: _split(item[0])[1]):
        metric, filter_name = _split(key)
        numbers = [v if isinstance(v, int | float) else float(len(v)) for v in values]
        mean, num = sum(numbers) / len(numbers), len(numbers)
        spread = sum((v - mean) ** 2 for v in numbers) / max(1, num - 1)
        scores[f"{metric},{filter_name}"] = mean
        own = (spread / num) ** 0.5 if stderr is None else stderr
        scores[f"{metric}_stderr,{filter_name}"] = own
    return scores


def _config(task: str, candidates: int) -> dict[str, Any]:
    output_type = "multiple_choice" if candidates > 1 else "generate_until"
    return {"task": task, "output_type": output_type, "metadata": {"version": 1.0}}


def _samples(
    task: str,
    metrics: Mapping[str, Sequence[Any]],
    *,
    candidates: int,
    order: Sequence[int] | None,
    text: str,
) -> list[dict[str, Any]]:
    """The samples of `task`, one filter after another."""
    by_filter: dict[str, dict[str, Sequence[Any]]] = {}
    for key, values in metrics.items():
        metric, filter_name = _split(key)
        by_filter.setdefault(filter_name, {})[metric] = values
    num = len(next(iter(metrics.values())))
    return [
        sample(
            doc_id,
            {metric: values[doc_id] for metric, values in own.items()},
            filter_name=filter_name,
            candidates=candidates,
            text=f"{text}{task} {doc_id}",
        )
        for filter_name, own in sorted(by_filter.items())
        for doc_id in order or range(num)
    ]


def _write_samples(path: Path, samples: Sequence[Mapping[str, Any]]) -> str:
    """Writes a samples file; returns lm-eval's hash of it."""
    lines = [json.dumps(values, ensure_ascii=False) + "\n" for values in samples]
    path.write_text("".join(lines), "utf-8")
    names = ("doc_hash", "prompt_hash", "target_hash")
    return digest("".join(values[name] for values in samples for name in names))
