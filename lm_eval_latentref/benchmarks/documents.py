"""Turns benchmark rows into the documents of our lm-eval tasks, and scores generated answers.

    documents("mathqa", "dev")[0]
    # {"Problem": ..., ..., "prompt": "...\\n", "answer_text": "### c", "choices": ["### a", ...],
    #  "gold": 2}

A document is a published row with additional fields for the task files: `prompt` (the context),
`answer_text` and, for multiple choice, `choices` (the continuations) and `gold` (the index of the
right choice). The task files are in the folder `tasks_path()`.
"""

from __future__ import annotations

import json
import threading
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
"""For each "NAME SPLIT", the origin of the data and its identity, as JSON values."""


class DataOfEvaluations(threading.local):
    """The data that each evaluation has used; each thread runs and records its own evaluations.

    A task records what it loads while it is built (`recording`), and adds it to the data of the
    thread that evaluates it (`use`).
    """

    def __init__(self) -> None:
        self._recordings: list[Splits] = []
        self._used: Splits = {}

    def loaded(self, split: str, identity: dict[str, object]) -> None:
        """Record that documents of `split` were loaded."""
        for splits in self._recordings:
            splits[split] = identity

    @contextmanager
    def recording(self) -> Iterator[Splits]:
        """Yield a dict that gains the data of all documents loaded in this block."""
        splits: Splits = {}
        self._recordings.append(splits)
        try:
            yield splits
        finally:
            self._recordings.pop()

    def use(self, splits: Splits) -> None:
        """Record that a task on the data of `splits` was evaluated."""
        self._used.update(splits)

    def begin(self) -> None:
        """Forget what earlier evaluations used; those of other models do not call `report`."""
        self._used = {}

    def report(self) -> Splits:
        """The data of all tasks evaluated since the last report or `begin`."""
        used, self._used = self._used, {}
        return used


of_evaluations = DataOfEvaluations()


def documents(name: str, split: str) -> list[Document]:
    """The documents of a split ("test", "dev" or "train") of benchmark `name`.

    Raises the errors of `splits.load`.
    """
    loaded = load_split(name, split)
    of_evaluations.loaded(f"{name} {split}", loaded.identity())
    return [document(name, row) for row in loaded.rows]


def generated_documents(
    name: str = "prosqa_generated",
    *,
    num: int,
    seed: int,
    split: str = "test",
    options: Mapping[str, Any] | None = None,
) -> list[Document]:
    """Documents of `num` problems from a generator.

    Args:
        name: a key of `generators.GENERATORS`.
        options: the generator's options.

    Raises:
        LatentRefError: an argument is unknown or out of range.
    """
    options = {} if options is None else options
    _check_metadata(num, seed, options)
    # `latentref train` records generated data under the same name.
    identity = {"origin": "generated", "rows": num, "seed": seed, **options}
    of_evaluations.loaded(f"{name} {split}", identity)
    text = json.dumps(options, sort_keys=True, default=repr)
    return [dict(generated) for generated in _generated_documents(name, num, seed, split, text)]


def _check_metadata(num: Any, seed: Any, options: Any) -> None:
    if type(num) is not int or num < 1:
        raise LatentRefError(f"num_documents={num!r}: give an integer, 1 or more")
    if type(seed) is not int:
        raise LatentRefError(f"generator_seed={seed!r}: give an integer")
    if not isinstance(options, Mapping):
        raise LatentRefError(
            f'generator_options={options!r}: give an object, such as {{"nodes": 18}}'
        )


def lettered_documents(split: str) -> list[Document]:
    """The published ProsQA problems of a split, with letters in place of names."""
    loaded = load_split("prosqa", split)
    of_evaluations.loaded(f"prosqa_letters {split}", loaded.identity())
    return [_generated_document("prosqa_letters", lettered(row)) for row in loaded.rows]


def harness_documents(split: str) -> list[Document]:
    """MathQA as in lm-eval's own `mathqa` task: the bare problem, and choices parsed in its way."""
    loaded = load_split("mathqa", split)
    of_evaluations.loaded(f"mathqa {split}", loaded.identity())
    return [_harness_document(row) for row in loaded.rows]


def document(name: str, row: Mapping[str, Any]) -> Document:
    """A row of benchmark `name` with the additional fields that its tasks read."""
    benchmark = BENCHMARKS[name]
    example = benchmark.example(row)
    result = {
        **row,
        "prompt": prompt(example.question),
        "answer_text": answer_text(example.answer),
    }
    if candidates := benchmark.candidates(row):
        result["choices"] = [answer_text(candidate) for candidate in candidates]
        result["gold"] = candidates.index(example.answer)
    return result


def exact_match(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`process_results` for lm-eval: 1 if the generated answer equals the gold answer, else 0."""
    gold = extract_answer(document["answer_text"])
    return {"exact_match": float(extract_answer(results[0]) == gold)}


@lru_cache(maxsize=16)
def _generated_documents(
    name: str, num: int, seed: int, split: str, options: str
) -> tuple[Document, ...]:
    """Generated documents, cached: they take seconds, and each evaluation loads its task again."""
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
    """The folder of the task files: in the package if it was installed from a wheel, or beside it.

    Raises:
        LatentRefError: there is no such folder, so the installation is incomplete.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "task_configs", package.parent / "task_configs"):
        if (folder / "utils.py").is_file():
            return folder
    raise LatentRefError(
        f"no task_configs folder in {package} or beside it: reinstall lm-eval-latentref"
    )


def include_paths(given: str | Sequence[str] | None) -> list[str]:
    """Our task folder, followed by the user's folders, whose tasks replace ours of the same name.

    Raises LatentRefError for a folder that does not exist; lm-eval would ignore it.
    """
    folders = [] if given is None else [given] if isinstance(given, str) else list(given)
    for folder in folders:
        if not Path(folder).is_dir():
            raise LatentRefError(f"--include_path {folder}: there is no such folder of task files")
    ours = str(tasks_path())
    return [ours, *(path for path in folders if path != ours)]
