"""The exception for users' mistakes, and helpers for messages, output paths and secrets.

    raise LatentRefError("memory_rate=1.5: it must be in [0, 1]; give a value such as 0.3")
    check_place("out/study")                        # can a folder or file be written there?
    with saving(path): path.write_text(report)      # a full disk becomes a LatentRefError
    say(f"{file} is written")                       # prints to stderr, without control characters
    without_secrets({"token": "abc", "dtype": "float32"})       # {"token": "***", "dtype": ...}

A message is one line: the value given, the values allowed, and the next step.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, among them those of escape sequences, and marks that change text direction.
"""

_NAME = r"(?:\w+_)?(?:(?<!bos_)(?<!eos_)(?<!pad_)(?<!end_)token|key|secret|password|auth\w*)"
_SECRET = re.compile(f"(?i){_NAME}")
_PAIR = re.compile(rf"(?i)\b({_NAME})=[^,\s]+")
_QUOTED = re.compile(r"(?i)(['\"](?:token|use_auth_token|hf_token|api_key)['\"]: )(['\"]).*?\2")
_VALUE = re.compile(r"hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9-]{8,}|(?<=://)[^/@\s]+:[^/@\s]+(?=@)")


class LatentRefError(ValueError):
    """A mistake that the user can fix; its message is one line and needs no traceback."""


def check_place(name: str | os.PathLike[str], *, is_folder: bool = True) -> None:
    """Raises LatentRefError unless a folder or file of this name can be written; writes nothing.

    Folders on the path need not exist, because they will be created.
    """
    try:
        path = Path(name).absolute()  # the working directory may be gone
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # a name may be too long
        if path.is_dir() and not is_folder:
            raise OSError("it is a folder")
        folders = [path, *path.parents] if is_folder else path.parents
        with tempfile.TemporaryFile(dir=next(filter(os.path.lexists, folders))):
            pass
    except OSError as error:
        raise LatentRefError(
            f"{name} cannot be written ({error.strerror or error}); name another place"
        ) from error


@contextlib.contextmanager
def saving(path: object) -> Iterator[None]:
    """Turns a failure to write `path`, such as a full disk, into a LatentRefError."""
    try:
        yield
    except OSError as error:
        raise LatentRefError(
            f"{path} cannot be written ({error.strerror or error}); make room or name "
            "another folder, and give the same command again: finished work is kept"
        ) from error


def printable(text: str) -> str:
    """`text` in a form that is safe to print.

    Control characters are replaced by spaces, and recognisable secrets by ***.
    """
    shown = _VALUE.sub("***", _QUOTED.sub(r"\1\2***\2", _CONTROL.sub(" ", text)))
    return shown.encode("utf-8", "replace").decode("utf-8")


def without_secrets(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, in which *** replaces the value of a token, key or password."""
    return {
        name: "***" if _SECRET.fullmatch(str(name)) else _hidden(value)
        for name, value in arguments.items()
    }


def hide_secrets(word: str) -> str:
    """A word of a command line, such as NAME=VALUE,NAME=VALUE, in which *** replaces secrets."""
    return _VALUE.sub("***", _PAIR.sub(r"\1=***", word))


def _hidden(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_secrets(value)
    if isinstance(value, list):
        return [_hidden(item) for item in value]
    return _VALUE.sub("***", value) if isinstance(value, str) else value


def say(text: object) -> None:
    """Prints a message to stderr, because stdout is for results."""
    if sys.stderr is not None:  # with file=None print would use stdout
        print(printable(str(text)), file=sys.stderr, flush=True)
