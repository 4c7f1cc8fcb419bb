"""The folders of a study: a name of its own for each set, and where its other models lie.

    distinct_names(["out/s0/epochs/coconut-3-1", "out/s1/epochs/coconut-3-1"])
    place = SetPlace("out/s0/epochs/coconut-3-1")
    place.root, place.references()         # "out/s0", {"strong": "out/s0/strong", "weak": ...}

A kept epoch has no references and baselines in its own folder; those of its training are used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_latentref.checkpoints.files import read_yaml
from lm_eval_latentref.checkpoints.history import RECIPE
from lm_eval_latentref.checkpoints.manifest import MANIFEST_NAME, Manifest, read_manifest
from lm_eval_latentref.checkpoints.packaged import local_folder
from lm_eval_latentref.evaluation.study_options import BASELINES, check_distinct
from lm_eval_latentref.training.state import EPOCHS

PAUSE = "pause"


def distinct_names(folders: Sequence[str]) -> list[str]:
    """A name for each folder: its last parts, as many as no other folder ends with.

    Raises LatentRefError if a folder is given twice.
    """
    paths = [_full(folder) for folder in folders]
    check_distinct("folder", [str(path) for path in paths])
    parts = [path.parts[1:] for path in paths]
    return [str(Path(*_distinct(own, parts))) for own in parts]


def _distinct(own: tuple[str, ...], others: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    for num in range(1, len(own)):
        if sum(other[-num:] == own[-num:] for other in others) == 1:
            return own[-num:]
    return own


def _full(folder: str) -> Path:
    return Path(os.path.abspath(local_folder(folder) or folder))


@dataclass(frozen=True)
class SetPlace:
    """The folder of a trained set, or of an epoch that its training kept."""

    folder: str

    @property
    def is_epoch(self) -> bool:
        """Whether it is OUTPUT/epochs/NAME of a training."""
        path = _full(self.folder)
        return path.parent.name == EPOCHS and (path.parents[1] / RECIPE).is_file()

    @property
    def root(self) -> str:
        """The folder of the training, with the baselines: OUTPUT of a kept epoch, else `folder`."""
        return os.path.normpath(f"{self.folder}/../..") if self.is_epoch else self.folder

    @property
    def epoch(self) -> str | None:
        """The name of the kept epoch; None for a finished set."""
        return _full(self.folder).name if self.is_epoch else None

    def baselines(self) -> dict[str, tuple[str, str]]:
        """The checkpoint and its part of the set for each row of `BASELINES` that is there.

        Beside a kept epoch, the pause row is the pause epoch with as much training, if it was kept.
        """
        places = {name: (f"{self.root}/{part}", part) for name, part in BASELINES.items()}
        if self.epoch is not None:
            twin = "-".join([PAUSE, *self.epoch.split("-")[1:]])
            for name, (_, part) in places.items():
                if part == PAUSE and local_folder(f"{self.root}/{EPOCHS}/{twin}"):
                    places[name] = f"{self.root}/{EPOCHS}/{twin}", part
        return {name: place for name, place in places.items() if local_folder(place[0])}

    def references(self) -> dict[str, str]:
        """`strong` and `weak` of the training, for a kept epoch that has none of its own."""
        own, whole = manifest_of(self.folder), manifest_of(self.root)
        if not self.is_epoch or own.strong or own.weak:
            return {}
        if whole.strong is None or whole.weak is None:
            return {}
        return {"strong": self.part(whole.strong), "weak": self.part(whole.weak)}

    def recipe(self) -> dict[str, Any]:
        """The content of the training's recipe.yaml; empty if there is no such file."""
        path = (local_folder(self.root) or Path(self.root)) / RECIPE
        if not path.is_file():
            return {}
        content = read_yaml(path)
        content.pop("output", None)  # has no influence on the training
        if Path(content.get("pretrained") or "").is_absolute():
            content["pretrained"] = Path(content["pretrained"]).name
        return content

    def part(self, name: str) -> str:
        """The checkpoint that an option names.

        It is "." for the set itself, a path relative to the set or to its training, or any other
        name of a checkpoint, in this order.
        """
        for place in (self.folder, self.root):
            if local_folder(f"{place}/{name}"):
                return os.path.normpath(f"{place}/{name}")
        return name


def manifest_of(name: str) -> Manifest:
    """The latentref.json in a local folder or packaged set; empty if there is none."""
    folder = local_folder(name)
    path = folder / MANIFEST_NAME if folder else None
    return read_manifest(path) if path and path.is_file() else Manifest()
