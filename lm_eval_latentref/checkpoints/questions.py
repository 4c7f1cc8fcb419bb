"""Hashes of the questions used in training, saved with a checkpoint so that none is tuned on.

    write_hashes("out/mine", hash_questions(["Is Tom a lempus?"]))
    seen = read_hashes("out/mine/trained_questions.npy")
    bool(np.isin(hash_questions(["is tom a LEMPUS"]), seen).any())      # True

A hash has eight bytes. Questions are the same if `normalise_question` makes them equal.
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
"""Sorted 64-bit integers, each once."""


def normalise_question(text: str) -> str:
    """`text` in lower case without white space and punctuation, for comparing questions.

    All white space is removed, because MathQA puts spaces into questions that it took from AQUA-RAT
    ("don ' t", "3 . 5 %").
    """
    return "".join(
        char
        for char in text.lower()
        if not char.isspace()
        and char not in string.punctuation
        and not unicodedata.category(char).startswith("P")
    )


def hash_questions(questions: Iterable[str]) -> Hashes:
    """The hashes of the questions, without those that have neither letters nor digits."""
    texts = {normalise_question(question) for question in questions} - {""}
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:8] for text in texts)
    return np.sort(np.frombuffer(digests, dtype="<u8"))


def write_hashes(folder: str | os.PathLike[str], hashes: Hashes) -> None:
    """Saves `hashes` in `folder` as QUESTIONS_NAME."""
    np.save(Path(folder) / QUESTIONS_NAME, hashes)


def read_hashes(path: str | os.PathLike[str]) -> Hashes:
    """The hashes in a file of `write_hashes`; LatentRefError if it cannot be read."""
    advice = "put the file back, or remove trained_questions from the latentref.json beside it"
    with reading(path, advice):
        hashes = np.load(path, allow_pickle=False)
    if hashes.dtype != np.dtype("<u8") or hashes.ndim != 1:
        raise LatentRefError(
            f"{path} holds {hashes.dtype} values, not hashes of questions; put back the file that "
            "training wrote, or remove trained_questions from latentref.json"
        )
    return hashes
