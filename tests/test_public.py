"""Public files of the repository: consistent versions, and workflows that a checker accepts."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [Requirement(line) for line in LINES if not line.startswith("#")]
NEEDS = [
    *PROJECT["dependencies"],
    *(need for extra in PROJECT["optional-dependencies"].values() for need in extra),
]


def pinned(name: str, python: str) -> list[str]:
    """The versions that Linux takes of `name`."""
    system = {"python_full_version": f"{python}.1", "sys_platform": "linux"}
    pins = [pin for pin in PINS if pin.name.lower() == name.lower()]
    pins = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(system)]
    return [part.version for pin in pins for part in pin.specifier]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_each_package_we_need_has_one_tested_version_within_its_range(python):
    for need in map(Requirement, NEEDS):
        (version,) = pinned(need.name, python)
        assert version in need.specifier, f"{need} against {version}: run `make constraints`"


def test_the_constraints_serve_every_system():
    assert all(re.fullmatch(r"==[^+*]+", str(pin.specifier)) for pin in PINS)
    assert not [pin.name for pin in PINS if pin.name.startswith(("cuda", "nvidia", "triton"))]


def test_the_files_that_contributing_sends_to_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:lm_eval_latentref|tests|task_configs|results)/[\w/.]*)`", text)
    assert len(paths) > 20
    assert not [path for path in paths if not (ROOT / path.replace("NAME", "graph")).exists()]
