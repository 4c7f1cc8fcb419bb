"""Where benchmark rows come from: a local folder, or the places they are published at.

    read("mathqa", "test")      # Published(rows=[...], origin="regisss/math_qa test")

With the environment variable LATENTREF_DATA set to a folder, `FOLDER/NAME/SPLIT.jsonl` is read
and nothing is downloaded. Deliberately knows nothing of what a row means, nor which of our splits
is made of which published one: that is `benchmarks` and `data`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_latentref.checkpoints.files import read_json_lines
from lm_eval_latentref.errors import LatentRefError

logger = logging.getLogger(__name__)

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
    """A published split that cannot be had here; the message says what to set."""


@dataclass(frozen=True)
class Published:
    """The rows of one published split, in file order."""

    rows: list[dict[str, Any]]
    origin: str
    """Where they were read from, as closely as is known."""


def read(name: str, split: str) -> Published:
    """Rows of the published `split` ("train", "validation", ...) of benchmark `name`.

    Raises:
        DataMissingError: the folder has no such file, or the download failed.
        LatentRefError: LATENTREF_DATA is no folder, or a line of the file is not a JSON object.
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
    # datasets raises a dozen unrelated classes when a set is out of reach.
    except Exception as error:
        raise DataMissingError(
            f"{name} {split}: no download from {place} ({type(error).__name__}); set "
            f"{DATA_VARIABLE} to a folder that holds {name}/{split}.jsonl, or allow the download"
        ) from error
    if url is not None and url.endswith(".txt"):
        return Published(_equation_rows(row["text"] for row in loaded), url)
    # The hub's file addresses hold the revision that was loaded.
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
