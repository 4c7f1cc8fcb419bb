"""lm-eval tasks for choosing settings: lm-eval's own requests, and the gold answers.

    task = load_dev_task("latentref_mathqa_mc_dev")
    task.requests[0].args, task.documents[0].gold

A task either offers candidates, of which one is right, or its answer is free text; then a document
has one request, its right answer. Settings are chosen on validation splits; test and training
splits are refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_latentref.benchmarks import documents
from lm_eval_latentref.benchmarks.documents import tasks_path
from lm_eval_latentref.checkpoints.questions import Hashes, hash_questions, normalise_question
from lm_eval_latentref.errors import LatentRefError


@dataclass(frozen=True)
class Document:
    """One document: which requests are its candidates, and which of them is right."""

    doc_id: int
    doc_hash: str
    """As in lm-eval's logged samples."""
    requests: tuple[int, ...]
    gold: int
    num_steps: int | None = None
    """Of its gold reasoning, where the document has `steps`."""


@dataclass(frozen=True, kw_only=True)
class DevTask:
    """A task's requests, in lm-eval's order."""

    name: str
    version: Any
    requests: list[Any]
    """lm-eval Instances; `args` is (context, continuation)."""
    is_free: bool
    """Whether answers are written freely: each request is then a right answer, to which the model's
    end-of-sequence token belongs."""
    documents: list[Document]
    splits: dict[str, dict[str, object]]
    """Identity of the data that was loaded for it, by split name; empty for a foreign task."""


def load_dev_task(
    name: str,
    *,
    limit: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    include_path: str | None = None,
    trained_on: Collection[str] = (),
    trained_questions: Hashes | None = None,
) -> DevTask:
    """The task called `name` for choosing settings: as `load_task`, but not with any documents.

    Args:
        limit, metadata, include_path, trained_on, trained_questions: as of `load_task`.

    Raises:
        LatentRefError: as `load_task`, or its documents are test documents.
    """
    task = _load(name, metadata, include_path)
    _check_split(name, task.task)
    return _unseen(task, limit, trained_on, trained_questions)


def load_task(
    name: str,
    *,
    limit: int | None = None,
    metadata: Mapping[str, Any] | None = None,
    include_path: str | None = None,
    trained_on: Collection[str] = (),
    trained_questions: Hashes | None = None,
) -> DevTask:
    """The task called `name`, ready to be asked, whatever split it is evaluated on.

    Args:
        limit: the first so many documents only.
        metadata: what lm-eval's `--metadata` takes, for generated sets.
        include_path: a folder of the user's own task files.
        trained_on: splits ("mathqa train") that the checkpoints learnt from.
        trained_questions: hashes of questions that they learnt from, of whatever file.

    Raises:
        LatentRefError: no such task, one with neither candidates nor an answer as text, or one
            whose documents were trained on.
    """
    return _unseen(_load(name, metadata, include_path), limit, trained_on, trained_questions)


@dataclass(frozen=True)
class _Task:
    """lm-eval's task and what was loaded for it."""

    name: str
    task: Any
    splits: dict[str, dict[str, object]]

    def asked(self, limit: int | None) -> DevTask:
        """Its requests: all candidates of each document, or its right answer if that is free."""
        task = self.task
        task.build_all_requests(limit=limit, rank=0, world_size=1)
        is_free = task.OUTPUT_TYPE == "generate_until"
        requests = [_gold(task, each) for each in task.instances] if is_free else task.instances
        return DevTask(
            name=self.name,
            version=task.VERSION,
            requests=list(requests),
            is_free=is_free,
            documents=_free_documents(task) if is_free else _documents(task),
            splits=self.splits,
        )


def _unseen(
    task: _Task, limit: int | None, trained_on: Collection[str], trained_questions: Hashes | None
) -> DevTask:
    """`task` ready to be asked; LatentRefError if a training saw its documents."""
    if seen := sorted(task.splits.keys() & set(trained_on)):
        raise LatentRefError(
            f"task={task.name}: the checkpoints were trained on its documents ({', '.join(seen)}); "
            "give a task on a split that no training saw"
        )
    asked = task.asked(limit)
    if trained_questions is not None:
        _check_questions(task.name, task.task, trained_questions)
    return asked


def _load(name: str, metadata: Mapping[str, Any] | None, include_path: str | None) -> _Task:
    with documents.recording() as splits:
        task = _find(name, metadata, include_path)
    if task.OUTPUT_TYPE not in ("multiple_choice", "generate_until"):
        raise LatentRefError(
            f"task={name} has neither candidates nor an answer to write (it is "
            f"{task.OUTPUT_TYPE}); give a task such as latentref_prosqa_mc_dev"
        )
    return _Task(name, task, splits)


def _find(name: str, metadata: Mapping[str, Any] | None, include_path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    folders = [str(tasks_path()), *([include_path] if include_path else [])]
    manager = TaskManager(
        include_path=folders, include_defaults=False, metadata=dict(metadata or {})
    )
    if name not in manager.all_tasks:
        allowed = [task for task in manager.all_tasks if task.endswith("_mc_dev")]
        raise LatentRefError(
            f"task={name}: there is no such task; give one of {', '.join(sorted(allowed))}, "
            "or the folder of your own task files as --include_path"
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
            f"task={name} is evaluated on its {split} split; settings are chosen on documents "
            "that neither training nor the final number sees: give a task whose name ends in _dev"
        )


def _check_questions(name: str, task: Any, trained: Hashes) -> None:
    asked = {request.doc_id: request.doc for request in task.instances}
    seen = [
        questions[0]
        for questions in (list(_questions(task, document)) for document in asked.values())
        if np.isin(hash_questions(questions), trained).any()
    ]
    if seen:
        first = " ".join(seen[0].split())[:60]
        raise LatentRefError(
            f"task={name}: the checkpoints were trained on {len(seen)} of its {len(asked)} "
            f"documents (the first begins {first!r}); give a task on questions that no training "
            "saw"
        )


def _questions(task: Any, document: Any) -> Iterator[str]:
    """Texts that may be a document's question: its prompt, then each field that occurs in it."""
    text = task.doc_to_text(document)
    fields = [value for value in document.values() if isinstance(value, str)]
    if not isinstance(text, str):  # the number of a choice, in tasks that fill a gap
        yield from fields
        return
    yield text
    shown = normalise_question(text)
    yield from (field for field in fields if normalise_question(field) in shown)


def _gold(task: Any, request: Any) -> Any:
    """The request for the log-likelihood of what `request` should have written."""
    target = task.doc_to_target(request.doc)
    if not isinstance(target, str) or not target:
        raise LatentRefError(
            f"task={task.config.task} document {request.doc_id}: its right answer ({target!r}) is "
            "no text; give a task whose doc_to_target is one"
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
        # A metric such as acc_mutual_info asks for more than the candidates; those come first.
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
