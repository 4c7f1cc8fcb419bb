"""Runs the composite action step by step, as GitHub does, on the models of its own workflow.

python tests/gate.py              # writes that workflow's baselines and golden files again
python tests/gate.py graph-small   # for one model only; check the difference before committing it
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
FILES = Path("tests", "golden", "gate")
ACTION = yaml.safe_load((ROOT / ".github/actions/latentref-check/action.yml").read_text("utf-8"))
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/latentref-check.yml").read_text("utf-8"))
ROWS: dict[str, dict[str, Any]] = {
    row["name"]: row for row in WORKFLOW["jobs"]["gate"]["strategy"]["matrix"]["include"]
}
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}


def inputs_of(row: Mapping[str, Any], **changes: Any) -> dict[str, str]:
    """The action's inputs: their defaults, what the workflow gives for `row`, and `changes`."""
    inputs = {name: field.get("default", "") for name, field in ACTION["inputs"].items()}
    given = next(s for s in WORKFLOW["jobs"]["gate"]["steps"] if "latentref-check" in str(s))[
        "with"
    ]
    for name, value in given.items():
        inputs[name] = re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda m: str(row[m[1]]), str(value))
    return inputs | {name: str(value) for name, value in changes.items()}


def run_step(name: str, inputs: Mapping[str, str], environment: Mapping[str, str]) -> int:
    """Runs a step of the action in its shell; returns its status."""
    step = STEPS[name]
    own = {
        key: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: inputs[m[1]], value)
        for key, value in step.get("env", {}).items()
    }
    # As GitHub runs `shell: bash`.
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    return subprocess.run(command, cwd=ROOT, env={**environment, **own}, check=False).returncode


class Runner:
    """Runs the steps of a job as GitHub's runner does; its files lie below `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        files = ("GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")
        self._files = {name: folder / name.lower() for name in files}
        for file in self._files.values():
            file.touch()
        self.environment = {
            **os.environ,
            **{name: str(file) for name, file in self._files.items()},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RUNNER_TEMP": str(folder),
            "GITHUB_ACTION_PATH": str(ROOT / ".github/actions/latentref-check"),
            "HF_HUB_OFFLINE": "1",
        }

    def step(self, name: str, inputs: Mapping[str, str]) -> int:
        status = run_step(name, inputs, self.environment)
        self.environment |= self._pairs("GITHUB_ENV")
        return status

    @property
    def outputs(self) -> dict[str, str]:
        return self._pairs("GITHUB_OUTPUT")

    @property
    def summary(self) -> str:
        return self._files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")

    @property
    def results(self) -> str:
        """The folder of the evaluation."""
        return self.environment["LATENTREF_RESULTS"]

    def _pairs(self, name: str) -> dict[str, str]:
        lines = self._files[name].read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)


def write(name: str) -> None:
    """Writes baseline and golden file of a row; a second run, row by row, measures the noise."""
    from lm_eval_latentref.evaluation.gate import update_baseline, update_golden

    with tempfile.TemporaryDirectory() as scratch:
        results = []
        for batch_size in ("8", "1"):
            runner = Runner(Path(scratch, batch_size))
            if runner.step("Evaluate", inputs_of(ROWS[name], batch_size=batch_size)):
                sys.exit(f"{name} could not be evaluated")
            results.append(runner.results)
        tolerance = update_golden(results[0], ROOT / FILES / f"{name}.json", again=results[1])
        update_baseline(results[0], ROOT / FILES / f"{name}.yaml")
        print(f"{FILES / name}: tolerance {tolerance:.2g} nats")


if __name__ == "__main__":
    for row_name in sys.argv[1:] or ROWS:
        write(row_name)
