"""Locates raw state dicts and lists the names of their tensors, without loading a tensor.

    path = state_dict_file("weights", "me/coconut:checkpoint_41")    # fetched if need be
    source = with_own_raw_file(source)      # if its folder has a raw state dict and no model
    keys_of(source)

`sources` resolves all other names; `state_dicts` loads raw state dicts.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

from safetensors import safe_open

from lm_eval_latentref.checkpoints.families import is_wrapped
from lm_eval_latentref.checkpoints.files import (
    INDEX_SUFFIX,
    WEIGHT_FILES,
    one_line,
    read_json_object,
    reading,
    state_dict_files,
)
from lm_eval_latentref.checkpoints.sources import Folder, Source
from lm_eval_latentref.errors import LatentRefError

TRAINER_FILES = "checkpoint_*"
"""Matches the names of files saved by facebookresearch/coconut's trainer and trainers based on it.
"""

_HUB_FILE = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^:]+))?:(?P<path>[^:\\]+)")
_HUB_REPO = re.compile(r"[\w.-]+/[\w.-]+(@[^:]+)?")


def is_file(name: str) -> bool:
    """Whether `name` is a local file."""
    with reading(name[:200], "correct the name"):  # it may be too long
        return Path(name).expanduser().is_file()


def is_state_dict(name: str) -> bool:
    """Whether `name` is a local file, or REPO:PATH on the hub."""
    return is_file(name) or (not os.path.isdir(name) and _HUB_FILE.fullmatch(name) is not None)


def state_dict_file(role: str, name: str) -> str:
    """The local path of the raw state dict `name`: a file, a folder with weights, or REPO:PATH.

    Raises LatentRefError if there is none; `role` is the argument with this name, for the message.
    """
    expanded = os.path.expanduser(name)
    if os.path.isfile(expanded):
        return os.path.abspath(expanded)
    match = _HUB_FILE.fullmatch(name)
    is_repo = _HUB_REPO.fullmatch(name) and not os.path.isdir(os.path.dirname(expanded))
    if os.path.isdir(expanded) or is_repo:
        repo, _, revision = name.partition("@")
        folder = Folder(expanded) if os.path.isdir(expanded) else Folder(repo, revision or None)
        if path := _weights_in(folder):
            return path
    if os.path.isdir(expanded) or match is None:
        kind = "is a folder without weights" if os.path.isdir(expanded) else "does not exist"
        raise LatentRefError(
            f"{role}={name} {kind}; give a raw state dict: a file, a folder with one "
            f"({', '.join(WEIGHT_FILES)}), or REPO:PATH on the hub"
        )
    path = Folder(match["repo"], match["revision"]).find(match["path"])
    if path is None:
        raise LatentRefError(
            f"{role}={name}: no local file of this name, and {match['path']!r} of the hub "
            f"repository {match['repo']!r} is missing or cannot be reached; check the name and the "
            "connection"
        )
    return path


def with_own_raw_file(source: Source) -> Source:
    """If the folder of `source` has a raw state dict and no model, `source` with that file.

    Then the result is `bare`; its `weights` are None if the folder has several such files. In other
    cases `source` is returned unchanged.
    """
    if source.adapter is not None or source.gguf_file is not None:
        return source
    path = weights_of(source)
    if path is not None:
        bare = is_wrapped(keys_of(source))
        return dataclasses.replace(source, weights=path, bare=True) if bare else source
    files = _trainer_files(source)
    own = str(files[0]) if len(files) == 1 else None
    return dataclasses.replace(source, weights=own, bare=True) if files else source


def check_chosen(role: str, source: Source) -> None:
    """Raise LatentRefError if the folder has several raw state dicts and none was chosen."""
    if source.bare and source.weights is None:
        names = ", ".join(path.name for path in _trainer_files(source))
        raise LatentRefError(
            f"{role}={source.name} holds several models, {names}; give one of them as "
            f"{'weights' if role == 'pretrained' else role}=FILE"
        )


def weights_of(source: Source) -> str | None:
    """The local path of the weights of `source`, or of their index if they are sharded."""
    if source.weights is not None:
        return source.weights
    if source.adapter is not None or source.gguf_file is not None:
        return None
    return Folder(source.base, source.revision, source.subfolder).find_any(WEIGHT_FILES)


def keys_of(source: Source) -> list[str]:
    """The names of the tensors of `source`."""
    path = weights_of(source)
    if path is None:
        return []
    if path.endswith(INDEX_SUFFIX):
        shards = read_json_object(path, "fetch it again").get("weight_map")
        return list(shards) if isinstance(shards, dict) else []
    if path.endswith(".safetensors"):
        try:
            with safe_open(path, "pt") as file:
                return list(file.keys())
        except Exception as error:
            raise LatentRefError(
                f"{path} cannot be loaded ({one_line(error)}); fetch or save it again"
            ) from error
    from lm_eval_latentref.checkpoints.state_dicts import read_tensors

    return list(read_tensors(path))


def _weights_in(folder: Folder) -> str | None:
    """The local path of the weights in `folder`, or of their index; all shards are fetched."""
    path = folder.find_any(WEIGHT_FILES)
    for part in state_dict_files(path) if path else ():
        folder.find(os.path.basename(part))
    return path and os.path.abspath(path)


def _trainer_files(source: Source) -> list[Path]:
    """The files in the local folder of `source` that Coconut's trainer may have written."""
    places = Path(source.base, source.subfolder).glob(TRAINER_FILES)
    return sorted(path for path in places if path.is_file())
