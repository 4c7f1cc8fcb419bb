"""Reads the records of a finished training: seconds, losses, data, references, repeat command.

    log = read_training("out/graph-s0")
    log.seconds["cot"], log.references["weak"].accuracy
    retrain_command("out/graph-s0")      # "latentref train out/graph-s0/recipe.yaml output=..."

The records are metrics.jsonl, training_data.yaml, recipe.yaml and latentref.json.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from pathlib import Path

from lm_eval_latentref.checkpoints.files import read_json_lines, read_yaml, reading
from lm_eval_latentref.checkpoints.history import DATA, METRICS, RECIPE
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, read_manifest
from lm_eval_latentref.checkpoints.packaged import without_place
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.training.data import load_data
from lm_eval_latentref.training.recipe import Recipe, load_recipe
from lm_eval_latentref.training.schedule import Epoch, choose

logger = logging.getLogger(__name__)

_ADVICE = "remove it: it is not a file that `latentref train` wrote"


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The records of a finished training."""

    seconds: Mapping[str, float]
    """Seconds of steps and validation, by phase; saving is not included."""
    losses: Mapping[str, Sequence[float]]
    """The training loss of each epoch in nats per labelled token, by phase and stage."""
    references: Mapping[str, Epoch]
    """The epochs of CoT that became `weak` and `strong`; a role is missing if its epoch is not
    known."""
    data: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """For each file and benchmark: how many `problems` were kept, and how many were `removed`
    because they are held out."""
    accuracies: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The validation accuracy after each epoch, by phase and stage."""


def read_training(folder: str) -> TrainingLog | None:
    """The training records in `folder`; None if it has no metrics.

    Raises LatentRefError if they cannot be read.
    """
    path = Path(folder) / METRICS
    if not path.is_file():
        return None
    seconds: dict[str, float] = {}
    losses: dict[str, list[float]] = {}
    accuracies: dict[str, list[float]] = {}
    epochs = []
    with reading(path, _ADVICE):
        for _, line in read_json_lines(path, _ADVICE):
            spent = line["seconds"] + line["validation_seconds"]
            seconds[line["phase"]] = seconds.get(line["phase"], 0.0) + spent
            stage = line["phase"]
            stage += "" if line["stage"] is None else f" stage {line['stage']}"
            losses.setdefault(stage, []).append(float(line["loss"]))
            accuracies.setdefault(stage, []).append(float(line["validation_accuracy"]))
            if line["phase"] == "cot":
                number, num = index(line["epoch"]), line["validation_problems"]
                epochs.append(Epoch(number, round(line["validation_accuracy"] * num), num))
    references, data = _references(folder, epochs), _data(Path(folder) / DATA)
    return TrainingLog(
        seconds=seconds, losses=losses, references=references, data=data, accuracies=accuracies
    )


def retrain_command(folder: str) -> str | None:
    """The command that trains the set in `folder` again; None if the folder has no recipe.

    A packaged set is named without its folder, and the command trains it into out/.
    """
    if _recipe(folder) is None:
        return None
    name = without_place(folder)
    output = folder if name == folder else f"out/{Path(name).name}"
    return shlex.join(["latentref", "train", f"{name}/{RECIPE}", f"output={output}-again"])


def _data(path: Path) -> dict[str, dict[str, int]]:
    if not path.is_file():
        return {}
    content = read_yaml(path, _ADVICE)
    with reading(path, _ADVICE):
        return {
            name: {key: int(counts[key]) for key in ("problems", "removed")}
            for name, counts in content.items()
        }


def _references(folder: str, epochs: Sequence[Epoch]) -> dict[str, Epoch]:
    by_number = {epoch.number: epoch for epoch in epochs}
    if not epochs:  # a training without CoT makes no references
        return {}
    recorded = {}
    for role in ("weak", "strong"):
        path = Path(folder) / role / MANIFEST_NAME
        if path.is_file():
            recorded[role] = read_manifest(path).epoch
    if len(recorded) < 2 or None in recorded.values():  # written by an older release
        recorded = dict(zip(("weak", "strong"), _chosen_again(folder, epochs), strict=True))
    return {role: by_number[number] for role, number in recorded.items() if number in by_number}


def _chosen_again(folder: str, epochs: Sequence[Epoch]) -> tuple[int | None, int | None]:
    recipe = _recipe(folder)
    if recipe is None:
        return None, None
    try:
        chance = load_data(recipe).majority
    except LatentRefError as error:
        logger.warning("%s: the epochs that became the references are not known: %s", folder, error)
        return None, None
    return choose(
        epochs, chance=chance, strong_epoch=recipe.strong_epoch, weak_epoch=recipe.weak_epoch
    )


def _recipe(folder: str) -> Recipe | None:
    path = Path(folder) / RECIPE
    try:
        return load_recipe(str(path)) if path.is_file() else None
    except LatentRefError as error:  # a recipe of another release
        logger.warning("%s", error)
        return None
