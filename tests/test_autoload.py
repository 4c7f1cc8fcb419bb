"""The .pth file's finder registers the model class with lm-eval, quickly and harmlessly."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from lm_eval_latentref._autoload import LAST_WITHOUT_DISCOVERY

ROOT = Path(__file__).parent.parent
LINE = (ROOT / "packaging" / "autoload_line.txt").read_text(encoding="utf-8")

# Each case runs in an interpreter of its own. Where this package is installed its finder is in
# place already: it goes first, so that each case has exactly the finders it names.
PRELUDE = """
import sys
sys.path.insert(0, {root!r})
sys.meta_path[:] = [f for f in sys.meta_path if "LatentRef" not in getattr(f, "__name__", "")]
LINE = {line!r}
"""
REGISTRY = "import lm_eval.models; from lm_eval.api.registry import model_registry as models\n"


def run(code: str) -> str:
    """Standard output of `code` in a fresh interpreter; nothing may appear on standard error."""
    prelude = PRELUDE.format(root=str(ROOT), line=LINE)
    done = subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_the_line_is_what_site_executes():
    assert LINE.startswith("import ")
    assert LINE.count("\n") == 1


def test_the_line_imports_nothing_of_ours_at_start():
    code = "before = set(sys.modules); exec(LINE); print(set(sys.modules) - before)"
    assert run(code) == "set()"


def test_the_line_costs_less_than_a_millisecond():
    finders = list(sys.meta_path)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        exec(LINE)
        seconds.append(time.perf_counter() - start)
    sys.meta_path[:] = finders
    assert min(seconds) < 1e-3


@pytest.mark.parametrize(
    "install",
    [
        "exec(LINE)",
        "from lm_eval_latentref import _autoload; _autoload.install()",
        "exec(LINE); exec(LINE)",
        "exec(LINE); from lm_eval_latentref import _autoload; _autoload.install()",
        "import lm_eval.models; from lm_eval_latentref import _autoload; _autoload.install()",
    ],
)
@pytest.mark.contract
def test_the_model_is_registered_lazily_beside_the_built_in_ones(install):
    code = f"{install}\n{REGISTRY}from lm_eval.models import MODEL_MAPPING\n"
    code += "print(models._objs['latentref'], set(models.keys()) - set(MODEL_MAPPING))\n"
    code += "print('torch' in sys.modules, 'lm_eval_latentref.harness.model' in sys.modules)"
    target = "lm_eval_latentref.harness.model:LatentRefLM"
    assert run(code) == f"{target} {{'latentref'}}\nFalse False"


@pytest.mark.contract
def test_get_model_finds_built_in_models_as_before():
    code = "exec(LINE)\nfrom lm_eval.api.registry import get_model; print(get_model('dummy'))"
    assert "DummyLM" in run(code)


@pytest.mark.contract
def test_a_known_name_is_left_alone():
    code = "exec(LINE)\nfrom lm_eval.api.registry import model_registry\n"
    code += "model_registry.register('latentref', target='theirs:Model')\n"
    assert run(f"{code}{REGISTRY}print(models._objs['latentref'])") == "theirs:Model"


def test_the_finder_goes_with_the_last_lm_eval_that_needs_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (lm_eval,) = (
        need for need in map(Requirement, project["dependencies"]) if "lm-eval" in str(need)
    )
    assert LAST_WITHOUT_DISCOVERY in lm_eval.specifier, "delete what _autoload.py names"


@pytest.mark.contract
def test_only_an_lm_eval_that_discovers_plugins_is_newer_than_we_say():
    code = "from lm_eval.api import registry\n"
    code += "print(*(hasattr(x, 'load_plugins') for x in (registry, registry.model_registry)))"
    if "True" not in run(code):
        assert Version(importlib.metadata.version("lm-eval")) <= Version(LAST_WITHOUT_DISCOVERY)


@pytest.mark.contract
def test_lm_eval_discovers_no_tasks_of_other_packages_yet():
    # When it does: declare the group in pyproject.toml, and `--include_path` goes from the docs.
    code = "import pathlib, lm_eval.tasks\n"
    code += "modules = pathlib.Path(lm_eval.tasks.__file__).parent.glob('*.py')\n"
    code += "print(any('entry_points' in path.read_text('utf-8') for path in modules))"
    assert run(code) == "False"


@pytest.mark.parametrize("owner", ["registry", "registry.Registry"])
def test_an_lm_eval_that_discovers_plugins_is_left_to_do_so(owner):
    code = "exec(LINE)\nfrom lm_eval.api import registry\n"
    code += f"{owner}.load_plugins = lambda *_: None\n"
    assert run(f"{code}{REGISTRY}print('latentref' in models, 'hf' in models)") == "False True"


@pytest.mark.parametrize(
    "fault",
    [
        "sys.modules['lm_eval_latentref'] = None",
        "sys.modules['lm_eval_latentref._autoload'] = None",
        "from lm_eval_latentref import _autoload; _autoload.find_registering_spec = None",
        "from lm_eval_latentref import _autoload; _autoload.register = None",
        "from lm_eval_latentref import _autoload; _autoload.MODEL_NAME = []",
    ],
)
def test_no_fault_of_ours_stands_in_the_way_of_lm_eval(fault):
    code = f"exec(LINE)\n{fault}\n{REGISTRY}print('hf' in models, 'latentref' in models)"
    assert run(code) == "True False"


def test_the_loaded_module_is_as_without_us():
    code = f"exec(LINE)\n{REGISTRY}import inspect, importlib\n"
    code += "spec = lm_eval.models.__spec__\n"
    code += (
        "print(type(spec.loader).__name__, 'MODEL_MAPPING' in inspect.getsource(lm_eval.models))"
    )
    code += "\nimportlib.reload(lm_eval.models); print('latentref' in models)"
    assert run(code) == "SourceFileLoader True\nTrue"


def test_importing_the_package_brings_no_torch():
    code = "import lm_eval_latentref as package\n"
    code += "print({'torch', 'transformers', 'lm_eval'} & set(sys.modules), dir(package) > [])"
    assert run(code) == "set() True"


def test_public_names_are_fetched_on_first_use():
    code = "import lm_eval_latentref as package\n"
    code += "print(package.LatentRefError.__module__, package.RefinementConfig.__name__)\n"
    code += "print(hasattr(package, 'nothing_of_this_name'), 'torch' in sys.modules)"
    assert run(code) == "lm_eval_latentref.errors RefinementConfig\nFalse False"
