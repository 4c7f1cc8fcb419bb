"""The lowest lm-eval, transformers and peft that pyproject.toml admits, as pip takes them.

pip install --no-deps --target oldest $(python packaging/oldest.py)
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

NAMES = ("lm-eval", "transformers", "peft")


def lowest(requirement: Requirement) -> str:
    """The version after `>=`."""
    (bound,) = (part.version for part in requirement.specifier if part.operator == ">=")
    return f"{requirement.name}=={bound}"


if __name__ == "__main__":
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())[
        "project"
    ]
    ranges = {each.name: each for each in map(Requirement, project["dependencies"])}
    print(*(lowest(ranges[name]) for name in NAMES))
