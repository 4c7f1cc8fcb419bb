"""Reads lm-eval's logged samples: whole samples, or quickly their scores alone.

    samples = read_samples(Path("samples_mathqa_2026-01-01T11-00-00.5.jsonl"))
    samples.columns["none"].values["acc"]        # array of N numbers, ordered by document
    for sample in iterate(path): ...             # whole samples as dicts, one line at a time
    read_at(path, [0, 52_133])                   # the samples at these byte offsets

`read_samples` parses only the fields that scores need, because prompts and answers are most of the
bytes: gigabytes take seconds, and only a few numbers per document stay in memory. lm-eval 0.4.8 and
later write these fields last; a line in another order is parsed whole.

Array suffix: N documents, ordered by `doc_id`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_latentref.checkpoints.files import reading
from lm_eval_latentref.errors import LatentRefError

SAMPLES_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")
"""The names of files that `--log_samples` writes."""
METRICS = ("acc", "exact_match")
"""The default metrics; the first that a task has is compared."""

_MAX_CHARACTERS = 60
_FIRST = b'{"doc_id": '
_LAST = b', "filter": '  # always a key: inside a string its quotes would be escaped
_REQUEST = b', "gen_args_'
_FIELDS = frozenset(
    [
        "doc_id",
        "doc",
        "target",
        "arguments",
        "resps",
        "filtered_resps",
        "filter",
        "metrics",
        "doc_hash",
        "prompt_hash",
        "target_hash",
    ]
)
"""The fields of a sample that are not metrics."""

ADVICE = "give a file that `lm_eval --log_samples` wrote"


@dataclass(frozen=True, kw_only=True)
class Column:
    """The scores of one filter in a samples file."""

    doc_ids: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    """For each document, the first 64 bits of lm-eval's hash; 0 if none was recorded."""
    offsets: NDArray[np.int64]
    """The byte at which each sample begins in the file."""
    num_requests: NDArray[np.int64]
    """The number of requests of each document; for tasks that score candidates, one for each."""
    values: Mapping[str, NDArray[np.float64]]
    """For each metric, one number per document."""
    unpaired: tuple[str, ...]
    """Metrics whose value for a document is not a number but a pair, a list or a text."""

    def same_documents(self, other: Column) -> bool:
        """Whether there are common documents and none of them has two different hashes."""
        _, places_N, other_places_N = np.intersect1d(
            self.doc_ids, other.doc_ids, assume_unique=True, return_indices=True
        )
        first_N, second_N = self.hashes[places_N], other.hashes[other_places_N]
        is_same_N = (first_N == second_N) | (first_N == 0) | (second_N == 0)
        return bool(places_N.size and np.all(is_same_N))


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The scores in a samples file."""

    file: Path
    columns: Mapping[str, Column]
    """The scores by filter."""
    task_hash: str
    """The hash of the samples, as in lm-eval's `task_hashes`."""


@dataclass
class _Builder:
    doc_ids: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    num_requests: list[int] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, sample: Mapping[str, Any], offset: int, num_requests: int) -> None:
        self.doc_ids.append(sample["doc_id"])
        self.hashes.append(int(str(sample.get("doc_hash") or "0")[:16], 16))
        self.offsets.append(offset)
        self.num_requests.append(num_requests)
        for metric in metric_names(sample):
            self.values.setdefault(metric, []).append(sample.get(metric))

    def column(self, file: Path) -> Column:
        ids_N = np.array(self.doc_ids, dtype=np.int64)
        order_N = np.argsort(ids_N, kind="stable")
        ids_N = ids_N[order_N]
        if (twice_N := ids_N[1:][ids_N[1:] == ids_N[:-1]]).size:
            raise LatentRefError(
                f"{file}: document {twice_N[0]} occurs twice; a file must hold one run"
            )
        values = {
            metric: np.array(values, dtype=np.float64)[order_N]
            for metric, values in self.values.items()
            if len(values) == len(ids_N) and all(isinstance(v, int | float) for v in values)
        }
        for metric, values_N in values.items():
            if not np.isfinite(values_N).all():
                bad = ids_N[~np.isfinite(values_N)][0]
                raise LatentRefError(f"{file}: {metric} of document {bad} is not a finite number")
        return Column(
            doc_ids=ids_N,
            hashes=np.array(self.hashes, dtype=np.uint64)[order_N],
            offsets=np.array(self.offsets, dtype=np.int64)[order_N],
            num_requests=np.array(self.num_requests, dtype=np.int64)[order_N],
            values=values,
            unpaired=tuple(metric for metric in self.values if metric not in values),
        )


def read_samples(file: Path) -> Samples:
    """The scores in a samples file.

    Raises:
        LatentRefError: a line is not a sample (the message has its number), a document occurs
            twice, a number is not finite, or there are no samples.
    """
    builders: dict[str, _Builder] = {}
    task_hash = hashlib.sha256()
    offset = 0
    for number, line in _lines(file):
        sample = _scores(line) or parse(line, file, number)
        try:
            builder = builders.setdefault(str(sample.get("filter", "none")), _Builder())
            # The keys of all requests but the first follow a comma. acc_mutual_info scores every
            # candidate twice, the second time without context.
            requests = (line.count(_REQUEST) + 1) // (2 if is_mutual(sample) else 1)
            builder.add(sample, offset, requests)
        except (TypeError, ValueError) as error:
            raise _no_sample(file, number, error) from error
        hashes = (sample.get(name) for name in ("doc_hash", "prompt_hash", "target_hash"))
        task_hash.update("".join(str(value) for value in hashes).encode("utf-8", "replace"))
        offset += len(line)
    if not builders:
        raise LatentRefError(f"{file} is empty; {ADVICE}")
    with reading(file, ADVICE):
        columns = {name: builder.column(file) for name, builder in builders.items()}
    return Samples(file=file, columns=columns, task_hash=task_hash.hexdigest())


def iterate(file: Path) -> Iterator[dict[str, Any]]:
    """Each sample of a file as a dict with at least `doc_id` and `filter`, in the file's order.

    Raises LatentRefError, with the line's number, if a line is not a sample.
    """
    for number, line in _lines(file):
        yield parse(line, file, number)


def read_at(file: Path, offsets: Sequence[int]) -> list[dict[str, Any]]:
    """The samples that begin at these byte offsets, as in `Column.offsets`."""
    with file.open("rb") as lines:
        samples = []
        for offset in offsets:
            lines.seek(offset)
            samples.append(parse(lines.readline(), file, 0))
        return samples


def parse(line: bytes, file: Path, number: int) -> dict[str, Any]:
    """A whole sample from its line; raises LatentRefError with `file` and line `number`."""
    try:
        sample = {"filter": "none", **json.loads(line)}
        if type(sample["doc_id"]) is not int:
            raise ValueError(f"doc_id {sample['doc_id']!r} is not an integer")
        return sample
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_sample(file, number, error) from error


def metric_names(sample: Mapping[str, Any]) -> Sequence[str]:
    """The names of a sample's metrics. Old files have no list of them, but a field for each."""
    names = sample.get("metrics")
    if isinstance(names, list):
        return [str(name) for name in names]
    return [name for name in sample if name not in _FIELDS]


def is_mutual(sample: Mapping[str, Any]) -> bool:
    """Whether each candidate was also scored without its context."""
    return "acc_mutual_info" in metric_names(sample)


def request(sample: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    """The arguments (`arg_0`, ...) of request `number`; empty if they are not logged."""
    every = sample.get("arguments")
    arguments = every.get(f"gen_args_{number}") if isinstance(every, Mapping) else None
    return arguments if isinstance(arguments, Mapping) else {}


def candidates(sample: Mapping[str, Any]) -> tuple[list[float], int] | None:
    """Log-likelihoods of the candidates in nats, and the index of the gold candidate.

    None if the sample has no candidates. lm-eval logs a candidate as two strings: ["-0.5",
    "False"]. The scores without context that acc_mutual_info appends are left out.
    """
    try:
        values = [float(value) for value, _ in sample["filtered_resps"]]
        gold = int(sample["target"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if is_mutual(sample):
        values = values[: len(values) // 2]
    return (values, gold) if 0 <= gold < len(values) and len(values) > 1 else None


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with file.open("rb") as lines:
            yield from enumerate(lines, start=1)
    except OSError as error:
        raise LatentRefError(f"{file} cannot be read ({error.strerror or error})") from error


def _scores(line: bytes) -> dict[str, Any] | None:
    """`doc_id` and the fields after the answers; None if the line has another order."""
    place = line.rfind(_LAST)
    if place < 0 or not line.startswith(_FIRST):
        return None
    try:
        # If the key belongs to a nested object, the brackets do not match, which is an error.
        sample: dict[str, Any] = json.loads(b"{" + line[place + 2 :])
        sample["doc_id"] = int(line[len(_FIRST) : line.index(b",")])
    except (ValueError, RecursionError):
        return None
    return sample


def _no_sample(file: Path, number: int, error: Exception) -> LatentRefError:
    return LatentRefError(
        f"{file}, line {number}: not a logged sample ({type(error).__name__} {error}); {ADVICE}"
    )


def gold_text(sample: Mapping[str, Any], limit: int = _MAX_CHARACTERS) -> str:
    """The gold candidate, or the target, in one line of at most `limit` characters."""
    scored = candidates(sample)
    return clip(_choice(sample, scored[1]) if scored else sample.get("target"), limit)


def answer_text(sample: Mapping[str, Any], limit: int = _MAX_CHARACTERS) -> str:
    """The likeliest candidate, or the filtered text, in one line of at most `limit` characters."""
    if scored := candidates(sample):
        values, _ = scored
        return clip(_choice(sample, values.index(max(values))), limit)
    answers = sample.get("filtered_resps")
    return clip(answers[0] if isinstance(answers, list) and answers else answers, limit)


def clip(text: object, limit: int = _MAX_CHARACTERS) -> str:
    """`text` in one line of at most `limit` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def _choice(sample: Mapping[str, Any], number: int) -> str:
    """The text of candidate `number`, or the number itself if the requests are not logged."""
    return str(request(sample, number).get("arg_1", number))
