"""A local folder or a hub repository, seen as the same thing: files that may be asked for by name.

    Folder("HuggingFaceTB/SmolLM2-135M-Instruct").find("config.json")   # a local path, or None

Downloads only the files asked for. Deliberately does not know what the files mean.
"""

from __future__ import annotations

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

from lm_eval_latentref.checkpoints.files import one_line
from lm_eval_latentref.checkpoints.packaged import packaged_models
from lm_eval_latentref.errors import LatentRefError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)

_SNAPSHOT = re.compile(r"snapshots[/\\]([0-9a-f]{40})[/\\]")


@dataclass
class Folder:
    """A folder of checkpoint files, on this machine or on the hub."""

    name: str
    """A local folder's path or a hub id."""

    revision: str | None = None
    subfolder: str = ""

    commit: str | None = field(default=None, init=False)
    """The commit the first file came from; later files come from the same one."""

    _offline: bool = field(default=False, init=False)

    @property
    def is_local(self) -> bool:
        return os.path.isdir(self.name)

    def find(self, filename: str) -> str | None:
        """Local path of `filename`, fetched if need be; None if the folder has no such file.

        Raises LatentRefError when the repository does not exist or may not be read.
        """
        relative = f"{self.subfolder}/{filename}" if self.subfolder else filename
        if self.is_local:
            path = os.path.join(self.name, relative)
            return path if os.path.isfile(path) else None
        try:
            path = self._fetch(relative)
        except LocalEntryNotFoundError:
            # No connection. Asking for one file after another would repeat the retries each time.
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
        found = _SNAPSHOT.search(path)
        self.commit = found.group(1) if found else self.commit
        return path

    def find_any(self, filenames: tuple[str, ...]) -> str | None:
        """Local path of the first of `filenames` that the folder has."""
        return next((path for name in filenames if (path := self.find(name))), None)

    def unreachable(self) -> LatentRefError:
        """What to raise when the folder has none of the files that it must have."""
        if self.is_local:
            where = os.path.join(self.name, self.subfolder)
            return LatentRefError(
                f"{where!r} holds neither config.json nor adapter_config.json; give a folder made "
                "by save_pretrained, or a raw state dict through weights="
            )
        return LatentRefError(self._missing(None))

    def _fetch(self, relative: str) -> str:
        return hf_hub_download(
            self.name,
            relative,
            revision=self.commit or self.revision,
            local_files_only=self._offline,
        )

    def _missing(self, error: Exception | None) -> str:
        at = f" at revision {self.revision!r}" if self.revision else ""
        if error is None:
            why = "the hub cannot be reached and it is not in the cache" if self._offline else ""
            why = why or "on the hub it has neither config.json nor adapter_config.json"
        elif isinstance(error, RevisionNotFoundError):
            why = "the hub has no such revision"
        else:
            why = "the hub has no such repository, or you have no access to it"
        return (
            f"no checkpoint {self.name!r}{at}: there is no such folder, and {why}; "
            "give an existing folder, a hub id (REPO or REPO@REVISION) or a packaged set "
            f"({', '.join(packaged_models())})"
        )


def is_file(name: str) -> bool:
    """Whether `name` is a file of this machine."""
    return Path(name).expanduser().is_file()
