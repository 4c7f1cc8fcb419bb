"""Turns benchmark rows into the documents of our lm-eval tasks, and judges generated answers.

    documents("mathqa", "dev")[0]
    # {"Problem": ..., ..., "prompt": "...\\n", "answer_text": "### c", "choices": ["### a", ...],
    #  "gold": 2}

A document is the published row plus the fields that the task files use: `prompt` (the context), the
answer as text and, for multiple choice, the continuations and the index of the right one. The files
in the folder `tasks_path()` say which split is scored how.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval_latentref.benchmarks.generators import generate
from lm_eval_latentref.benchmarks.prosqa_letters import lettered
from lm_eval_latentref.benchmarks.rows import BENCHMARKS, harness_choices, harness_example
from lm_eval_latentref.benchmarks.splits import load_split
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import answer_text, extract_answer, prompt

Document = dict[str, Any]

Splits = dict[str, dict[str, object]]
"""Task data by "name split": its origin, and what identifies it."""


class DataOfEvaluations:
    """The data of each evaluation in this process: the data loaded since the last report."""

    def __init__(self) -> None:
        self._loaded: Splits = {}
        self._reported: Splits = {}

    def add(self, split: str, identity: dict[str, object]) -> None:
        """Record that documents of `split` were made, for the next evaluation."""
        self._loaded[split] = identity

    def expect(self, splits: Splits) -> None:
        """Record that the next evaluation is of tasks built before, on the data of `splits`."""
        self._loaded = dict(splits)

    def report(self) -> Splits:
        """The data of the evaluation that ends here.

        If nothing was loaded for it, it has the same tasks as the evaluation before.
        """
        if self._loaded:
            self._reported, self._loaded = self._loaded, {}
        return dict(self._reported)


of_evaluations = DataOfEvaluations()

_recordings: list[Splits] = []


@contextmanager
def recording() -> Iterator[Splits]:
    """Yields a record of the data of all documents that are made in this block."""
    splits: Splits = {}
    _recordings.append(splits)
    try:
        yield splits
    finally:
        _recordings.pop()


def _record(split: str, identity: dict[str, object]) -> None:
    of_evaluations.add(split, identity)
    for splits in _recordings:
        splits[split] = identity


def documents(name: str, split: str) -> list[Document]:
    """The documents of benchmark `name`'s `split` ("test", "dev" or "train")."""
    loaded = load_split(name, split)
    _record(f"{name} {split}", loaded.identity())
    return [document(name, row) for row in loaded.rows]


def generated_documents(
    name: str = "prosqa_generated",
    *,
    num: int,
    seed: int,
    split: str = "test",
    options: Mapping[str, Any] | None = None,
) -> list[Document]:
    """Documents made by the generator `name` with its `options`."""
    # `latentref train` records these tasks by the same name.
    identity = {"origin": "generated", "rows": num, "seed": seed, **(options or {})}
    _record(f"{name} {split}", identity)
    given = json.dumps(options or {}, sort_keys=True, default=repr)
    return [dict(made) for made in _generated_documents(name, num, seed, split, given)]


def lettered_documents(split: str) -> list[Document]:
    """The published ProsQA problems of `split` with their graphs written in letters."""
    loaded = load_split("prosqa", split)
    _record(f"prosqa_letters {split}", loaded.identity())
    return [_generated_document("prosqa_letters", lettered(row)) for row in loaded.rows]


def harness_documents(split: str) -> list[Document]:
    """MathQA as in lm-eval's own `mathqa`: the bare problem, and the choices its parser returns."""
    loaded = load_split("mathqa", split)
    _record(f"mathqa {split}", loaded.identity())
    return [_harness_document(row) for row in loaded.rows]


def document(name: str, row: Mapping[str, Any]) -> Document:
    """One row of benchmark `name`, with the fields that its tasks read."""
    benchmark = BENCHMARKS[name]
    example = benchmark.example(row)
    made = {
        **row,
        "prompt": prompt(example.question),
        "answer_text": answer_text(example.answer),
    }
    if candidates := benchmark.candidates(row):
        made["choices"] = [answer_text(candidate) for candidate in candidates]
        made["gold"] = candidates.index(example.answer)
    return made


def exact_match(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """lm-eval's `process_results`: 1 if the answer in the generated text is the gold one."""
    gold = extract_answer(document["answer_text"])
    return {"exact_match": float(extract_answer(results[0]) == gold)}


@lru_cache(maxsize=16)
def _generated_documents(
    name: str, num: int, seed: int, split: str, options: str
) -> tuple[Document, ...]:
    """The documents, made once: each evaluation loads its task anew, and thousands take seconds."""
    rows = generate(name, num, seed=seed, split=split, options=json.loads(options))
    return tuple(_generated_document(name, row) for row in rows)


def _generated_document(name: str, row: Mapping[str, Any]) -> Document:
    if name == "prosqa_generated":
        return document("prosqa", row)
    candidates = row["candidates"]
    return {
        **row,
        "prompt": prompt(row["question"]),
        "answer_text": answer_text(row["answer"]),
        "choices": [answer_text(candidate) for candidate in candidates],
        "gold": candidates.index(row["answer"]),
    }


def _harness_document(row: dict[str, Any]) -> Document:
    harness_example(row)  # raises on a malformed row
    choices = harness_choices(row["options"])
    return {**row, "choices": choices, "gold": "abcde".index(row["correct"])}


def tasks_path() -> Path:
    """The folder of the task YAML files: in an installed wheel or, else, in the checkout.

    Raises:
        LatentRefError: it is in neither place, so the installation is incomplete.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "task_configs", package.parent / "task_configs"):
        if (folder / "utils.py").is_file():
            return folder
    raise LatentRefError(
        f"no task_configs folder in {package} or beside it: reinstall lm-eval-latentref"
    )


def include_paths(given: str | Sequence[str] | None) -> list[str]:
    """Our task folder, then the user's, whose tasks replace ours of the same name.

    Raises LatentRefError for a folder that is not there: lm-eval would go on without it.
    """
    users = [] if given is None else [given] if isinstance(given, str) else list(given)
    for folder in users:
        if not Path(folder).is_dir():
            raise LatentRefError(f"--include_path {folder}: there is no such folder of task files")
    ours = str(tasks_path())
    return [ours, *(path for path in users if path != ours)]
