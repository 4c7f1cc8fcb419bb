"""Finished work on disk, one JSON object a line: what is written stays written.

    with Journal(path) as journal:
        journal.add({"key": "4f0c", "requests": [0, 1], "log_likelihoods": [-1.5, -2.0]})
    read_journal(path)          # the same objects, in order

A process may be killed at any moment: a last line that was cut off is left out when reading and
removed before anything is added. Deliberately knows nothing of what the lines mean.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from lm_eval_latentref.checkpoints.files import parse_json, reading
from lm_eval_latentref.errors import LatentRefError, saving

ADVICE = "remove it to start afresh, or name another folder"


def read_journal(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects written so far; empty when there is no file."""
    with reading(path, ADVICE):
        lines = _whole_lines(Path(path)).split(b"\n")
    values = []
    for number, line in enumerate(lines[:-1], start=1):
        with reading(f"{path}, line {number}", ADVICE):
            value = parse_json(line.decode("utf-8"))
            if not isinstance(value, dict):
                raise TypeError("not a JSON object")
        values.append(value)
    return values


class Journal:
    """The file, open for adding; everything added is with the operating system at once."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise LatentRefError(
                f"{path.parent} cannot be written to ({error.strerror}); name another folder"
            ) from error
        self._file.truncate(len(_whole_lines(path)))

    def add(self, value: dict[str, Any]) -> None:
        """Writes one line."""
        with saving(self._path):
            self._file.write(json.dumps(value, allow_nan=False).encode() + b"\n")
            self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What could not be written is tried once more here; the first failure has been told.
        with contextlib.suppress(OSError) if kind is not None else saving(self._path):
            self._file.close()


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    return content[: content.rfind(b"\n") + 1]
