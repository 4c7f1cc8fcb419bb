"""Removes control characters, which texts of files and names may contain, from terminal output.

    with plain_terminal(): ...      # in this block, prints and all log lines are printable

`errors.say` does the same for messages on stderr.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from lm_eval_latentref.errors import LatentRefError, printable

OURS = __name__.partition(".")[0]
"""The beginning of our loggers' names. Their messages are one line; others may have several."""


@contextlib.contextmanager
def plain_terminal() -> Iterator[None]:
    """Makes stdout, log records and warnings printable until the block ends."""
    make = logging.getLogRecordFactory()

    def make_plain(*args: Any, **values: Any) -> logging.LogRecord:
        record = make(*args, **values)
        # If the arguments do not fit the message, logging's own handlers report it.
        with contextlib.suppress(Exception):
            show = printable if record.name.startswith(OURS) else _lines
            record.msg, record.args = show(record.getMessage()), ()
        return record

    logging.setLogRecordFactory(make_plain)
    logging.captureWarnings(True)
    try:
        # There may be no stdout, as after `>&-`.
        with contextlib.redirect_stdout(sys.stdout and _PlainStream(sys.stdout)):
            yield
    finally:
        logging.captureWarnings(False)
        logging.setLogRecordFactory(make)


class _PlainStream(io.TextIOBase):
    """Writes text to another stream, in its encoding and without control characters."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        shown = _lines(text).encode(self.encoding, "replace").decode(self.encoding)
        with self._full_disk_is_one_line():
            self._stream.write(shown)
        return len(text)

    def flush(self) -> None:
        with self._full_disk_is_one_line():
            self._stream.flush()

    @contextlib.contextmanager
    def _full_disk_is_one_line(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            discard(self._stream)
            raise LatentRefError(
                f"stdout cannot be written ({error.strerror or error}); free some space"
            ) from error


def discard(stream: TextIO) -> None:
    """Discards the rest of `stream`, so that closing it does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
