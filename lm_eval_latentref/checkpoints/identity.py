"""What tells two checkpoints apart: the commit of a hub repository, or the bytes of local files.

    file_digest("checkpoint_41")                 # sha256, computed once per file
    folder_digest("out/coconut", gguf_file=None)

Knows files only; deliberately not how they are loaded.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

_CONTENT = {".safetensors", ".bin", ".json", ".model", ".txt", ".jinja", ".py"}
_SETTINGS = {"latentref.json"}


def file_digest(path: str | os.PathLike[str]) -> str:
    """sha256 of the file's bytes; remembered until its size or time of change differs."""
    stat = os.stat(path)
    return _digest(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)


def folder_digest(folder: str | os.PathLike[str], gguf_file: str | None = None) -> str:
    """sha256 over weights, configuration and tokenizer at the top of `folder`.

    With `gguf_file` that file alone counts, for it holds all three. latentref.json does not
    count: it holds settings, which stand beside the identity.
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
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
