"""The functions that the task files call: data sets, and the scoring of generated answers.

lm-eval passes a task's whole metadata, including the model arguments; `_unused` takes the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets

from lm_eval_latentref.benchmarks import documents
from lm_eval_latentref.harness.protocol_task import ProtocolTask, RecordedTask

exact_match = documents.exact_match
protocol_task = ProtocolTask
recorded_task = RecordedTask


def benchmark_split(*, benchmark: str, split: str, **_unused: Any) -> dict[str, datasets.Dataset]:
    return {split: datasets.Dataset.from_list(documents.documents(benchmark, split))}


def prosqa_letters_split(*, split: str, **_unused: Any) -> dict[str, datasets.Dataset]:
    return {split: datasets.Dataset.from_list(documents.lettered_documents(split))}


def mathqa_harness_split(*, split: str, **_unused: Any) -> dict[str, datasets.Dataset]:
    return {split: datasets.Dataset.from_list(documents.harness_documents(split))}


def generated_split(
    *,
    split: str,
    num_documents: int,
    generator_seed: int,
    generator: str = "prosqa_generated",
    generator_options: Mapping[str, Any] | None = None,
    **_unused: Any,
) -> dict[str, datasets.Dataset]:
    rows = documents.generated_documents(
        generator,
        num=num_documents,
        seed=generator_seed,
        split=split,
        options=generator_options,
    )
    return {split: datasets.Dataset.from_list(rows)}
