"""Prints the lowest versions of lm-eval, transformers and peft in pyproject.toml, as pip arguments.

pip install --no-deps --target oldest $(python packaging/oldest.py)
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

NAMES = ("lm-eval", "transformers", "peft")


def lowest(requirement: Requirement) -> str:
    """The requirement with its lowest version: NAME==VERSION."""
    (bound,) = (part.version for part in requirement.specifier if part.operator == ">=")
    return f"{requirement.name}=={bound}"


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())[
        "project"
    ]
    ranges = {wanted.name: wanted for wanted in map(Requirement, project["dependencies"])}
    print(*(lowest(ranges[name]) for name in NAMES))
