"""Reads and writes baseline accuracies in a YAML file, in the format of vLLM's accuracy tests.

    baseline = read_baseline("baseline.yaml")
    baseline.metrics[0].task, baseline.metrics[0].metric, baseline.metrics[0].value

    model_name: my/model             # for people; the candidate may be another model
    tasks:
    - name: gsm8k
      metrics:
      - name: exact_match,strict-match
        value: 0.753
        max_drop: 0.02               # our extension: absolute, in place of rtol
        stderr: 0.014                # our extension: for the interval in the report
    limit: 1000
    num_fewshot: 5
    rtol: 0.08

Other keys of the file (`env_vars`, `max_model_len`, ...) are ignored and kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lm_eval_latentref.checkpoints.files import read_yaml, reading, write_text
from lm_eval_latentref.errors import LatentRefError

DEFAULT_RTOL = 0.08
"""vLLM's tolerance, for files without one."""

_ADVICE = "give a file as docs/check.md describes it"
_KEYS = ("name", "value", "stderr", "max_drop")


@dataclass(frozen=True, kw_only=True)
class ExpectedMetric:
    """One accuracy of the file."""

    task: str
    metric: str
    """lm-eval's name of metric and filter: "acc,none"."""
    value: float
    stderr: float | None = None
    max_drop: float | None = None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A baseline file."""

    name: str
    metrics: tuple[ExpectedMetric, ...]
    rtol: float | None = None
    atol: float | None = None
    num_fewshot: int | None = None
    """None if it is not compared."""
    limit: float | None = None
    names_limit: bool = False
    """Whether the file has a `limit`; null there means all documents."""

    def tolerance(self, expected: ExpectedMetric, max_drop: float | None) -> float:
        """The accepted drop: the first given of `max_drop`, the metric's own, `atol` and `rtol`."""
        for absolute in (max_drop, expected.max_drop, self.atol):
            if absolute is not None:
                return absolute
        return abs(expected.value) * (DEFAULT_RTOL if self.rtol is None else self.rtol)


def read_baseline(path: Path) -> Baseline:
    """Reads a baseline file.

    Raises:
        LatentRefError: the file cannot be read, or does not have this format.
    """
    content = read_yaml(path, _ADVICE)
    with reading(path, _ADVICE):
        return _baseline(path, content)


def _baseline(path: Path, content: Mapping[str, Any]) -> Baseline:
    metrics = tuple(_metrics(path, content))
    if not metrics:
        raise LatentRefError(f"{path}: names no metric under `tasks`; {_ADVICE}")
    return Baseline(
        name=str(path),
        metrics=metrics,
        rtol=_number(path, content, "rtol", least=0.0),
        atol=_number(path, content, "atol", least=0.0),
        num_fewshot=_whole(path, content, "num_fewshot"),
        limit=_number(path, content, "limit", least=0.0),
        names_limit="limit" in content,
    )


Values = Mapping[tuple[str, str], Mapping[str, float]]
"""By task and metric: `value` and, if it is known, `stderr`."""


def write_baseline(path: Path, values: Values, head: Mapping[str, Any]) -> None:
    """Writes a new file with `values` and the further keys in `head`."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for (task, metric), numbers in values.items():
        tasks.setdefault(task, []).append({"name": metric, **numbers})
    listed = [{"name": task, "metrics": metrics} for task, metrics in tasks.items()]
    text = yaml.safe_dump({**head, "tasks": listed}, sort_keys=False)
    write_text(path, text)


def replace_values(path: Path, values: Values) -> None:
    """Replaces the values in the file by `values`; its comments and order stay as they are.

    Raises LatentRefError if the file shares values by anchors, aliases or merge keys.
    """
    try:
        text = _replaced(path.read_text(encoding="utf-8"), values)
        written = _metrics(path, yaml.safe_load(text))
        is_whole = all(m.value == values[m.task, m.metric]["value"] for m in written)
    except (StopIteration, yaml.YAMLError):
        is_whole = False
    if not is_whole:
        raise LatentRefError(
            f"{path} is not updated: it shares values by an anchor, an alias or a merge key; "
            "write each value out"
        )
    write_text(path, text)


def _replaced(text: str, values: Values) -> str:
    spans = []
    for task in _child(yaml.compose(text), "tasks").value:
        for metric in _child(task, "metrics").value:
            names = _child(task, "name").value, _child(metric, "name").value
            # The old standard error goes with the old value, so it becomes null without a new one.
            numbers: dict[str, float | None] = {"stderr": None, **values[names]}
            for key, node in metric.value:
                if key.value in numbers:
                    new = yaml.safe_dump(numbers[key.value]).split()[0]
                    spans.append((node.start_mark.index, node.end_mark.index, new))
    for start, end, new in sorted(spans, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _metrics(path: Path, content: Mapping[str, Any]) -> Iterator[ExpectedMetric]:
    for task in _named(path, content, "tasks"):
        for metric in _named(path, task, "metrics"):
            if unknown := sorted(map(str, metric.keys() - set(_KEYS))):
                raise LatentRefError(
                    f"{path}: {task['name']} {metric['name']} has {', '.join(unknown)}; a metric "
                    f"may have {', '.join(_KEYS)}"
                )
            value = _number(path, metric, "value")
            if value is None:
                raise LatentRefError(f"{path}: {task['name']} {metric['name']} has no value")
            yield ExpectedMetric(
                task=task["name"],
                metric=metric["name"],
                value=value,
                stderr=_number(path, metric, "stderr", least=0.0),
                max_drop=_number(path, metric, "max_drop", least=0.0),
            )


def _named(path: Path, content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The list under `key`; raises LatentRefError unless its entries are mappings with a name."""
    entries = content.get(key)
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise LatentRefError(
                f"{path}: `{key}` must be a list of mappings, each with a `name`; {_ADVICE}"
            )
    return entries or []


def _number(
    path: Path, content: Mapping[str, Any], key: str, *, least: float = -math.inf
) -> float | None:
    value = content.get(key)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < least:
        allowed = "a number" if least < 0 else f"a number of at least {least:g}"
        raise LatentRefError(f"{path}: {key}: {value!r} must be {allowed}")
    return float(value)


def _whole(path: Path, content: Mapping[str, Any], key: str) -> int | None:
    value = _number(path, content, key, least=0.0)
    if value is not None and not value.is_integer():
        raise LatentRefError(f"{path}: {key}: {value!r} must be a whole number")
    return None if value is None else int(value)


def _child(node: Any, key: str) -> Any:
    """The node of `key` in a YAML mapping."""
    return next(value for name, value in node.value if name.value == key)
