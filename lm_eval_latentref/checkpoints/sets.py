"""Resolves the names of a set of checkpoints into a plan, once, before anything is loaded.

    plan = resolve(CheckpointNames(pretrained="gpt2", weights="checkpoint_41", strong="cot_25"))
    plan = resolve(CheckpointNames(pretrained="out/coconut"))     # references from latentref.json
    plan, config = plan_run(plan, {"memory_rate": 0.3})           # settings from there as well
    splits, questions = learnt_from(plan)

Values from the user are combined with those in latentref.json. `sources` resolves single names;
`loading` opens the models of a plan.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lm_eval_latentref.checkpoints.families import lora_alpha_of
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, Manifest, read_manifest
from lm_eval_latentref.checkpoints.packaged import (
    BASE_NAME,
    DEFAULT_SET,
    packaged_folder,
    without_place,
)
from lm_eval_latentref.checkpoints.questions import Hashes, hash_questions, read_hashes
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
    as_folder,
    default_source,
    on_other_weights,
    open_source,
    source_of,
    with_adapter,
)
from lm_eval_latentref.checkpoints.thought_files import check_kind, find_kind
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointNames:
    """The arguments that name a set's checkpoints, as a user gives them."""

    pretrained: str | None = None
    """The backbone: hub id, folder, adapter folder or packaged set; None for the set of this
    package, smollm2-135m."""
    strong: str | None = None
    """The reference to move thoughts towards: as `pretrained`, or a raw state dict; None for the
    one named in the backbone's latentref.json."""
    weak: str | None = None
    """The reference to move thoughts away from, named in the same way."""
    weights: str | None = None
    """A raw state dict to load into `pretrained`: a file, or REPO:PATH on the hub."""
    peft: str | None = None
    """An adapter on `pretrained`."""
    gguf_file: str | None = None
    """The file of `pretrained` that holds its weights, in GGUF."""
    revision: str | None = None
    """The revision of names on the hub that contain none of their own."""
    subfolder: str = ""
    """The subfolder of `pretrained`."""
    tokenizer: str | None = None
    """A tokenizer to be used in place of the backbone's own."""
    lora_alpha: str | None = None
    """Of the adapters in the file `weights`; None: 32, as CODI and CoLaR were trained with."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> CheckpointNames:
        """The names among the model arguments, as text: lm-eval reads a name such as 100 as int."""
        given = {name: arguments.get(name) for name in NAMES}
        return cls(**{name: str(value) for name, value in given.items() if value is not None})

    @classmethod
    def taken_from(cls, arguments: dict[str, Any]) -> CheckpointNames:
        """The names among the model arguments, which are removed from `arguments`."""
        return cls.of({name: arguments.pop(name) for name in NAMES if name in arguments})


NAMES = tuple(field.name for field in dataclasses.fields(CheckpointNames))


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """The checkpoints to load, with the settings and records of their folders."""

    backbone: Source
    strong: Source | None = None
    weak: Source | None = None

    names: CheckpointNames = dataclasses.field(default_factory=CheckpointNames)
    """The names it was resolved from."""

    manifest: Manifest = dataclasses.field(default_factory=Manifest)
    """The backbone's latentref.json; empty if there is none."""

    folder: Folder | None = None
    """The folder of that file, or where it would be; None for the default base model."""

    given: tuple[Folder, ...] = ()
    """The folders of references that were given by name, which have records of their own."""

    notes: tuple[str, ...] = ()
    """Lines for the log that say where checkpoints came from."""

    @property
    def settings(self) -> dict[str, object]:
        """Values from latentref.json, by model-argument name."""
        return self.manifest.settings()

    @property
    def where(self) -> str:
        """The name of latentref.json in messages."""
        return f"{MANIFEST_NAME} of {without_place(self.folder.name)}" if self.folder else ""


def take_names(
    pretrained: str | SetPlan | None, arguments: dict[str, Any]
) -> CheckpointNames | SetPlan:
    """The first argument of `plan_run`, from `pretrained` and the names in `arguments`.

    The names are removed from `arguments`. Raises LatentRefError if names are given together with a
    plan, which has its own.
    """
    names = CheckpointNames.taken_from(arguments)
    if not isinstance(pretrained, SetPlan):
        return dataclasses.replace(
            names, pretrained=None if pretrained is None else str(pretrained)
        )
    if beside := [name for name in NAMES if getattr(names, name)]:
        raise LatentRefError(
            f"pretrained is a plan already, to which {', '.join(beside)} cannot be added; give all "
            "names to `resolve`"
        )
    return pretrained


def resolve(names: CheckpointNames) -> SetPlan:
    """Resolves every checkpoint of a set, and reads the settings in its latentref.json.

    A reference that is not given is taken from the backbone's latentref.json. Raises LatentRefError
    for a name that is not a checkpoint.
    """
    notes = []
    # `peft` and `weights` without `pretrained` go with a plain model, not with the packaged set.
    if names.pretrained is None and names.peft is None and names.weights is None:
        # The full path, so that a folder of the same name in the working directory is not used.
        given = dataclasses.replace(names, pretrained=str(packaged_folder(DEFAULT_SET)))
        notes.append(f"pretrained={DEFAULT_SET}, the trained set of this package: none was given")
    else:
        given = names
    folder, backbone = _backbone(given)
    notes += on_other_weights(backbone)
    if names.weights is not None:
        path = state_dict_file("weights", names.weights)
        backbone = dataclasses.replace(backbone, weights=path, name=names.weights)
    check_chosen("pretrained", backbone)
    if backbone.weights is not None:
        backbone = dataclasses.replace(backbone, lora_alpha=lora_alpha_of(names.lora_alpha))
    elif names.lora_alpha is not None:
        raise LatentRefError(
            f"lora_alpha={names.lora_alpha} is for the adapters in a raw state dict; leave it out"
        )
    if names.tokenizer is not None:
        backbone = dataclasses.replace(backbone, tokenizer=names.tokenizer)
    path_of_manifest = folder.find(MANIFEST_NAME) if folder is not None else None
    manifest = read_manifest(path_of_manifest) if path_of_manifest else Manifest()
    plan = SetPlan(backbone=backbone, names=names, manifest=manifest, folder=folder)
    references: dict[str, Any] = {}
    folders = []
    for role in ("strong", "weak"):
        name, recorded = getattr(names, role), getattr(manifest, role)
        if name is not None:
            own, references[role] = _reference(role, name, backbone, names.revision)
            folders += [own] if own is not None else []
            notes.append(f"{role}={name} as given")
        elif recorded is not None:
            assert folder is not None
            references[role] = _recorded_reference(role, recorded, folder, backbone)
            notes.append(f"{role}={recorded} from {plan.where}")
    return dataclasses.replace(plan, **references, given=tuple(folders), notes=tuple(notes))


def plan_run(
    given: CheckpointNames | SetPlan, options: Mapping[str, Any]
) -> tuple[SetPlan, RefinementConfig]:
    """The checkpoints to load, with references only if they are used, and the refinement.

    Args:
        given: the names, or the result of `resolve`.
        options: fields of `RefinementConfig` as given; they override latentref.json.

    Raises LatentRefError for a name that is not a checkpoint, a value outside its domain, or a
    search without both references. Logs a warning about references that are not used, and if there
    are no thoughts.
    """
    plan = resolve(given) if isinstance(given, CheckpointNames) else given
    own = {k: v for k, v in options.items() if v is not None or k == "latent_markers"}
    kind = find_kind(plan, own)
    config = RefinementConfig.parse({**kind.settings, **own})
    check_kind(config, kind, plan)
    _check_references(plan, config)
    for note in (kind.note, *plan.notes, *_on_settings(plan, kind.settings, own)):
        logger.info("%s", note)
    if not config.searches and (plan.strong or plan.weak):
        if plan.names.strong or plan.names.weak:
            logger.warning(
                "strong and weak are given but search_step_size=%g and latent_steps=%d: they are "
                "neither loaded nor used",
                config.search_step_size,
                config.latent_steps,
            )
        plan = dataclasses.replace(plan, strong=None, weak=None)
    if config.latent_steps == 0:
        logger.warning("latent_steps=0: nothing is thought; give latent_steps=6, for example")
    return plan, config


def learnt_from(plan: SetPlan) -> tuple[frozenset[str], Hashes]:
    """The splits, and the hashes of the questions, that the checkpoints of `plan` were trained on.

    They come from each latentref.json and the hashes it names. References named in latentref.json
    were trained together with the backbone. Raises LatentRefError for hashes that cannot be read.
    """
    records = [(plan.folder, plan.manifest)]
    for folder in plan.given:
        path = folder.find(MANIFEST_NAME)
        records.append((folder, read_manifest(path) if path else Manifest()))
    files = {_beside(folder, record.trained_questions) for folder, record in records} - {None}
    questions = [hash_questions([]), *(read_hashes(file) for file in sorted(filter(None, files)))]
    splits = frozenset(split for _, record in records for split in record.trained_on or ())
    return splits, np.unique(np.concatenate(questions))


def _check_references(plan: SetPlan, config: RefinementConfig) -> None:
    missing = [name for name in ("strong", "weak") if getattr(plan, name) is None]
    if config.search_step_size != 0 and missing:
        names = " and ".join(missing)
        raise LatentRefError(
            f"search_step_size={config.search_step_size} needs both references, and {names} is not "
            f"given; give {names}= as well, or search_step_size=0"
        )


def _on_settings(plan: SetPlan, usable: Collection[str], own: Collection[str]) -> list[str]:
    """A line for each value of latentref.json: whether it is used, and what it was tuned on."""
    notes = [
        f"{option} as given; {plan.where} has {value}"
        if option in own
        else f"{option}={value} from {plan.where}"
        if option in usable
        else f"{option}={value} from {plan.where} is of another latent_kind and not used"
        for option, value in plan.settings.items()
    ]
    if plan.manifest.tuned_on is not None:
        notes.append(f"values of {plan.where} were tuned on {plan.manifest.tuned_on}")
    if plan.manifest.note is not None:
        notes.append(plan.manifest.note)
    return notes


def _backbone(names: CheckpointNames) -> tuple[Folder | None, Source]:
    """The folder whose latentref.json belongs to the backbone, if there is one; the backbone."""
    pretrained, peft, revision = names.pretrained, names.peft, names.revision
    if pretrained is None or pretrained == BASE_NAME:
        folder, source = None, default_source()
    else:
        if is_file(pretrained) and not pretrained.endswith(".gguf"):
            raise LatentRefError(
                f"pretrained={pretrained} is a file; give the model it was trained from as "
                "pretrained= and the file as weights="
            )
        folder, source = open_source(
            "pretrained", pretrained, revision, names.subfolder, names.gguf_file
        )
        source = with_own_raw_file(source)
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


def _reference(
    role: str, name: str, backbone: Source, revision: str | None
) -> tuple[Folder | None, Source]:
    """The folder and the source of `strong=` or `weak=`.

    A raw state dict has no folder; it is loaded into the backbone's base.
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


def _recorded_reference(role: str, recorded: str, folder: Folder, backbone: Source) -> Source:
    """The source of a reference that latentref.json names, by a relative path or any other name.

    Raises LatentRefError if it is the backbone itself, or if a set from the hub names a local file.
    Logs a warning if it lies outside the set's folder.
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
            return _reference(role, path, backbone, None)[1], is_inside
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
        return _reference(role, recorded, backbone, None)[1], False
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
