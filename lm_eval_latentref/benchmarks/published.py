"""Reads the published files of the five benchmarks: from a local folder, or by download.

    read("mathqa", "test")      # Published(rows=[...], origin="regisss/math_qa test")

If the environment variable LATENTREF_DATA names a folder, `FOLDER/NAME/SPLIT.jsonl` is read and
nothing is downloaded. `splits` turns published files into our splits.
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
"""The environment variable with the local folder."""

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
"""The id of each data set on the hub, and its configuration if it has several."""

PLAIN_FILES: dict[tuple[str, str], str] = {
    ("gsm8k", "validation_equations"): f"{_INTERNALIZE_COT}/valid.txt",
    ("strategyqa", "train"): f"{_STRATEGYQA}/train.json",
    ("strategyqa", "validation"): f"{_STRATEGYQA}/dev.json",
    ("prosqa", "train"): f"{_COCONUT}/prosqa_train.json",
    ("prosqa", "validation"): f"{_COCONUT}/prosqa_valid.json",
    ("prosqa", "test"): f"{_COCONUT}/prosqa_test.json",
}
"""Files in public repositories, read by the json and text loaders of `datasets`."""

_DROPPED_FIELDS = {"evidence"}
"""StrategyQA's `evidence` has no uniform type, and we do not need it."""


class DataMissingError(LatentRefError):
    """A published split is neither in the local folder nor can it be downloaded."""


@dataclass(frozen=True)
class Published:
    """The rows of one published split, in file order."""

    rows: list[dict[str, Any]]
    origin: str
    """The file or data set from which they were read, with its revision if known."""


def read(name: str, split: str) -> Published:
    """The rows of a published split ("train", "validation", ...) of benchmark `name`.

    Raises:
        DataMissingError: the folder has no such file, or the download failed.
        LatentRefError: LATENTREF_DATA is not a folder, or a line of a file is not a JSON object.
    """
    folder = os.environ.get(DATA_VARIABLE)
    return _read_folder(Path(folder), name, split) if folder else _download(name, split)


def _read_folder(folder: Path, name: str, split: str) -> Published:
    if not folder.is_dir():
        raise LatentRefError(
            f"{DATA_VARIABLE}={folder}: no such folder; set it to a folder with "
            f"{name}/{split}.jsonl, or unset {DATA_VARIABLE} to download"
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
                f"{path}, line {number}: not a JSON object; repair or replace the file"
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
    # datasets raises a dozen unrelated exceptions if a data set cannot be downloaded.
    except Exception as error:
        raise DataMissingError(
            f"{name} {split}: no download from {place} ({type(error).__name__}); set "
            f"{DATA_VARIABLE} to a folder with {name}/{split}.jsonl, or allow the download"
        ) from error
    if url is not None and url.endswith(".txt"):
        return Published(_equation_rows(row["text"] for row in loaded), url)
    # The addresses of files on the hub contain the loaded revision.
    files = getattr(loaded.info, "download_checksums", None) or {}
    return Published([_row(row) for row in loaded], url or min(files, default=f"{place} {split}"))


def _row(row: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(row).items() if key not in _DROPPED_FIELDS}


def _equation_rows(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of question, steps and answer from lines "question||<<1+1=2>> <<2*3=6>> #### 6"."""
    rows = []
    for line in lines:
        if line.strip():
            question, _, solution = line.partition("||")
            chain, _, answer = solution.rpartition("####")
            steps = re.findall(r"<<.*?>>", chain)
            rows.append({"question": question, "steps": steps, "answer": answer.strip()})
    return rows
