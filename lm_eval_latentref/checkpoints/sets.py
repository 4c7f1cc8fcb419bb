"""Resolves the names of a set of checkpoints into a plan, once, before anything is loaded.

    plan = resolve(CheckpointNames(pretrained="gpt2", weights="checkpoint_41", strong="cot_25"))
    plan = resolve(CheckpointNames(pretrained="out/coconut"))     # references from latentref.json
    plan, config = plan_run(plan, {"memory_rate": 0.3})           # other settings from there, too
    splits, questions = learnt_from(plan)

The user's values override those in latentref.json. `sources` resolves single names, and `loading`
loads the models of a plan.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
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
    state_dict_file,
    with_own_raw_file,
)
from lm_eval_latentref.checkpoints.references import given_reference, recorded_reference
from lm_eval_latentref.checkpoints.sources import (
    ADAPTER_CONFIG,
    Folder,
    Source,
    as_folder,
    default_source,
    on_other_weights,
    open_source,
    with_adapter,
)
from lm_eval_latentref.checkpoints.thought_files import check_kind, detect_kind
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointNames:
    """The model arguments that name the checkpoints of a set, unresolved."""

    pretrained: str | None = None
    """The backbone: a hub id, a folder, an adapter folder or a packaged set; None: the packaged set
    smollm2-135m."""
    strong: str | None = None
    """The reference towards which thoughts move: a name like `pretrained`, or a raw state dict;
    None: the reference in the backbone's latentref.json."""
    weak: str | None = None
    """The reference away from which thoughts move; the same names as for `strong`."""
    weights: str | None = None
    """A raw state dict to load into `pretrained`: a file, or REPO:PATH on the hub."""
    peft: str | None = None
    """An adapter on `pretrained`."""
    gguf_file: str | None = None
    """The GGUF file of `pretrained`."""
    revision: str | None = None
    """The revision of hub ids without a revision of their own (REPO@REVISION)."""
    subfolder: str = ""
    """The subfolder of `pretrained`."""
    tokenizer: str | None = None
    """A tokenizer that replaces the backbone's own."""
    lora_alpha: str | None = None
    """LoRA's alpha for adapters in the file `weights`; None: 32, the value of CODI and CoLaR."""

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> CheckpointNames:
        """The names among the model arguments, as text; lm-eval turns the name 100 into an int."""
        given = {name: arguments.get(name) for name in NAMES}
        return cls(**{name: str(value) for name, value in given.items() if value is not None})

    @classmethod
    def taken_from(cls, arguments: dict[str, Any]) -> CheckpointNames:
        """The names among the model arguments; they are removed from `arguments`."""
        return cls.of({name: arguments.pop(name) for name in NAMES if name in arguments})


NAMES = tuple(field.name for field in dataclasses.fields(CheckpointNames))


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """The resolved checkpoints of a set, with the settings and records in their folders."""

    backbone: Source
    strong: Source | None = None
    weak: Source | None = None

    names: CheckpointNames = dataclasses.field(default_factory=CheckpointNames)
    """The names from which it was resolved."""

    manifest: Manifest = dataclasses.field(default_factory=Manifest)
    """The backbone's latentref.json; all fields are None if there is no such file."""

    folder: Folder | None = None
    """The backbone's folder, which may have a latentref.json; None for the default base model."""

    given: tuple[Folder, ...] = ()
    """The folders of references that the user named; they have records of their own."""

    notes: tuple[str, ...] = ()
    """Log lines that say where checkpoints come from."""

    @property
    def settings(self) -> dict[str, object]:
        """The settings in latentref.json, by model-argument name."""
        return self.manifest.settings()

    @property
    def where(self) -> str:
        """The name of latentref.json in messages."""
        return f"{MANIFEST_NAME} of {without_place(self.folder.name)}" if self.folder else ""


def take_names(
    pretrained: str | SetPlan | None, arguments: dict[str, Any]
) -> CheckpointNames | SetPlan:
    """The first argument of `plan_run`, from `pretrained` and the names in `arguments`.

    The names are removed from `arguments`. Raises LatentRefError if `pretrained` is a plan and
    names are given as well.
    """
    names = CheckpointNames.taken_from(arguments)
    if not isinstance(pretrained, SetPlan):
        return dataclasses.replace(
            names, pretrained=None if pretrained is None else str(pretrained)
        )
    if others := [name for name in NAMES if getattr(names, name)]:
        raise LatentRefError(
            f"pretrained is a plan, so {', '.join(others)} cannot be given as well; give all names "
            "to `resolve`"
        )
    return pretrained


def resolve(names: CheckpointNames) -> SetPlan:
    """Resolves every checkpoint of a set, and reads the settings in its latentref.json.

    A reference that is not given is taken from the backbone's latentref.json. Raises LatentRefError
    if a name is not a checkpoint.
    """
    notes = []
    # The default for `peft` and `weights` is a plain base model, not the packaged set.
    if names.pretrained is None and names.peft is None and names.weights is None:
        # The full path, so that a folder of the same name in the working directory is not used.
        given = dataclasses.replace(names, pretrained=str(packaged_folder(DEFAULT_SET)))
        notes.append(f"pretrained={DEFAULT_SET}, the packaged set that is the default")
    else:
        given = names
    folder, backbone = _backbone(given)
    notes += on_other_weights(backbone)
    if names.weights is not None:
        path = state_dict_file("weights", names.weights)
        backbone = dataclasses.replace(backbone, weights=path, name=names.weights)
    check_chosen("pretrained", backbone)
    if names.tokenizer is not None:
        backbone = dataclasses.replace(backbone, tokenizer=names.tokenizer)
    path_of_manifest = folder.find(MANIFEST_NAME) if folder is not None else None
    manifest = read_manifest(path_of_manifest) if path_of_manifest else Manifest()
    if backbone.weights is not None:
        alpha = names.lora_alpha or manifest.lora_alpha
        backbone = dataclasses.replace(backbone, lora_alpha=lora_alpha_of(alpha))
    elif names.lora_alpha is not None:
        raise LatentRefError(
            f"lora_alpha={names.lora_alpha} is for the adapters in a raw state dict; leave it out"
        )
    plan = SetPlan(backbone=backbone, names=names, manifest=manifest, folder=folder)
    references: dict[str, Any] = {}
    folders = []
    for role in ("strong", "weak"):
        name, recorded = getattr(names, role), getattr(manifest, role)
        if name is not None:
            own, references[role] = given_reference(role, name, backbone, names.revision)
            folders += [own] if own is not None else []
            notes.append(f"{role}={name} as given")
        elif recorded is not None:
            assert folder is not None
            references[role] = recorded_reference(role, recorded, folder, backbone)
            notes.append(f"{role}={recorded} from {plan.where}")
    return dataclasses.replace(plan, **references, given=tuple(folders), notes=tuple(notes))


def plan_run(
    given: CheckpointNames | SetPlan, options: Mapping[str, Any]
) -> tuple[SetPlan, RefinementConfig]:
    """The checkpoints to load, references only if the search uses them, and the refinement.

    Logs the origin of every setting, and a warning if references are not used or if nobody gave the
    number of thoughts.

    Args:
        given: the names, or the result of `resolve`.
        options: fields of `RefinementConfig`; they override latentref.json.

    Raises:
        LatentRefError: a name is not a checkpoint, a value is outside its domain, or the search
            lacks a reference.
    """
    plan = resolve(given) if isinstance(given, CheckpointNames) else given
    own = {k: v for k, v in options.items() if v is not None or k == "latent_markers"}
    kind = detect_kind(plan, own)
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
    if "latent_steps" not in {**kind.settings, **own}:
        logger.warning("latent_steps=0: there are no thoughts; give latent_steps=6, for example")
    return plan, config


def learnt_from(plan: SetPlan) -> tuple[frozenset[str], Hashes]:
    """The splits on which the checkpoints of `plan` were trained, and the hashes of the questions.

    They are those in the latentref.json of the backbone, which covers the references it names, and
    of each reference that the user named. Raises LatentRefError if hashes cannot be read.
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
            f"search_step_size={config.search_step_size} needs both references, but {names} is not "
            f"given; give {names}= as well, or search_step_size=0"
        )


def _on_settings(plan: SetPlan, usable: Collection[str], own: Collection[str]) -> list[str]:
    """A log line for each setting in latentref.json, and lines with its `tuned_on` and `note`."""
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
    """The backbone's folder, which may have a latentref.json, and the backbone."""
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
            f"pretrained={pretrained} is an adapter itself, so peft={peft} cannot be added; "
            "give the base model as pretrained="
        )
    adapter = as_folder("peft", peft, revision)
    if not adapter.find(ADAPTER_CONFIG):
        raise LatentRefError(f"peft={peft} has no {ADAPTER_CONFIG}; give a PEFT adapter")
    source = dataclasses.replace(with_adapter(source, adapter), name=peft)
    return (adapter if adapter.find(MANIFEST_NAME) else folder), source


def _beside(folder: Folder | None, name: str | None) -> str | None:
    if folder is None or name is None:
        return None
    return folder.find(name) or os.path.join(folder.name, folder.subfolder, name)
