"""Resolves the references of a set: named by the user or recorded in latentref.json.

    folder, source = given_reference("strong", "me/cot@epoch-25", backbone, None)
    source = recorded_reference("strong", "strong", folder, backbone)

The second argument is what the user gives, or what latentref.json records as `strong`.

`sets` combines them with the backbone.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path, PurePosixPath

from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME
from lm_eval_latentref.checkpoints.raw_files import (
    check_chosen,
    is_file,
    is_state_dict,
    state_dict_file,
    with_own_raw_file,
)
from lm_eval_latentref.checkpoints.sources import (
    ADAPTER_CONFIG,
    Folder,
    Source,
    open_source,
    source_of,
)
from lm_eval_latentref.errors import LatentRefError

logger = logging.getLogger(__name__)


def given_reference(
    role: str, name: str, backbone: Source, revision: str | None
) -> tuple[Folder | None, Source]:
    """The folder and the source of `strong=NAME` or `weak=NAME`.

    A raw state dict has no folder; it is loaded into the backbone's base. Raises LatentRefError if
    `name` is not a checkpoint.
    """
    if name.endswith(".gguf") and is_file(name):
        return open_source(role, name, revision, "", None)
    if is_state_dict(name):
        path = state_dict_file(role, name)
        return None, dataclasses.replace(
            backbone, adapter=None, adapter_revision=None, weights=path, tokenizer=None, name=name
        )
    folder, source = open_source(role, name, revision, "", None)
    source = with_own_raw_file(source)
    check_chosen(role, source)
    if source.adapter is not None and source.revision is None and source.base == backbone.base:
        source = dataclasses.replace(source, revision=backbone.revision)
    return folder, source


def recorded_reference(role: str, recorded: str, folder: Folder, backbone: Source) -> Source:
    """The source of a reference in latentref.json: a path relative to `folder`, or any other name.

    Raises LatentRefError if it is the backbone itself, or if a set from the hub names a local file.
    Logs a warning if it lies outside the set's folder.
    """
    where = f"{role}={recorded!r} of {MANIFEST_NAME} in {folder.name}"
    source, is_inside = _find_recorded(role, recorded, folder, backbone, where)
    if _place(source) == _place(backbone):
        raise LatentRefError(
            f"{where} is the backbone itself, which cannot be its own reference; name another "
            f"checkpoint there, or give {role}= as an argument"
        )
    if not is_inside:
        logger.warning("%s is outside that folder; %s is loaded", where, source.name)
    return source


def _find_recorded(
    role: str, recorded: str, folder: Folder, backbone: Source, where: str
) -> tuple[Source, bool]:
    """The source, and whether it lies in the set's folder."""
    if folder.is_local:
        root = os.path.join(folder.name, folder.subfolder)
        path = os.path.normpath(os.path.join(root, recorded))
        if os.path.exists(path):
            is_inside = Path(path).resolve().is_relative_to(Path(root).resolve())
            return given_reference(role, path, backbone, None)[1], is_inside
    else:
        inside = Folder(folder.name, folder.commit or folder.revision)
        relative = PurePosixPath(recorded.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts or recorded.startswith("~"):
            raise _local_path_error(where)
        subfolder = PurePosixPath(folder.subfolder) / relative
        inside.subfolder = "/".join(subfolder.parts)
        if inside.find("config.json") or inside.find(ADAPTER_CONFIG):
            name = f"{folder.name}/{inside.subfolder}"
            return dataclasses.replace(source_of(inside), name=name), True
        if os.path.exists(recorded):
            raise _local_path_error(where)
    try:
        return given_reference(role, recorded, backbone, None)[1], False
    except LatentRefError as error:
        raise LatentRefError(f"{where}: {error}") from error


def _local_path_error(where: str) -> LatentRefError:
    return LatentRefError(
        f"{where} is a path on this machine, which is not allowed in a set from the hub; give the "
        "reference as an argument if you trust it"
    )


def _place(source: Source) -> tuple[object, ...]:
    return (*source.base_key, source.adapter and os.path.realpath(source.adapter))
