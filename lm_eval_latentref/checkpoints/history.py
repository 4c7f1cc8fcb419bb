"""What checkpoint folders tell of their own training, taken along into a set made of them.

    copy_history({"pretrained": source}, Path("out/mine"), name="mine")

Weights decide what a set does and nothing here does; deliberately opens no model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml

from lm_eval_latentref.checkpoints.files import read_yaml, write_text
from lm_eval_latentref.checkpoints.manifest import (
    MANIFEST_NAME,
    Manifest,
    read_manifest,
    write_manifest,
)
from lm_eval_latentref.checkpoints.questions import QUESTIONS_NAME, read_hashes, write_hashes
from lm_eval_latentref.checkpoints.sources import Source

METRICS = "metrics.jsonl"
DATA = "training_data.yaml"
RECIPE = "recipe.yaml"
"""What a training writes beside its result: the metrics of its epochs, its data, its recipe."""


def copy_history(members: Mapping[str, Source], folder: Path, *, name: str) -> None:
    """Copies recipe, data and metrics of the backbone, epoch and splits of the references.

    Args:
        members: `pretrained`, `strong` and `weak`, as far as there are any.
        folder: of the new set, references in subfolders of their names.
        name: what the folder will be called.
    """
    for role, source in members.items():
        if source.weights is not None:  # laid over a model that was trained otherwise
            continue
        origin = Path(source.adapter or os.path.join(source.base, source.subfolder))
        if role != "pretrained":
            _copy_reference_record(origin, folder / role)
            continue
        for told in (METRICS, DATA):
            if (origin / told).is_file():
                shutil.copyfile(origin / told, folder / told)
        if (origin / RECIPE).is_file():
            recipe = read_yaml(origin / RECIPE, "mend or remove it")
            # Where it was written says nothing to those who get the folder.
            text = yaml.safe_dump({**recipe, "output": f"out/{name}"}, sort_keys=False)
            write_text(folder / RECIPE, text)


def _copy_reference_record(origin: Path, folder: Path) -> None:
    """Its latentref.json, without what belongs to a whole set."""
    if not os.path.lexists(origin / MANIFEST_NAME):
        return
    told = read_manifest(origin / MANIFEST_NAME)
    questions = told.trained_questions and origin / told.trained_questions
    if questions and questions.is_file():
        write_hashes(folder, read_hashes(questions))
    manifest = Manifest(
        latent_steps=told.latent_steps,
        latent_kind=told.latent_kind,
        trained_on=told.trained_on,
        trained_questions=QUESTIONS_NAME if questions and questions.is_file() else None,
        epoch=told.epoch,
    )
    write_manifest(folder, manifest)
