"""Settings for all tests: no network, one thread per process, no time limits in hypothesis.

They are set here because torch and transformers read them when they are imported.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

ROOT = Path(__file__).parent.parent

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# The tests run in parallel processes, so more threads only slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


def pytest_addoption(parser):
    help = "how many damaged files of each kind are tried (default: as many as take a minute)"
    parser.addoption("--fuzz_examples", type=int, help=help)


@pytest.fixture(autouse=True)
def logs_can_be_caught(monkeypatch):
    """Lets pytest catch each log line once; lm-eval's logging set-up would hide or repeat some."""
    logger = logging.getLogger("lm_eval")
    monkeypatch.setattr(logger, "propagate", True)
    level = logger.level
    yield
    logger.setLevel(level)
    ours = logging.getLogger("lm_eval_latentref")
    ours.handlers.clear()
    ours.propagate = True
    ours.setLevel(logging.NOTSET)


@pytest.fixture(scope="session", autouse=True)
def machine_is_not_described():
    """lm-eval describes the machine after each evaluation, through subprocesses of seconds."""
    from torch.utils import collect_env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_env, "run", lambda command: (1, "", ""))
        yield


@pytest.fixture(scope="session", autouse=True)
def generated_tasks_are_small():
    """Tasks of at most 40 generated problems: lm-eval reads all whenever it builds a task."""
    from lm_eval_latentref.benchmarks import documents

    make = documents.generated_documents

    def made(*args, num, **options):
        few = min(num, 40) if isinstance(num, int) else num
        return make(*args, num=few, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "generated_documents", made)
        yield make


@pytest.fixture
def all_problems(generated_tasks_are_small, monkeypatch):
    """Generated tasks with all their problems."""
    from lm_eval_latentref.benchmarks import documents

    monkeypatch.setattr(documents, "generated_documents", generated_tasks_are_small)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Tiny checkpoints by name; no test writes into them."""
    from tiny_lm import save_checkpoints

    return save_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def manager():
    """lm-eval's index of our tasks."""
    from lm_eval.tasks import TaskManager

    from lm_eval_latentref.benchmarks.documents import tasks_path

    return TaskManager(include_path=str(tasks_path()), include_defaults=False)


@pytest.fixture
def few_built_in_tasks(monkeypatch):
    """Only mathqa's of lm-eval's own task files; reading all of them takes nine seconds."""
    from lm_eval.tasks import _index

    files, built_in = _index.TaskIndex._iter_yaml_files, Path(_index.__file__).parent

    def few(root):
        return files(root / "mathqa" if root == built_in else root)

    monkeypatch.setattr(_index.TaskIndex, "_iter_yaml_files", staticmethod(few))


@pytest.fixture(scope="session")
def once_a_run(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[[str, Callable[[Path], object]], Path]:
    """Calls `make(folder)` in one of the processes that run the tests; all get the folder."""
    alone = worker_id == "master"
    root = tmp_path_factory.getbasetemp() if alone else tmp_path_factory.getbasetemp().parent

    def folder_of(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


def build(kind: str, folder: Path, source: Path = ROOT) -> Path:
    """Builds a wheel, an editable wheel or an sdist (`kind`) of `source`; returns its path."""
    code = f"import sys; from hatchling import build; print(build.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="session")
def wheel(once_a_run):
    (path,) = once_a_run("wheel", lambda folder: build("wheel", folder)).iterdir()
    return path


@pytest.fixture(scope="session")
def editable_wheel(once_a_run):
    (path,) = once_a_run("editable", lambda folder: build("editable", folder)).iterdir()
    return path
