"""Reads and writes files; a LatentRefError of one line names the file that has a problem.

values = read_json("out/coconut/latentref.json", advice="repair or remove it")
for number, row in read_json_lines("train.jsonl"): ...
with reading("state.pt"): torch.load("state.pt", weights_only=True)
with replacing("results.json") as temporary: temporary.write_text(text)
with holding("out/mine", "latentref train"): ...      # a second process gets an error
file_digest("checkpoint_41"), folder_digest("out/coconut")    # sha256, cached
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from lm_eval_latentref.errors import LatentRefError, printable, saving

PathLike = str | os.PathLike[str]

LOCK = ".latentref.lock"
HOLDER = ".latentref.holder"

_CONTENT = {".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".py"}
_SETTINGS = {"latentref.json"}

INDEX_SUFFIX = ".index.json"
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-00001-of-00001.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The names of weight files in a folder; the first that exists is used."""

_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def one_line(error: BaseException, limit: int = 200) -> str:
    """The text of `error` without line breaks; its class name if it has no text."""
    return printable(" ".join(str(error).split()))[:limit] or type(error).__name__


@contextlib.contextmanager
def reading(path: object, advice: str = "mend or replace the file") -> Iterator[None]:
    """Turns any error while `path` is read into a LatentRefError.

    All exceptions are caught, because a parser may raise any of them on a damaged file.
    """
    try:
        yield
    except BaseException as error:
        # The Rust parsers of tokenizers and safetensors raise a BaseException, PanicException.
        damaged = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if isinstance(error, LatentRefError) or not damaged:
            raise
        raise LatentRefError(
            f"{printable(str(path))} cannot be read ({_reason(error)}); {advice}"
        ) from error


def read_text(path: PathLike, advice: str = "mend or replace the file") -> str:
    """The UTF-8 text in `path`, without a byte order mark."""
    with reading(path, advice):
        return Path(path).read_text(encoding="utf-8-sig")


def read_json(path: PathLike, advice: str = "mend or replace the file") -> Any:
    """The JSON value in `path`; NaN, Infinity and text that UTF-8 cannot encode are errors."""
    text = read_text(path, advice)
    with reading(path, advice):
        return parse_json(text)


def read_json_object(path: PathLike, advice: str = "mend or replace the file") -> dict[str, Any]:
    """The JSON object in `path`; raises LatentRefError if the file holds another value."""
    values = read_json(path, advice)
    if not isinstance(values, dict):
        raise LatentRefError(f"{path} must hold one JSON object; {advice}")
    return values


def read_json_lines(
    path: PathLike, advice: str = "mend or replace it"
) -> Iterator[tuple[int, Any]]:
    """Yields the number of each line, counted from 1, and its JSON value; skips empty lines."""
    with reading(path, advice), Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                with reading(f"{path}, line {number}", advice):
                    value = parse_json(line.decode("utf-8"))
                yield number, value


def read_yaml(path: PathLike, advice: str = "correct it") -> dict[str, Any]:
    """The mapping in the YAML file `path`; its keys are strings."""
    import yaml

    text = read_text(path, advice)
    with reading(path, advice):
        values = yaml.safe_load(text)
    if not isinstance(values, dict):
        raise LatentRefError(f"{path} must hold KEY: VALUE lines; {advice}")
    for key in values:
        if not isinstance(key, str):
            raise LatentRefError(f"{path}: the key {key!r} is not text; {advice}")
    return values


def parse_json(text: str) -> Any:
    """The value of `text`, which must be strict JSON; raises ValueError if it is not."""
    value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_number)
    if _ESCAPED_SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


@contextlib.contextmanager
def replacing(target: PathLike) -> Iterator[Path]:
    """Yields a temporary path to write to; when the block ends, that file replaces `target`."""
    path = Path(target)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(target: PathLike) -> Iterator[Path]:
    """Yields a temporary folder to fill; when the block ends, it is renamed to `target`.

    At that time `target` must not exist, or be an empty folder.
    """
    path = Path(target)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with saving(path):
        temporary.mkdir(parents=True)
    try:
        with saving(path):
            yield temporary
            if path.exists():
                path.rmdir()
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: PathLike, text: str) -> None:
    """Writes `text` to `target` atomically: no reader sees an incomplete file."""
    with saving(target), replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Waits until `path` is on the disk, so that it survives a power cut."""
    if path.is_file():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def holding(folder: PathLike, command: str) -> Iterator[None]:
    """Locks `folder`, which is created if missing, against other processes inside this block.

    Raises LatentRefError, which names the other process, if another process holds the lock. The
    lock ends with the process, even if it is killed.
    """
    folder = Path(folder)
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LatentRefError(
                f"{folder} is in use by {_holder(folder)}; wait until that process ends, or name "
                "another folder"
            ) from None
    try:
        with saving(folder):
            holder = f"{command}, process {os.getpid()} on {socket.gethostname()}"
            (folder / HOLDER).write_text(holder, encoding="utf-8")
        yield
    finally:
        # Remove the files while the lock is held: later they may be another process's.
        for name in (HOLDER, LOCK):
            with contextlib.suppress(OSError):  # Windows cannot remove open files
                (folder / name).unlink()
        lock.release()
        with contextlib.suppress(OSError):  # the folder is not empty
            folder.rmdir()


def file_digest(path: PathLike) -> str:
    """sha256 of the file's bytes, cached until the file's size or modification time changes."""
    stat = os.stat(path)
    return _digest(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)


def state_dict_files(path: PathLike) -> list[str]:
    """The files of the state dict at `path`: the file itself or, for an index, its shards."""
    if not str(path).endswith(INDEX_SUFFIX):
        return [str(path)]
    shards = read_json_object(path, "fetch it again").get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise LatentRefError(f"{path} has no weight_map; fetch the checkpoint again")
    return [os.path.join(os.path.dirname(path), str(name)) for name in sorted(set(shards.values()))]


def folder_digest(folder: PathLike, gguf_file: str | None = None) -> str:
    """sha256 of the weights, configuration and tokenizer at the top of `folder`.

    With `gguf_file` only that file is read, because it contains all three. latentref.json is not
    read, because settings are recorded separately.
    """
    if gguf_file is not None:
        return file_digest(os.path.join(folder, gguf_file))
    total = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and path.suffix in _CONTENT and path.name not in _SETTINGS:
            total.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=256)
def _digest(path: str, size: int, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holder(folder: Path) -> str:
    try:
        return printable((folder / HOLDER).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return "another process"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite_number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large a number")
    return value


def _reason(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)
