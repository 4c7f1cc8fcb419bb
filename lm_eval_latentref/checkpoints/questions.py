"""Hashes of training questions, saved with a checkpoint so that settings are not tuned on them.

    write_hashes("out/mine", hash_questions(["Is Tom a lempus?"]))
    seen = read_hashes("out/mine/trained_questions.npy")
    bool(np.isin(hash_questions(["is tom a LEMPUS"]), seen).any())      # True

A hash has eight bytes. Two questions have the same hash if `normalise_question` makes them equal.
"""

from __future__ import annotations

import hashlib
import os
import string
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_latentref.checkpoints.files import reading
from lm_eval_latentref.errors import LatentRefError

QUESTIONS_NAME = "trained_questions.npy"

Hashes = NDArray[Any]
"""Sorted 64-bit integers without duplicates."""


def normalise_question(text: str) -> str:
    """`text` in lower case without white space and punctuation, for comparing questions.

    White space is removed because MathQA has inserted spaces into AQUA-RAT's questions ("don ' t",
    "3 . 5 %").
    """
    return "".join(
        char
        for char in text.lower()
        if not char.isspace()
        and char not in string.punctuation
        and not unicodedata.category(char).startswith("P")
    )


def hash_questions(questions: Iterable[str]) -> Hashes:
    """The hashes of all questions that have a letter or digit."""
    texts = {normalise_question(question) for question in questions} - {""}
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts)
    return np.sort(np.frombuffer(digests, dtype="<u8"))


def write_hashes(folder: str | os.PathLike[str], hashes: Hashes) -> None:
    """Saves `hashes` in `folder` as QUESTIONS_NAME."""
    np.save(Path(folder) / QUESTIONS_NAME, hashes)


def read_hashes(path: str | os.PathLike[str]) -> Hashes:
    """The hashes in a file written by `write_hashes`; raises LatentRefError if it is unreadable."""
    advice = "restore the file, or remove trained_questions from latentref.json"
    with reading(path, advice):
        hashes = np.load(path, allow_pickle=False)
    if hashes.dtype != np.dtype("<u8") or hashes.ndim != 1:
        raise LatentRefError(
            f"{path} holds {hashes.dtype} values, not hashes of questions; restore the file that "
            "training wrote, or remove trained_questions from latentref.json"
        )
    return hashes
