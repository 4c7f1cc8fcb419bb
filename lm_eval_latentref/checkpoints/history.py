"""Copies the training records of checkpoint folders into a set that is built from them.

    copy_history({"pretrained": source}, Path("out/mine"), name="mine")

The records do not influence what a set computes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
"""The files that training writes beside the weights: metrics, data and recipe."""


def copy_history(members: Mapping[str, Source], folder: Path, *, name: str) -> None:
    """Copies recipe, data and metrics of the backbone, and epoch and splits of the references.

    Args:
        members: the sources by role: `pretrained`, and `strong` and `weak` if there are any.
        folder: the folder of the new set; references are in subfolders named after their roles.
        name: the folder's final name.
    """
    for role, source in members.items():
        if source.weights is not None:  # the folder's records belong to other weights
            continue
        origin = Path(source.adapter or os.path.join(source.base, source.subfolder))
        if role != "pretrained":
            _copy_reference_record(origin, folder / role)
            continue
        for record in (METRICS, DATA):
            if (origin / record).is_file():
                shutil.copyfile(origin / record, folder / record)
        if (origin / RECIPE).is_file():
            recipe = read_yaml(origin / RECIPE, "mend or remove it")
            # The recipe's output folder is that of the new set.
            text = yaml.safe_dump({**recipe, "output": f"out/{name}"}, sort_keys=False)
            write_text(folder / RECIPE, text)


def _copy_reference_record(origin: Path, folder: Path) -> None:
    """Copies a reference's latentref.json without refinement settings and references."""
    if not os.path.lexists(origin / MANIFEST_NAME):
        return
    recorded = read_manifest(origin / MANIFEST_NAME)
    questions = recorded.trained_questions and origin / recorded.trained_questions
    if questions and questions.is_file():
        write_hashes(folder, read_hashes(questions))
    refinement = ("memory_rate", "search_step_size", "search_steps", "search_gradient")
    settings: dict[str, Any] = recorded.settings()
    manifest = Manifest(
        **{name: value for name, value in settings.items() if name not in refinement},
        trained_on=recorded.trained_on,
        trained_questions=QUESTIONS_NAME if questions and questions.is_file() else None,
        epoch=recorded.epoch,
        writes_steps=recorded.writes_steps,
    )
    write_manifest(folder, manifest)
