"""Keeps control characters away from the terminal: texts of files and names may hold any.

with plain_terminal(): ...      # prints and log lines of all packages are printable in this block

What goes to stderr by other ways is printed by `errors.say`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from lm_eval_latentref.errors import printable

OURS = __name__.partition(".")[0]
"""Of our loggers, whose messages are one line each; those of others may have several."""


@contextlib.contextmanager
def plain_terminal() -> Iterator[None]:
    """Makes stdout, log records and warnings printable until the block ends."""
    make = logging.getLogRecordFactory()

    def make_plain(*args: Any, **values: Any) -> logging.LogRecord:
        record = make(*args, **values)
        # Where the arguments do not fit, logging's own handlers report it.
        with contextlib.suppress(Exception):
            show = printable if record.name.startswith(OURS) else _lines
            record.msg, record.args = show(record.getMessage()), ()
        return record

    logging.setLogRecordFactory(make_plain)
    logging.captureWarnings(True)
    try:
        with contextlib.redirect_stdout(_PlainStream(sys.stdout)):
            yield
    finally:
        logging.captureWarnings(False)
        logging.setLogRecordFactory(make)


class _PlainStream(io.TextIOBase):
    """Writes to another stream what its encoding can show, without control characters."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        shown = _lines(text).encode(self.encoding, "replace").decode(self.encoding)
        self._stream.write(shown)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))
