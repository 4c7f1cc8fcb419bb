"""The format of latentref.json: a checkpoint folder's recommended settings and its references.

    manifest = read_manifest("out/coconut/latentref.json")
    write_manifest("out/coconut", Manifest(latent_steps=6, strong="strong", weak="weak"))

`sets` resolves the names in the file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from lm_eval_latentref.checkpoints.files import read_json_object, write_text
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import OPTION_NAMES, HalfWidths, RefinementConfig
from lm_eval_latentref.latent.mapping import from_mapping

MANIFEST_NAME = "latentref.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of latentref.json; a field that is None is not in the file.

    The fields up to `confidence_noise` are options of `RefinementConfig`.
    """

    latent_steps: int | None = None
    memory_rate: float | None = None
    search_step_size: float | str | None = None
    """A number, or "0.3*d/2" with the hidden size d."""
    search_steps: int | None = None
    search_gradient: str | None = None
    latent_markers: str | None = None
    latent_kind: str | None = None
    latent_stop: str | None = None
    stop_entropy: float | None = None
    stop_patience: int | None = None
    mixture_temperature: float | None = None
    mixture_top_k: int | None = None
    mixture_top_p: float | None = None
    mixture_min_p: float | None = None
    mixture_tokens: int | None = None
    realign: str | None = None
    thought_scale: float | None = None
    thought_temperature: float | None = None
    thought_noise: float | None = None
    thought_dropout: float | None = None
    thought_seed: int | None = None
    confidence_steps: int | None = None
    confidence_step_size: float | None = None
    confidence_noise: float | None = None

    lora_alpha: float | None = None
    """LoRA's alpha for adapters in a raw state dict that is loaded into this folder's model."""

    opening_ids: list[int] | None = None
    closing_ids: list[int] | None = None
    """The ids of the markers before and after the thoughts, if they are not in the tokenizer."""

    num_text_ids: int | None = None
    """Text after the thoughts has only ids below this number."""

    protocol: str | None = None
    """The protocol on which it was trained, a key of `latent.protocol.PROTOCOLS`."""

    strong: str | None = None
    """The strong reference: a path relative to the folder, or any name that `strong=` accepts."""

    weak: str | None = None
    """The weak reference; the same names as for `strong`."""

    base: str | None = None
    """The base model of an adapter, in place of the base in adapter_config.json."""

    tuned_on: str | None = None
    """The split on which memory rate and step size were tuned; for people, not for programs."""

    trained_on: list[str] | None = None
    """The splits used in training, such as "mathqa train"; settings cannot be chosen on them."""

    trained_questions: str | None = None
    """The name of a file in the folder with hashes of the training questions (see `questions`).
    Generated questions are not included: the splits of a generator are always disjoint."""

    epoch: int | None = None
    """The number of the epoch within its stage, counted from 1; for checkpoints of one epoch."""

    note: str | None = None
    """A remark about the set's figures, logged when the set is loaded."""

    writes_steps: bool | None = None
    """Whether it was trained to write reasoning steps before its answer; if so, candidate answers
    cannot be scored directly after the thoughts."""

    def settings(self) -> dict[str, object]:
        """The options of `RefinementConfig` in the file, by name."""
        values = {name: getattr(self, name) for name in OPTION_NAMES}
        return {name: value for name, value in values.items() if value is not None}


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest at `path`; raises a LatentRefError that names the file and the wrong key."""
    values = read_json_object(path, "repair or remove it")
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise LatentRefError(
            f"{path}: format_version={version!r}, but this release reads {FORMAT_VERSION}; "
            "convert the checkpoint again or install the release that wrote it"
        )
    manifest = from_mapping(Manifest, values, str(path), reads_text=False)
    file = manifest.trained_questions
    if file is not None and (file in ("", ".", "..") or re.search(r"[/\\]", file)):
        raise LatentRefError(
            f"{path}: trained_questions={file!r} is not the name of a file in this folder; correct "
            "the name, or leave it out"
        )
    RefinementConfig.parse(manifest.settings(), str(path))
    return manifest


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> Path:
    """Writes `manifest` into `folder` atomically and returns the path of the file."""
    values = {
        name: str(value) if isinstance(value, HalfWidths) else value
        for name, value in dataclasses.asdict(manifest).items()
        if value is not None
    }
    text = json.dumps({"format_version": FORMAT_VERSION, **values}, indent=2) + "\n"
    target = Path(folder) / MANIFEST_NAME
    write_text(target, text)
    return target
