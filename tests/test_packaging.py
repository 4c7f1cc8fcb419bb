"""The wheel installs, lm-eval finds it however it is started, and uninstalling leaves nothing.

Each environment is new and contains only our wheel; a .pth file makes the dependencies of the
environment that runs the tests available, so that nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import lm_eval
import pytest
from conftest import ROOT, build
from matrix import crossed
from tiny import tiny_model, tiny_tokenizer

LENT_PACKAGES = Path(lm_eval.__file__).parent.parent
TASK = "latentref_prosqa_generated_mc"

# Commands as installed, but for the scripts of lent packages: those name their own interpreter.
STARTS = {
    "lm_eval": ["-m", "lm_eval"],
    "lm_eval run": ["-m", "lm_eval", "run"],
    "accelerate launch": ["-m", "accelerate.commands.launch", "--cpu", "-m", "lm_eval"],
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node=1", "-m", "lm_eval"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """A virtual environment, and a folder to work in that is not the checkout."""

    python: Path
    site_packages: Path
    folder: Path

    def run(self, words: Sequence[str], *, status: int = 0) -> str:
        """Output and error output of the environment's Python, started with `words`."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [str(self.python), *words],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def pip(self, *words: str) -> None:
        """pip of the environment that runs the tests, at work in this one."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *words]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)

    def lend_packages(self) -> Path:
        """Makes what we depend on importable; our own start-up file is not read from there."""
        loan = self.site_packages / "lent.pth"
        loan.write_text(f"{LENT_PACKAGES}\n")
        return loan

    def files(self) -> set[str]:
        """Every file installed, byte code aside."""
        actual = (path for path in self.site_packages.rglob("*") if "__pycache__" not in path.parts)
        return {str(path.relative_to(self.site_packages)) for path in actual}


def new_environment(folder: Path) -> Environment:
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (folder / "elsewhere").mkdir()
    site_packages = next((folder / "venv" / "lib").glob("python*/site-packages"))
    # Never empty, as in real environments: pip would remove the folder itself with its last file.
    (site_packages / "neighbour.py").touch()
    return Environment(
        python=folder / "venv" / "bin" / "python",
        site_packages=site_packages,
        folder=folder / "elsewhere",
    )


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    environment = new_environment(tmp_path_factory.mktemp("installed"))
    environment.pip("install", "--no-deps", "--no-index", str(wheel))
    environment.lend_packages()
    return environment


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@functools.cache
def tasks_path(environment: Environment) -> str:
    return environment.run(["-m", "lm_eval_latentref", "tasks-path"]).strip()


def evaluation(environment: Environment, model: str, checkpoint: Path) -> list[str]:
    """The arguments of a small evaluation, tasks found as the README says."""
    arguments = f"pretrained={checkpoint},dtype=float32"
    if model == "latentref":
        arguments += ",latent_steps=2,memory_rate=0.5"
    return [
        *("--model", model, "--model_args", arguments, "--tasks", TASK),
        *("--include_path", tasks_path(environment)),
        *("--limit", "2", "--device", "cpu", "--output_path", "results"),
    ]


def results(environment: Environment) -> dict:
    """The newest results JSON below the environment's working folder."""
    paths = environment.folder.glob("results/**/results_*.json")
    newest = max(paths, key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text(encoding="utf-8"))


def test_the_wheel_holds_package_tasks_start_up_file_and_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {"lm_eval_latentref.pth", "lm_eval_latentref/py.typed"} <= set(names)
    shipped = {name for name in names if name.startswith("lm_eval_latentref/task_configs/")}
    here = (path for path in (ROOT / "task_configs").rglob("*") if path.is_file())
    here = {path.relative_to(ROOT) for path in here if "__pycache__" not in path.parts}
    assert shipped == {f"lm_eval_latentref/{path}" for path in here}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {
        "lm_eval_latentref",
        "lm_eval_latentref.pth",
    }


@pytest.mark.slow
def test_an_sdist_builds_the_same_wheel(wheel, tmp_path):
    sdist = build("sdist", tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    again = build("wheel", tmp_path, source)
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_the_command_and_the_version_are_installed(installed):
    code = "import lm_eval_latentref as package; print(package.__version__, package.__file__)"
    version, path = installed.run(["-c", code]).split()
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert Path(path).is_relative_to(installed.site_packages)
    tasks = installed.run([str(installed.python.parent / "latentref"), "tasks-path"]).strip()
    assert Path(tasks) == installed.site_packages / "lm_eval_latentref" / "task_configs"


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_lm_eval_evaluates_our_model_however_it_is_started(installed, checkpoint, start):
    out = installed.run([*STARTS[start], *evaluation(installed, "latentref", checkpoint)])
    assert TASK in out
    config = results(installed)["config"]
    assert config["model"] == "latentref"
    assert config["model_args"]["latent_steps"] == 2


@pytest.mark.slow
def test_models_of_lm_eval_evaluate_as_before(installed, checkpoint):
    installed.run(["-m", "lm_eval", *evaluation(installed, "hf", checkpoint)])
    assert results(installed)["config"]["model"] == "hf"


@pytest.mark.slow
def test_latentref_run_adds_the_tasks_and_needs_no_start_up_file(installed, checkpoint):
    words = evaluation(installed, "latentref", checkpoint)
    place = words.index("--include_path")
    start_up = installed.site_packages / "lm_eval_latentref.pth"
    line = start_up.read_text()
    start_up.write_text("")
    try:
        out = installed.run(["-m", "lm_eval_latentref", "run", *words[:place], *words[place + 2 :]])
    finally:
        start_up.write_text(line)
    assert TASK in out


@pytest.mark.slow
def test_a_mistake_is_the_last_line_of_lm_evals_traceback(installed, checkpoint):
    words = evaluation(installed, "latentref", checkpoint)
    words[3] += ",memory_rate=1.5"
    last = installed.run(["-m", "lm_eval", *words], status=1).strip().splitlines()[-1]
    assert last.startswith("lm_eval_latentref.errors.LatentRefError: memory_rate=1.5")


@pytest.mark.slow
def test_simple_evaluate_takes_the_model_by_name(installed, checkpoint):
    code = f"""
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval_latentref.benchmarks.documents import tasks_path
found = simple_evaluate(
    model="latentref",
    model_args={{"pretrained": {str(checkpoint)!r}, "dtype": "float32", "latent_steps": 2}},
    tasks=["{TASK}"], task_manager=TaskManager(include_path=str(tasks_path())),
    limit=2, device="cpu",
)
print(*found["results"])
"""
    assert installed.run(["-c", code]).split()[-1] == TASK


@pytest.mark.slow
def test_lm_eval_validates_and_lists_our_tasks(installed):
    words = ["--include_path", tasks_path(installed)]
    out = installed.run(["-m", "lm_eval", "validate", "--tasks", f"{TASK},latentref", *words])
    assert "All tasks found and valid" in out
    out = installed.run(["-m", "lm_eval", "ls", "subtasks", *words])
    assert all(f"|{name} " in out for name in (TASK, "latentref_mathqa_harness"))


@pytest.mark.slow
def test_an_editable_install_reads_the_checkout(tmp_path, checkpoint, editable_wheel):
    environment = new_environment(tmp_path)
    environment.pip("install", "--no-deps", "--no-index", str(editable_wheel))
    environment.lend_packages()
    assert Path(tasks_path(environment)) == ROOT / "task_configs"
    environment.run(["-m", "lm_eval", *evaluation(environment, "latentref", checkpoint)])
    assert results(environment)["config"]["model"] == "latentref"


@pytest.mark.parametrize("kind", crossed(["wheel", "editable_wheel"], every=2))
def test_uninstalling_leaves_nothing(tmp_path, kind, request):
    environment = new_environment(tmp_path)
    before = environment.files()
    environment.pip("install", "--no-deps", "--no-index", str(request.getfixturevalue(kind)))
    assert "lm_eval_latentref.pth" in environment.files() - before
    # Byte code that running it left behind goes too.
    environment.run(["-c", "import lm_eval_latentref.latent.config"])
    environment.pip("uninstall", "--yes", "lm-eval-latentref")
    assert environment.files() == before
    environment.lend_packages()
    code = "import lm_eval.models; from lm_eval.api.registry import model_registry as models\n"
    assert environment.run(["-c", f"{code}print('latentref' in models)"]) == "False\n"


def test_what_the_readme_installs_is_on_no_index_under_our_name():
    lines = re.findall(r"pip install .*", (ROOT / "README.md").read_text(encoding="utf-8"))
    ours = [
        line for line in lines if re.match(r"pip install (-e )?(\.|git\+|lm-eval-latentref)", line)
    ]
    assert ours
    # No index has the package: the name alone would install nothing, or somebody else's.
    assert not [line for line in ours if "install lm-eval-latentref" in line]
