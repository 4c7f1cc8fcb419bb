"""A training run's files: its state, its records, and folders that are complete or absent.

    run = RunFolder("out/graph", recipe.to_dict())     # raises if it cannot be written
    state = run.load()
    run.append_metrics({"loss": 0.1}); run.save(state)
    with run.new_folder("strong") as folder: ...

All files but the metrics, which grow line by line, are written under a temporary name and then
renamed. A state is a dictionary of tensors and plain values.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from lm_eval_latentref.checkpoints.files import one_line, read_yaml, reading, replacing, sync
from lm_eval_latentref.checkpoints.history import DATA, METRICS, RECIPE
from lm_eval_latentref.checkpoints.manifest import Manifest, write_manifest
from lm_eval_latentref.errors import LatentRefError

STATE = "training_state.pt"
SNAPSHOTS = ".snapshots"
EPOCHS = "epochs"
"""Subfolder of the epochs that `keep_epochs` names."""
LOADABLE = ("config.json", "adapter_config.json")
"""Files that make a folder a checkpoint; they are moved into place last."""

UNCOMPARED = ("output", "save_steps", "eval_batch_size")
"""Recipe values that may change when a run is resumed, because no weight depends on them."""


class RunFolder:
    """The output folder of one training run.

    Args:
        path: the folder, which is created if it is missing.
        recipe: the resolved recipe as plain values.
        is_main: whether this process writes; the others only read.

    Raises:
        LatentRefError: the folder cannot be written, or holds a run of another recipe.
    """

    def __init__(self, path: str, recipe: Mapping[str, Any], *, is_main: bool = True) -> None:
        self.path = Path(path)
        if is_main:
            self._probe()
            self._claim(recipe)

    def load(self) -> dict[str, Any] | None:
        """The last saved state; None if there is none."""
        if not (self.path / STATE).exists():
            return None
        with self.reading_state(), zipfile.ZipFile(self.path / STATE) as archive:
            if damaged := archive.testzip():  # torch does not look at the checksums
                raise ValueError(f"its part {damaged} is damaged")
            state: dict[str, Any] = torch.load(
                self.path / STATE, map_location="cpu", weights_only=True
            )
        return state

    def reading_state(self) -> contextlib.AbstractContextManager[None]:
        """Turns any error while the saved state is read or restored into a LatentRefError."""
        return reading(self.path / STATE, "remove it to start over")

    def save(self, state: Mapping[str, Any]) -> None:
        """Replaces the saved state; after a crash, either the old or the new state is there."""
        with self._full_disk_is_one_line(), replacing(self.path / STATE) as temporary:
            torch.save(dict(state), temporary)

    def record_data(self, counts: Mapping[str, Any]) -> None:
        """Records how many problems each source has, and how many were removed from it."""
        import yaml

        text = yaml.safe_dump(
            {name: dict(numbers) for name, numbers in counts.items()}, sort_keys=False
        )
        with self._full_disk_is_one_line(), replacing(self.path / DATA) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def append_metrics(self, values: Mapping[str, Any]) -> int:
        """Adds one line to the metrics; returns the file's new size in bytes."""
        with (
            self._full_disk_is_one_line(),
            open(self.path / METRICS, "a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())
            return file.tell()

    def cut_metrics(self, num_bytes: int) -> None:
        """Removes the lines after `num_bytes`, which a resumed run will write again."""
        if (self.path / METRICS).exists():
            with self._full_disk_is_one_line():
                os.truncate(self.path / METRICS, num_bytes)

    @contextlib.contextmanager
    def new_folder(self, name: str) -> Iterator[Path]:
        """Yields a temporary folder, which replaces the folder `name` when the block ends.

        If `name` is ".", its files move into the output folder, where other files stay.
        """
        temporary = self.path / f".new-{name.strip('.').replace('/', '-')}"
        shutil.rmtree(temporary, ignore_errors=True)
        with self._full_disk_is_one_line():
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
                sync(file)
            if name == ".":
                self._move_files(temporary)
            else:
                (self.path / name).parent.mkdir(exist_ok=True)
                shutil.rmtree(self.path / name, ignore_errors=True)
                os.replace(temporary, self.path / name)

    def copy_folder(self, source: str, target: str, manifest: Manifest | None = None) -> None:
        """Copies `source` to `target`, with its own `manifest` if one is given."""
        with self.new_folder(target) as folder:
            shutil.copytree(self.path / source, folder, dirs_exist_ok=True)
            if manifest is not None:
                write_manifest(folder, manifest)

    def remove(self, name: str) -> None:
        """Removes a folder if it exists."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    def remove_leftovers(self, name: str) -> None:
        """Removes the folder `name`, and temporary files left by processes that were killed."""
        for path in (self.path / name, *self.path.glob(".new-*")):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.path.glob(".*.tmp"):
            with self._full_disk_is_one_line():
                path.unlink(missing_ok=True)

    def _move_files(self, temporary: Path) -> None:
        for name in LOADABLE:
            (self.path / name).unlink(missing_ok=True)
        for file in sorted(temporary.iterdir(), key=lambda file: file.name in LOADABLE):
            os.replace(file, self.path / file.name)
        temporary.rmdir()

    def _probe(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / ".probe"
            probe.write_bytes(bytes(4096))
            probe.unlink()
        except OSError as error:
            raise LatentRefError(
                f"output={self.path} cannot be written ({one_line(error)}); give another folder"
            ) from error

    def _claim(self, recipe: Mapping[str, Any]) -> None:
        """Writes the recipe, or checks that it is the same as the one in the folder."""
        import yaml

        path = self.path / RECIPE
        if path.exists():
            recorded = read_yaml(
                path,
                "remove it if the run in this folder has the same recipe, else give another output",
            )
            # A run that ended with an error before its first step has left only its recipe.
            has_work = any((self.path / name).exists() for name in (STATE, METRICS, *LOADABLE))
            names = recipe.keys() - set(UNCOMPARED) if has_work else ()
            differing = sorted(name for name in names if recorded.get(name) != recipe.get(name))
            if differing:
                name = differing[0]
                raise LatentRefError(
                    f"output={self.path} holds a run of another recipe ({name} was "
                    f"{recorded.get(name)!r}, now {recipe.get(name)!r}); give another output, or "
                    "remove the folder"
                )
        text = yaml.safe_dump(dict(recipe), sort_keys=False)
        with self._full_disk_is_one_line(), replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def _full_disk_is_one_line(self) -> Iterator[None]:
        try:
            yield
        except LatentRefError:
            raise
        except Exception as error:
            # A full disk may raise OSError, torch's RuntimeError or safetensors' error.
            raise LatentRefError(
                f"{self.path}: writing failed ({one_line(error)}); the last save is intact: free "
                "some space and run the same command again"
            ) from error
