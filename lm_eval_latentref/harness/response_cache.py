"""Makes sure that a response cache of lm-eval (`--use_cache`) has answers of one setting only.

    check_settings(cache_hook, reasoner.settings())
    check_files("out/cache")             # before lm-eval opens out/cache_rank0.db

lm-eval looks up answers by the text of the request, so two settings with the same file would share
answers. Therefore the settings are stored in the file beside the answers. lm-eval gives each
process its own file. Each process copies the answers in the other files, so that a run can be
continued with another number of processes.

The values in these files are pickles, which could run code. They are read by an unpickler that
allows no class, and a file with anything but answers is refused.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from lm_eval_latentref.errors import LatentRefError

SETTINGS_KEY = "latentref settings"

_TABLE = "unnamed"
"""The table in which sqlitedict, which lm-eval uses, stores keys and pickled values."""
_CONTENT = {("table", _TABLE), ("index", f"sqlite_autoindex_{_TABLE}_1")}


def check_settings(cache_hook: Any, settings: Mapping[str, Any]) -> None:
    """Store `settings` in an empty cache; raise LatentRefError if it has answers of other settings.

    Args:
        cache_hook: lm-eval's `CacheHook`; if it has no file, nothing is done.
        settings: everything that determines the answers, as JSON values.
    """
    answers = cache_hook.dbdict
    if answers is None:
        return
    now = json.dumps(settings, sort_keys=True)
    file = Path(answers.filename)
    if own := _read(file):
        _check_same(file, own.get(SETTINGS_KEY), now)
    else:
        answers[SETTINGS_KEY] = now
    for other in _files_of(file.parent, re.sub(r"_rank\d+\.db$", "", file.name)):
        rows = {} if other.name == file.name else _read(other)
        if SETTINGS_KEY in rows:  # if not, another process has just created the file
            _check_same(other, rows.pop(SETTINGS_KEY), now)
            answers.update((key, answer) for key, answer in rows.items() if key not in own)
    answers.commit()


def check_files(path: str) -> None:
    """Raise LatentRefError if a file of the cache has anything but answers.

    Args:
        path: the argument of `--use_cache`, to which lm-eval adds "_rank0.db".
    """
    for file in _files_of(Path(path).parent, Path(path).name):
        _read(file)


def _check_same(file: Path, before: Any, now: str) -> None:
    if before == now:
        return
    try:
        content = f"answers with {_differences(json.loads(before), json.loads(now))}"
    except (TypeError, ValueError, AttributeError):
        content = "answers of another model"
    raise LatentRefError(
        f"--use_cache: {file} contains {content}, which cannot be reused: give another --use_cache "
        "path for these settings, or delete the file"
    )


def _files_of(folder: Path, name: str) -> list[Path]:
    pattern = re.compile(re.escape(name) + r"_rank\d+\.db")
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if pattern.fullmatch(file.name))


def _read(file: Path) -> dict[str, Any]:
    """The rows of a file; empty if another process has just created the file."""
    try:
        # Not read-only, because SQLite must roll back an unfinished write of a killed process.
        uri = f"{file.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True, timeout=60)) as answers:
            content = set(answers.execute("select type, name from sqlite_master"))
            if not content:
                return {}
            # A view or trigger could run forever.
            if content != _CONTENT:
                raise ValueError(f"it contains more than the table {_TABLE!r}")
            rows = answers.execute(f"select key, value from {_TABLE}")
            return {key: _plain(value) for key, value in rows}
    except sqlite3.OperationalError as error:
        raise LatentRefError(
            f"--use_cache: {file} cannot be read ({error}); make it readable and writable, wait "
            "for the process that uses it, or delete it"
        ) from error
    except (sqlite3.DatabaseError, ValueError, TypeError) as error:
        raise LatentRefError(
            f"--use_cache: {file} is damaged or not a cache of answers ({error}); no code in it "
            "was run: delete it, or give another --use_cache path"
        ) from error


# The memo of Python's own unpickler is a dictionary. In the C version it is an array, which a large
# index in a file could make huge.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"it contains an object, {module}.{name}, but answers are plain values")


def _plain(value: bytes) -> Any:
    """The pickled numbers, strings, tuples and lists in `value`; ValueError for anything else."""
    try:
        answer = _Unpickler(io.BytesIO(value)).load()
        _check_plain(answer, set())
    except (ValueError, TypeError):
        raise
    # A damaged pickle may raise almost any exception; no code from it has run.
    except Exception as error:
        raise ValueError(f"an answer is damaged, {type(error).__name__}") from error
    return answer


def _check_plain(answer: Any, seen: set[int]) -> None:
    if isinstance(answer, tuple | list):
        if id(answer) in seen:
            raise ValueError("it contains a list within itself, or the same list twice")
        seen.add(id(answer))
        for part in answer:
            _check_plain(part, seen)
    elif not isinstance(answer, bool | int | float | str):
        raise ValueError(f"it contains a {type(answer).__name__}, but answers are plain values")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name}={before.get(name)} (now {now.get(name)})" for name in names)
