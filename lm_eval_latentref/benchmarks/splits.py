"""Our splits (test, dev, train) of the five benchmarks.

    examples = load("mathqa", "dev")     # [Example(question=..., steps=..., answer="c"), ...]
    load_split("mathqa", "dev").rows     # the same problems as published rows

Settings are tuned on dev only. Training uses neither dev nor test: `load_training` also drops every
problem whose question is in the dev or test split of any benchmark. `published` reads the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from lm_eval_latentref.benchmarks import prosqa
from lm_eval_latentref.benchmarks.published import DataMissingError, Published, read
from lm_eval_latentref.benchmarks.rows import BENCHMARKS, Row, harness_example
from lm_eval_latentref.checkpoints.questions import normalise_question
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import Example

logger = logging.getLogger(__name__)

SPLITS = ("test", "dev", "train")

NUM_GENERATED_TRAIN = 17886
"""The number of rows in the published ProsQA training file, and in its generated replacement."""


class KnownSplit(NamedTuple):
    """The number of rows and the content hash of a known test split."""

    num_rows: int
    content_hash: str


KNOWN_TEST_SPLITS = {
    "gsm8k": KnownSplit(1319, "5ce871f10b043b8314aad55c6bef71d1811875cd65d55cbc07c9938b66d9b27b"),
    "mathqa": KnownSplit(2985, "8525c931ac200c0491859c789162f46908384467276be1df8ee5b87b8b48899c"),
    "aqua": KnownSplit(254, "b7a2df1793f5e068ff341bd9728927ad216ec154b9604c7ea6b2657082b2eb7e"),
    "strategyqa": KnownSplit(
        229, "547c271b3417a93d81f327d69dcdd647ad9b6dc4ce7970739fe4dcddac628d5c"
    ),
    "prosqa": KnownSplit(500, "879d90967bdf7128c71793b75b3ec8acf92779c8f2cdd76f3240234cf998e80f"),
}
"""The row counts and `content_hash` values of the test splits with which results are comparable."""


@dataclass(frozen=True)
class Split:
    """The rows of a split, with the origin and hash that identify them."""

    name: str
    split: str
    rows: list[dict[str, Any]]
    origin: str
    content_hash: str

    @property
    def examples(self) -> list[Example]:
        return [BENCHMARKS[self.name].example(row) for row in self.rows]

    def identity(self) -> dict[str, object]:
        """The origin, row count and content hash, as JSON values for results."""
        return {"origin": self.origin, "rows": len(self.rows), "sha256": self.content_hash}


def load(name: str, split: str) -> list[Example]:
    """The examples of a split ("test", "dev" or "train") of benchmark `name`, in file order.

    Raises:
        LatentRefError: the name or split is unknown, the data is missing, or a row is malformed.
    """
    return load_split(name, split).examples


def load_split(name: str, split: str) -> Split:
    """The published rows of a split of benchmark `name`, with their origin.

    Logs a warning if a test split differs from the known split, because results on it cannot be
    compared with other results. Raises the errors of `load`.
    """
    if name not in BENCHMARKS:
        raise LatentRefError(f"no benchmark {name!r}: use one of {', '.join(BENCHMARKS)}")
    if split not in SPLITS:
        raise LatentRefError(f"{name} has no split {split!r}: use one of {', '.join(SPLITS)}")
    source = _SPLITTERS[name](split)
    loaded = Split(name, split, source.rows, source.origin, content_hash(name, source.rows))
    _warn_if_unknown(loaded)
    logger.info("%s %s: %d rows from %s", name, split, len(loaded.rows), loaded.origin)
    return loaded


TRAINING: dict[str, tuple[str, Callable[[Row], Example]]] = {
    **{name: (name, benchmark.example) for name, benchmark in BENCHMARKS.items()},
    "mathqa_harness": ("mathqa", harness_example),
}
"""Sources of training data by name: the benchmark, and the function from a row to an example.
`mathqa_harness` is MathQA with the prompt of lm-eval's own `mathqa` task."""


def load_training(name: str, held_out: Collection[str] | None = None) -> tuple[list[Example], int]:
    """Training examples that are in no dev or test split, and the number of examples dropped.

    Args:
        name: a key of `TRAINING`.
        held_out: the result of `held_out_questions()`, if the caller has it already.
    """
    benchmark, example = TRAINING[name]
    problem = BENCHMARKS[benchmark].problem
    held_out = held_out_questions() if held_out is None else held_out
    rows = load_split(benchmark, "train").rows
    kept = [row for row in rows if normalise_question(problem(row)) not in held_out]
    return [example(row) for row in kept], len(rows) - len(kept)


def held_out_questions() -> frozenset[str]:
    """The result of `normalise_question` for every problem in the five dev and test splits.

    Each problem is included with and without its candidate answers, because some training files
    contain them in the question.
    """
    return frozenset(
        normalise_question(text(row))
        for name, benchmark in BENCHMARKS.items()
        for split in ("test", "dev")
        for row in load_split(name, split).rows
        for text in (benchmark.problem, benchmark.question)
    )


def content_hash(name: str, rows: list[dict[str, Any]]) -> str:
    """SHA-256 of the questions and answers of `rows`, in order; other fields are ignored."""
    digest = hashlib.sha256()
    for row in rows:
        example = BENCHMARKS[name].example(row)
        line = json.dumps([example.question, example.answer], ensure_ascii=False)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _warn_if_unknown(loaded: Split) -> None:
    known = KNOWN_TEST_SPLITS[loaded.name]
    actual = KnownSplit(len(loaded.rows), loaded.content_hash)
    if loaded.split == "test" and actual != known:
        logger.warning(
            "%s test is not the known split: it has %d rows with hash %.12s, from %s; the known "
            "split has %d rows with hash %.12s; do not compare its numbers with published numbers",
            loaded.name,
            *actual,
            loaded.origin,
            *known,
        )


def _gsm8k(split: str) -> Published:
    if split == "test":
        return read("gsm8k", "test")
    dev = read("gsm8k", "validation_equations")
    if split == "dev":
        return dev
    train = read("gsm8k", "train")
    dev_questions = {row["question"] for row in dev.rows}
    rows = [row for row in train.rows if row["question"] not in dev_questions]
    return Published(rows, f"{train.origin}, without {dev.origin}")


def _mathqa(split: str) -> Published:
    if split == "test":
        return read("mathqa", "test")
    if split == "train":
        try:
            return read("mathqa", "train")
        except DataMissingError as error:
            logger.warning("%s; using the first nine tenths of validation instead", error)
    validation = read("mathqa", "validation")
    cut = len(validation.rows) - len(validation.rows) // 10
    if split == "dev":
        return Published(validation.rows[cut:], f"{validation.origin}, rows from {cut} on")
    return Published(validation.rows[:cut], f"{validation.origin}, rows before {cut}")


def _aqua(split: str) -> Published:
    return read("aqua", "validation" if split == "dev" else split)


def _strategyqa(split: str) -> Published:
    # The official test file has no answers, so the official dev file serves as the test split.
    if split == "test":
        return read("strategyqa", "validation")
    train = read("strategyqa", "train")
    by_hash = sorted(row["qid"] for row in train.rows)
    by_hash.sort(key=lambda qid: hashlib.sha256(qid.encode()).hexdigest())
    dev_ids = set(by_hash[: len(by_hash) // 10])
    rows = [row for row in train.rows if (row["qid"] in dev_ids) == (split == "dev")]
    return Published(rows, f"{train.origin}, {'lowest' if split == 'dev' else 'other'} qid hashes")


def _prosqa(split: str) -> Published:
    if split != "train":
        return read("prosqa", "validation" if split == "dev" else split)
    try:
        return read("prosqa", "train")
    except DataMissingError as error:
        logger.warning("%s; using %d generated problems instead", error, NUM_GENERATED_TRAIN)
    rows = [dict(row) for row in prosqa.generate(NUM_GENERATED_TRAIN, seed=0, split="train")]
    return Published(rows, "generated, seed 0")


_SPLITTERS = {
    "gsm8k": _gsm8k,
    "mathqa": _mathqa,
    "aqua": _aqua,
    "strategyqa": _strategyqa,
    "prosqa": _prosqa,
}
