"""The five benchmarks: their rows, local or downloaded, and our splits (test, dev, train).

    examples = load("mathqa", "dev")     # [Example(question=..., steps=..., answer="c"), ...]
    load_split("mathqa", "dev").rows     # the same problems as the published rows
    read("mathqa", "test")               # Published(rows=[...], origin="regisss/math_qa test")

Tuning uses dev only; training uses neither dev nor test: `load_training` also drops every problem
whose question occurs in any benchmark's dev or test split. If the environment variable
LATENTREF_DATA names a folder, `FOLDER/NAME/SPLIT.jsonl` is read and nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lm_eval_latentref.benchmarks import prosqa
from lm_eval_latentref.benchmarks.rows import BENCHMARKS, Row, harness_example
from lm_eval_latentref.checkpoints.files import read_json_lines
from lm_eval_latentref.checkpoints.questions import normalise_question
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.protocol import Example

logger = logging.getLogger(__name__)

SPLITS = ("test", "dev", "train")

NUM_GENERATED_TRAIN = 17886
"""Rows of the published ProsQA training file, and of its generated stand-in."""


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
"""Row counts and `content_hash` values of the test splits this package was written against."""


@dataclass(frozen=True)
class Split:
    """One split, with the origin and hash that identify it later."""

    name: str
    split: str
    rows: list[dict[str, Any]]
    origin: str
    content_hash: str

    @property
    def examples(self) -> list[Example]:
        return [BENCHMARKS[self.name].example(row) for row in self.rows]

    def identity(self) -> dict[str, object]:
        """What identifies the loaded data: origin, row count and content hash."""
        return {"origin": self.origin, "rows": len(self.rows), "sha256": self.content_hash}


def load(name: str, split: str) -> list[Example]:
    """The examples of benchmark `name`'s `split` ("test", "dev" or "train"), in file order.

    Raises:
        LatentRefError: an unknown name or split, missing data, or a malformed row.
    """
    return load_split(name, split).examples


def load_split(name: str, split: str) -> Split:
    """The published rows of benchmark `name`'s `split`, with their origin.

    Logs a warning if a test split is not the known one, because results on it cannot be compared
    with others. Raises as `load` does.
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
"""Sources of training data: the benchmark, and the function that turns a row into an example.
`mathqa_harness` is MathQA with the prompt of lm-eval's own `mathqa`."""


def load_training(name: str, held_out: Collection[str] | None = None) -> tuple[list[Example], int]:
    """Examples of `name` (a key of `TRAINING`) outside all dev and test splits; the number dropped.

    Args:
        held_out: `held_out_questions()`, if the caller has it already.
    """
    benchmark, example = TRAINING[name]
    problem = BENCHMARKS[benchmark].problem
    held_out = held_out_questions() if held_out is None else held_out
    rows = load_split(benchmark, "train").rows
    kept = [row for row in rows if normalise_question(problem(row)) not in held_out]
    return [example(row) for row in kept], len(rows) - len(kept)


def held_out_questions() -> frozenset[str]:
    """`normalise_question` of every problem of the five dev and test splits.

    Each problem is included with and without its candidate answers, to catch training files that
    print these in the question.
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
    got = KnownSplit(len(loaded.rows), loaded.content_hash)
    if loaded.split == "test" and got != known:
        logger.warning(
            "%s test is not the known split: %d rows with hash %.12s from %s, known are %d with "
            "%.12s; do not compare its numbers with published ones",
            loaded.name,
            *got,
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


DATA_VARIABLE = "LATENTREF_DATA"

_COCONUT = "https://raw.githubusercontent.com/facebookresearch/coconut/27273cb/data"
_STRATEGYQA = "https://raw.githubusercontent.com/eladsegal/strategyqa/main/data/strategyqa"
_INTERNALIZE_COT = (
    "https://raw.githubusercontent.com/da03/Internalize_CoT_Step_by_Step/"
    "e06a32ee5e4cd117171daeb4755d2a97ece62761/data/gsm8k"
)

HUB_SETS: dict[str, tuple[str, ...]] = {
    "gsm8k": ("openai/gsm8k", "main"),
    "mathqa": ("regisss/math_qa",),
    "aqua": ("deepmind/aqua_rat", "raw"),
}
"""Data sets on the hub: id, then the configuration if there are several."""

PLAIN_FILES: dict[tuple[str, str], str] = {
    ("gsm8k", "validation_equations"): f"{_INTERNALIZE_COT}/valid.txt",
    ("strategyqa", "train"): f"{_STRATEGYQA}/train.json",
    ("strategyqa", "validation"): f"{_STRATEGYQA}/dev.json",
    ("prosqa", "train"): f"{_COCONUT}/prosqa_train.json",
    ("prosqa", "validation"): f"{_COCONUT}/prosqa_valid.json",
    ("prosqa", "test"): f"{_COCONUT}/prosqa_test.json",
}
"""Files of public repositories, read through datasets' json and text loaders."""

_DROPPED_FIELDS = {"evidence"}
"""StrategyQA's evidence has no regular type and no use here."""


class DataMissingError(LatentRefError):
    """A published split is not available; the message says what to set."""


@dataclass(frozen=True)
class Published:
    """The rows of one published split, in file order."""

    rows: list[dict[str, Any]]
    origin: str
    """The place they were read from, as precisely as it is known."""


def read(name: str, split: str) -> Published:
    """Rows of the published `split` ("train", "validation", ...) of benchmark `name`.

    Raises:
        DataMissingError: the folder has no such file, or the download failed.
        LatentRefError: LATENTREF_DATA is not a folder, or a line of a file is not a JSON object.
    """
    folder = os.environ.get(DATA_VARIABLE)
    return _read_folder(Path(folder), name, split) if folder else _download(name, split)


def _read_folder(folder: Path, name: str, split: str) -> Published:
    if not folder.is_dir():
        raise LatentRefError(
            f"{DATA_VARIABLE}={folder}: no such folder; name one that holds {name}/{split}.jsonl, "
            f"or unset {DATA_VARIABLE} to download"
        )
    path = folder / name / f"{split}.jsonl"
    if not path.is_file():
        raise DataMissingError(
            f"{name} {split}: {path} does not exist; put the rows there, "
            f"or unset {DATA_VARIABLE} to download them"
        )
    rows = []
    for number, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise LatentRefError(
                f"{path}, line {number}: not a JSON object; mend or replace the file"
            )
        rows.append(_row(row))
    return Published(rows, f"{name}/{path.name} in {DATA_VARIABLE}")


def _download(name: str, split: str) -> Published:
    import datasets

    url = PLAIN_FILES.get((name, split))
    place = url or " ".join(HUB_SETS[name])
    logger.info("%s %s: downloading from %s, unless cached", name, split, place)
    try:
        if url is None:
            loaded = datasets.load_dataset(*HUB_SETS[name], split=split)
        else:
            loader = "text" if url.endswith(".txt") else "json"
            loaded = datasets.load_dataset(loader, data_files=url, split="train")
    # datasets raises a dozen unrelated classes if a data set cannot be downloaded.
    except Exception as error:
        raise DataMissingError(
            f"{name} {split}: no download from {place} ({type(error).__name__}); set "
            f"{DATA_VARIABLE} to a folder that holds {name}/{split}.jsonl, or allow the download"
        ) from error
    if url is not None and url.endswith(".txt"):
        return Published(_equation_rows(row["text"] for row in loaded), url)
    # The addresses of the hub's files contain the revision that was loaded.
    files = getattr(loaded.info, "download_checksums", None) or {}
    return Published([_row(row) for row in loaded], url or min(files, default=f"{place} {split}"))


def _row(row: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(row).items() if key not in _DROPPED_FIELDS}


def _equation_rows(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Lines "question||<<1+1=2>> <<2*3=6>> #### 6" as rows of question, steps and answer."""
    rows = []
    for line in lines:
        if line.strip():
            question, _, solution = line.partition("||")
            chain, _, answer = solution.rpartition("####")
            steps = re.findall(r"<<.*?>>", chain)
            rows.append({"question": question, "steps": steps, "answer": answer.strip()})
    return rows
