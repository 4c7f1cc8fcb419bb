"""latentref.json: the settings a checkpoint folder recommends and where its references are.

    manifest = read_manifest("out/coconut/latentref.json")
    write_manifest("out/coconut", Manifest(latent_steps=6, strong="strong", weak="weak"))

Knows the file's format only; what the names in it stand for is for `sets` to find out.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_latentref.checkpoints.files import read_json_object, write_text
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import OPTION_NAMES, HalfWidths, RefinementConfig

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

    strong: str | None = None
    """The stronger reference: a path relative to the folder, or any name that `strong=` takes."""

    weak: str | None = None

    base: str | None = None
    """What an adapter folder's base model is, where adapter_config.json does not say it well."""

    tuned_on: str | None = None
    """The split that memory rate and step size were tuned on, for people to read."""

    trained_on: list[str] | None = None
    """The splits ("mathqa train") that a training saw: no settings are chosen on them."""

    trained_questions: str | None = None
    """File in the folder with hashes of the questions that a training saw (see `questions`). What
    a generator drew is not among them: its splits are apart whatever the seed."""

    epoch: int | None = None
    """Of a reference or a kept epoch: which of its stage it is, counted from 1."""

    writes_steps: bool | None = None
    """Whether it was trained to write reasoning steps before its answer: then answers on offer
    cannot be compared straight after the thoughts."""

    def settings(self) -> dict[str, object]:
        """The refinement options that the file sets, by their model-argument names."""
        values = {name: getattr(self, name) for name in OPTION_NAMES}
        return {name: value for name, value in values.items() if value is not None}


_TYPES: dict[str, tuple[type, ...]] = {
    "latent_steps": (int,),
    "memory_rate": (int, float),
    "search_step_size": (int, float, str),
    "search_steps": (int,),
    "search_gradient": (str,),
    "latent_markers": (str,),
    "latent_kind": (str,),
    "strong": (str,),
    "weak": (str,),
    "base": (str,),
    "tuned_on": (str,),
    "trained_on": (list,),
    "trained_questions": (str,),
    "epoch": (int,),
    "writes_steps": (bool,),
}


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest at `path`; LatentRefError names the file and the key that is wrong."""
    values = read_json_object(path, "repair or remove it")
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise LatentRefError(
            f"{path}: format_version={version!r}, this release reads {FORMAT_VERSION}; "
            "convert the checkpoint again or install the release that wrote it"
        )
    for name, value in values.items():
        _check_value(path, name, value)
    manifest = Manifest(**values)
    try:
        RefinementConfig.parse(manifest.settings())
    except LatentRefError as error:
        raise LatentRefError(f"{path}: {error}") from error
    return manifest


def write_manifest(folder: str | os.PathLike[str], manifest: Manifest) -> Path:
    """Writes `manifest` into `folder` in one step, so that no reader ever sees half of it."""
    given = {
        name: str(value) if isinstance(value, HalfWidths) else value
        for name, value in dataclasses.asdict(manifest).items()
        if value is not None
    }
    text = json.dumps({"format_version": FORMAT_VERSION, **given}, indent=2) + "\n"
    target = Path(folder) / MANIFEST_NAME
    write_text(target, text)
    return target


def _check_value(path: str | os.PathLike[str], name: str, value: Any) -> None:
    if name not in _TYPES:
        raise LatentRefError(
            f"{path}: unknown key {name!r}; the keys are format_version, {', '.join(_TYPES)}"
        )
    allowed = _TYPES[name]
    items = value if isinstance(value, list) else []
    whole = all(isinstance(item, str) for item in items)
    if not isinstance(value, allowed) or isinstance(value, bool) > (bool in allowed) or not whole:
        names = {float: "number", list: "list of str"}
        wanted = " or ".join(names.get(kind, kind.__name__) for kind in allowed)
        raise LatentRefError(f"{path}: {name}={value!r} must be of type {wanted}; correct the file")
