"""Loads lm-eval tasks for sweeps: lm-eval's own requests, and the gold answers.

    task = load_task("latentref_mathqa_mc_dev", tuning=True)
    task.requests[0].args, task.documents[0].gold

A task either offers candidates, one of which is right, or takes free text; in the second case, each
document has one request: its right answer. Settings are chosen on validation splits only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_latentref.benchmarks import documents
from lm_eval_latentref.benchmarks.documents import include_paths
from lm_eval_latentref.checkpoints.questions import Hashes, hash_questions, normalise_question
from lm_eval_latentref.errors import LatentRefError


@dataclass(frozen=True)
class Document:
    """One document of a task."""

    doc_id: int
    doc_hash: str
    """lm-eval's hash, as in logged samples."""
    requests: tuple[int, ...]
    """Indices of its requests in `DevTask.requests`, one for each candidate."""
    gold: int
    """Index of the right candidate."""
    num_steps: int | None = None
    """The number of its gold reasoning steps, if the document has `steps`."""


@dataclass(frozen=True, kw_only=True)
class DevTask:
    """A task's requests, in lm-eval's order."""

    name: str
    version: Any
    requests: list[Any]
    """lm-eval Instances; `args` is (context, continuation)."""
    is_free: bool
    """Whether answers are free text: each request is then a right answer, which ends with the
    model's end-of-sequence token."""
    documents: list[Document]
    splits: dict[str, dict[str, object]]
    """Identity of the loaded data by split name; empty for a user's own task."""


def load_task(
    name: str,
    *,
    tuning: bool = False,
    limit: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    include_path: str | None = None,
    trained_on: Collection[str] = (),
    trained_questions: Hashes | None = None,
) -> DevTask:
    """The task called `name` with its requests.

    Args:
        tuning: whether settings will be chosen on the task; if so, test documents are refused.
        limit: only the first `limit` documents.
        metadata: values of lm-eval's `--metadata`, for generated tasks.
        include_path: a folder of the user's own task files.
        trained_on: splits ("mathqa train") that the checkpoints were trained on.
        trained_questions: hashes of the questions that they were trained on.

    Raises:
        LatentRefError: there is no such task, it has neither candidates nor text answers, the
            checkpoints were trained on its documents, or these are test documents.
    """
    with documents.of_evaluations.recording() as splits:
        task = _find(name, metadata, include_path)
    if task.OUTPUT_TYPE not in ("multiple_choice", "generate_until"):
        raise LatentRefError(
            f"task={name} has neither candidates nor text answers (its output_type is "
            f"{task.OUTPUT_TYPE}); give a task such as latentref_prosqa_mc_dev"
        )
    if tuning:
        _check_split(name, task)
    if seen := sorted(splits.keys() & set(trained_on)):
        raise LatentRefError(
            f"task={name}: the checkpoints were trained on its documents ({', '.join(seen)}); "
            "give a task on a split that no training saw"
        )
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    if trained_questions is not None:
        _check_questions(name, task, trained_questions)
    is_free = task.OUTPUT_TYPE == "generate_until"
    return DevTask(
        name=name,
        version=task.VERSION,
        requests=[_gold(task, request) if is_free else request for request in task.instances],
        is_free=is_free,
        documents=_free_documents(task) if is_free else _documents(task),
        splits=splits,
    )


def _find(name: str, metadata: Mapping[str, Any] | None, include_path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=include_paths(include_path),
        include_defaults=False,
        metadata=dict(metadata or {}),
    )
    if name not in manager.all_tasks:
        allowed = [task for task in manager.all_tasks if task.endswith("_mc_dev")]
        raise LatentRefError(
            f"task={name}: there is no such task; give one of {', '.join(sorted(allowed))}, "
            "or --include_path with the folder of your own task files"
        )
    tasks = manager.load([name])["tasks"]
    if name not in tasks:
        raise LatentRefError(
            f"task={name} is a group; settings are chosen on one task: {', '.join(tasks)}"
        )
    return tasks[name]


def _check_split(name: str, task: Any) -> None:
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    if task.has_test_docs() or split in ("test", "train", None):
        raise LatentRefError(
            f"task={name} is evaluated on its {split} split; settings must be chosen on documents "
            "that are used neither in training nor in the final test: give a task whose name ends "
            "in _dev"
        )


def _check_questions(name: str, task: Any, trained: Hashes) -> None:
    by_id = {request.doc_id: request.doc for request in task.instances}
    seen = [
        questions[0]
        for questions in (list(_questions(task, document)) for document in by_id.values())
        if np.isin(hash_questions(questions), trained).any()
    ]
    if seen:
        first = " ".join(seen[0].split())[:60]
        raise LatentRefError(
            f"task={name}: the checkpoints were trained on {len(seen)} of its {len(by_id)} "
            f"documents (the first begins {first!r}); give a task on questions that no training "
            "saw"
        )


def _questions(task: Any, document: Any) -> Iterator[str]:
    """Texts that may be the document's question: its prompt, then each field within the prompt."""
    text = task.doc_to_text(document)
    fields = [value for value in document.values() if isinstance(value, str)]
    if not isinstance(text, str):  # in tasks that fill a gap, the index of a choice
        yield from fields
        return
    yield text
    shown = normalise_question(text)
    yield from (field for field in fields if normalise_question(field) in shown)


def _gold(task: Any, request: Any) -> Any:
    """A request for the log-likelihood of the right answer to `request`."""
    target = task.doc_to_target(request.doc)
    if not isinstance(target, str) or not target:
        raise LatentRefError(
            f"task={task.config.task} document {request.doc_id}: its right answer ({target!r}) is "
            "not text; give a task whose doc_to_target is text"
        )
    text = task.config.target_delimiter + target
    return dataclasses.replace(
        request, request_type="loglikelihood", arguments=(request.args[0], text)
    )


def _free_documents(task: Any) -> list[Document]:
    return [
        Document(request.doc_id, _hash(request.doc), (number,), 0, _num_steps(request.doc))
        for number, request in enumerate(task.instances)
    ]


def _documents(task: Any) -> list[Document]:
    members: dict[int, list[int]] = {}
    for number, request in enumerate(task.instances):
        members.setdefault(request.doc_id, []).append(number)
    documents = []
    for doc_id, numbers in members.items():
        document = task.instances[numbers[0]].doc
        choices, gold = task.doc_to_choice(document), task.doc_to_target(document)
        gold = choices.index(gold) if isinstance(gold, str) else gold
        if not isinstance(gold, int) or not 0 <= gold < len(choices):
            raise LatentRefError(
                f"task={task.config.task} document {doc_id}: its right answer ({gold!r}) is not "
                f"one of its {len(choices)} candidates; leave it out of the task"
            )
        # Metrics such as acc_mutual_info add further requests after those for the candidates.
        candidates = tuple(numbers[: len(choices)])
        steps = _num_steps(document)
        documents.append(Document(doc_id, _hash(document), candidates, gold, steps))
    return documents


def _num_steps(document: Any) -> int | None:
    steps = document.get("steps")
    return len(steps) if isinstance(steps, list) else None


def _hash(document: Any) -> str:
    from lm_eval.utils import handle_non_serializable, hash_string

    return hash_string(
        json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)
    )
