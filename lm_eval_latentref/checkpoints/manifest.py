"""latentref.json: the settings that a checkpoint folder recommends, and its references.

    manifest = read_manifest("out/coconut/latentref.json")
    write_manifest("out/coconut", Manifest(latent_steps=6, strong="strong", weak="weak"))

This module only defines the file's format; `sets` resolves the names in it.
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
    """The contents of latentref.json; None means that the file does not say."""

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

    opening_ids: list[int] | None = None
    closing_ids: list[int] | None = None
    """Ids around the thoughts, for checkpoints whose tokenizer does not name them."""

    num_text_ids: int | None = None
    """Text after the thoughts has ids below this one only."""

    protocol: str | None = None
    """The prompt and the answer it was trained on: a name of `latent.protocol.PROTOCOLS`."""

    strong: str | None = None
    """The stronger reference: a path relative to the folder, or any name that `strong=` takes."""

    weak: str | None = None

    base: str | None = None
    """The base model of an adapter folder, if it is not the one in adapter_config.json."""

    tuned_on: str | None = None
    """The split that memory rate and step size were tuned on, for people to read."""

    trained_on: list[str] | None = None
    """The splits used in training, such as "mathqa train"; no settings are chosen on them."""

    trained_questions: str | None = None
    """File in the folder with hashes of the questions used in training (see `questions`), without
    generated ones: their splits are disjoint whatever the seed."""

    epoch: int | None = None
    """For a reference or a kept epoch: its number within its stage, counted from 1."""

    note: str | None = None
    """What to know of the set before its figures are read; logged when it is loaded."""

    writes_steps: bool | None = None
    """Whether it was trained to write reasoning steps before its answer. If so, candidate answers
    cannot be scored right after the thoughts."""

    def settings(self) -> dict[str, object]:
        """The refinement options that the file sets, by their model-argument names."""
        values = {name: getattr(self, name) for name in OPTION_NAMES}
        return {name: value for name, value in values.items() if value is not None}


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest at `path`; a LatentRefError names the file and the wrong key."""
    values = read_json_object(path, "repair or remove it")
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise LatentRefError(
            f"{path}: format_version={version!r}, this release reads {FORMAT_VERSION}; "
            "convert the checkpoint again or install the release that wrote it"
        )
    manifest = from_mapping(Manifest, values, str(path), reads_text=False)
    file = manifest.trained_questions
    if file is not None and (file in ("", ".", "..") or re.search(r"[/\\]", file)):
        raise LatentRefError(
            f"{path}: trained_questions={file!r} is no name of a file beside it; correct the name, "
            "or leave it out"
        )
    RefinementConfig.parse(manifest.settings(), str(path))
    return manifest


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> Path:
    """Writes `manifest` into `folder` atomically: a reader never sees a part of it."""
    given = {
        name: str(value) if isinstance(value, HalfWidths) else value
        for name, value in dataclasses.asdict(manifest).items()
        if value is not None
    }
    text = json.dumps({"format_version": FORMAT_VERSION, **given}, indent=2) + "\n"
    target = Path(folder) / MANIFEST_NAME
    write_text(target, text)
    return target
