"""The one exception that a user's mistake raises.

    raise LatentRefError("memory_rate=1.5: it must lie in [0, 1]; give a value such as 0.3")
    with saving(path): path.write_text(report)      # a full disk ends in one line, too

Its message is one line: what was given, what is allowed and what to do next.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, with which escape sequences begin, and marks that change text direction."""


class LatentRefError(ValueError):
    """A mistake that the user can fix; its message is one line and needs no traceback."""


@contextlib.contextmanager
def saving(path: object) -> Iterator[None]:
    """Turns a failure to write `path`, such as a full disk, into a LatentRefError."""
    try:
        yield
    except OSError as error:
        raise LatentRefError(
            f"{path} cannot be written ({error.strerror or error}); make room or name "
            "another folder, and give the same command again: what is finished is kept"
        ) from error


def printable(text: str) -> str:
    """`text` from a file or a name, safe for a terminal: control characters become spaces."""
    return _CONTROL.sub(" ", text).encode("utf-8", "replace").decode("utf-8")
