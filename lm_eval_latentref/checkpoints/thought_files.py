"""Reads from a checkpoint's files how it thinks: the kind of thoughts, their map, their markers.

    detected = detect_kind(plan, options)       # from key names, before weights are read
    files = thought_files(plan, raw, config)

The map from hidden state to thought is in `thought_map.safetensors` if `latentref convert` wrote
the folder, among the weights in the ports of LatentTTS, or in the raw state dict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_latentref.checkpoints.families import Family, recognise, take_apart
from lm_eval_latentref.checkpoints.manifest import Manifest
from lm_eval_latentref.checkpoints.raw_files import keys_of, weights_of
from lm_eval_latentref.checkpoints.sources import Source
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig, without_other_kinds
from lm_eval_latentref.latent.kinds import KINDS
from lm_eval_latentref.latent.loaded import ThoughtFiles

if TYPE_CHECKING:
    from lm_eval_latentref.checkpoints.sets import SetPlan
    from lm_eval_latentref.checkpoints.state_dicts import RawStateDict

MAP_NAME = "thought_map.safetensors"

SCALES = {
    "llama-3.2": 0.018,
    "llama-3.1-8b": 0.008,
    "deepseek-r1-distill-qwen-1.5b": 0.03,
    "gpt2": 0.12,
}
"""`thought_scale` of CoLaR, by a part of the base's name (xiaomi-research/colar, 4b6ae9a)."""


@dataclass(frozen=True, kw_only=True)
class DetectedKind:
    """The kind of thoughts that a checkpoint was trained with, as far as its files show it."""

    family: Family | None = None
    has_map: bool = False
    """Whether the set's folder has the file `MAP_NAME`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The options in the family's files and in latentref.json; the user overrides them. If the user
    gives another kind, options that it does not read are left out."""
    note: str = ""
    """For the log: the kind and its origin."""


def detect_kind(plan: SetPlan, given: Mapping[str, Any]) -> DetectedKind:
    """Detect the kind of thoughts from the names of the backbone's tensors.

    Args:
        given: the options that the user gives.
    """
    family = recognise(keys_of(plan.backbone))
    has_map = plan.folder is not None and plan.folder.find(MAP_NAME) is not None
    recorded = plan.settings.get("latent_kind")
    settings = {**_settings(family, plan.backbone), **plan.settings}
    chosen = str(given.get("latent_kind") or "auto").lower()
    if chosen != "auto":
        note = f"latent_kind={chosen} as given"
        settings = without_other_kinds(settings, chosen) if chosen in KINDS else settings
    elif recorded is not None:
        note = f"latent_kind={recorded} from {plan.where}"
    elif family is not None:
        name = plan.backbone.name or plan.backbone.base
        note = f"latent_kind={family.kind}: {name} has keys {family.mark}*, those of {family.name}"
        if family.latent_steps is not None:
            note += f", which thinks {family.latent_steps} thoughts unless latent_steps is given"
        if family.bare_markers:
            note += "; the second and third id after the base's vocabulary open and close them"
    else:
        note = "latent_kind=continuous, the default: neither keys nor latentref.json name a kind"
    return DetectedKind(family=family, has_map=has_map, settings=settings, note=note)


def check_kind(config: RefinementConfig, detected: DetectedKind, plan: SetPlan) -> None:
    """Raise LatentRefError if the kind needs keys that the files lack, or more `latent_steps`."""
    kind = KINDS[config.latent_kind]
    is_of_kind = detected.family is not None and detected.family.kind == kind.name
    if kind.file_keys and not (detected.has_map or is_of_kind):
        raise LatentRefError(
            f"latent_kind={kind.name}: {plan.backbone.name or plan.backbone.base} has none of the "
            f"keys {kind.file_keys}; give a checkpoint of that kind, or latent_kind=auto"
        )
    if config.latent_steps < kind.min_thoughts:
        raise LatentRefError(
            f"latent_steps={config.latent_steps} with latent_kind={kind.name}, which always feeds "
            f"{kind.min_thoughts}; give latent_steps={kind.min_thoughts} or more"
        )


def thought_files(plan: SetPlan, raw: RawStateDict | None, config: Any) -> ThoughtFiles:
    """The backbone's map, its protocol and, if they are not in its tokenizer, its marker ids.

    Args:
        raw: the backbone's raw state dict, if that is its format.
        config: the model's configuration.
    """
    family = recognise(keys_of(plan.backbone))
    protocol = plan.manifest.protocol or (family.protocol if family else None)
    tensors = _map(plan, raw, family)
    return ThoughtFiles(tensors=tensors, protocol=protocol, **_ids(plan.manifest, raw, config))


def with_thoughts(manifest: Manifest, files: ThoughtFiles) -> Manifest:
    """`manifest` with its missing fields filled in from `files`."""
    values: dict[str, Any] = {"protocol": files.protocol}
    if files.opening is not None:
        values |= {
            "opening_ids": list(files.opening),
            "closing_ids": list(files.closing or ()),
            "num_text_ids": files.num_text_ids,
        }
    missing = {name: value for name, value in values.items() if getattr(manifest, name) is None}
    return dataclasses.replace(manifest, **missing)


def write_map(files: ThoughtFiles, folder: Path) -> None:
    """Write the map from hidden state to thought into `folder`, if there is one."""
    from safetensors.torch import save_file

    if files.tensors:
        tensors = {name: tensor.contiguous() for name, tensor in files.tensors.items()}
        save_file(tensors, folder / MAP_NAME)


def _map(plan: SetPlan, raw: RawStateDict | None, family: Family | None) -> Mapping[str, Any]:
    """The weights of the map from hidden state to thought; empty if there is none."""
    from lm_eval_latentref.checkpoints.state_dicts import read_tensors

    path = plan.folder.find(MAP_NAME) if plan.folder is not None else None
    if path is not None:
        return read_tensors(path)
    if raw is not None:
        return raw.map
    if family is None or not family.maps:
        return {}
    weights = weights_of(plan.backbone)
    assert weights is not None  # the family was recognised by its keys
    parts = take_apart(weights, read_tensors(weights))
    return parts.map if parts is not None else {}


def _ids(manifest: Manifest, raw: RawStateDict | None, config: Any) -> dict[str, Any]:
    """The marker ids and the number of text ids, as fields of `ThoughtFiles`; empty if unknown."""
    if manifest.opening_ids is not None:
        return {
            "opening": tuple(manifest.opening_ids),
            "closing": tuple(manifest.closing_ids or ()),
            "num_text_ids": manifest.num_text_ids,
        }
    if raw is None or raw.family is None or not raw.family.bare_markers:
        return {}
    start = config.get_text_config().vocab_size + 1
    if raw.num_rows < start + 2:
        raise LatentRefError(
            f"{raw.path} has {raw.num_rows} embedding rows, but its thoughts are opened and "
            f"closed by the ids {start} and {start + 1}; give the base it was trained from"
        )
    return {"opening": (start,), "closing": (start + 1,), "num_text_ids": start + 1}


def _settings(family: Family | None, source: Source) -> dict[str, Any]:
    if family is None:
        return {}
    settings: dict[str, Any] = {"latent_kind": family.kind}
    if family.latent_steps is not None:
        settings["latent_steps"] = family.latent_steps
    base = source.base.lower()
    scale = next((scale for part, scale in SCALES.items() if part in base), None)
    if family.kind == "gaussian" and scale is not None:
        settings["thought_scale"] = scale
    return settings
