"""Imports point one way: each module may import only modules that stand above it in the table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "lm_eval_latentref"
SOURCES = Path(__file__).parent.parent / PACKAGE

# Top to bottom is the order in which modules may know each other. A: pure computation. B: one
# outside dependency each. C: composition. D: commands. `bench` counts as one module.
LAYERS = {
    "A": [
        *(
            "errors",
            "config",
            "protocol",
            "refinement",
            "benchmarks.prosqa_known",
            "benchmarks.prosqa",
            "benchmarks.rows",
        ),
        *(
            "benchmarks.hops",
            "training.curriculum",
            "tuning.statistics",
            "tuning.reported",
            "tuning.grid",
            "tuning.selection",
        ),
    ],
    "B": [
        *(
            "_autoload",
            "networks",
            "streams",
            "ranks",
            "accounting",
            "thoughts",
            "tuning.sharing",
            "batching",
            "scoring",
        ),
        *("tuning.journal", "provenance", "tuning.plots", "tuning.samples"),
        *(
            "checkpoints.packaged",
            "checkpoints.folders",
            "checkpoints.identity",
            "checkpoints.manifest",
            "checkpoints.questions",
            "checkpoints.sources",
            "checkpoints.sets",
            "checkpoints.record",
            "checkpoints.history",
            "checkpoints.state_dicts",
            "checkpoints.adapters",
        ),
        *("checkpoints.vocabulary", "checkpoints.opening", "checkpoints.loading"),
        *(
            "benchmarks.published",
            "benchmarks.data",
            "benchmarks.documents",
            "benchmarks.tasks",
            "arguments",
            "response_cache",
            "planning",
        ),
    ],
    "C": [
        *("reasoner", "rolling", "naming", "model", "checkpoints.convert"),
        *(
            "training.recipe",
            "training.recipe_files",
            "training.snapshots",
            "training.word_tokenizer",
            "training.examples",
            "training.data",
            "training.loss",
        ),
        *(
            "training.start",
            "training.models",
            "training.state",
            "training.plan",
            "training.learner",
            "training.run",
            "training.phase",
            "training.loop",
        ),
        *(
            "tuning.dev_tasks",
            "tuning.sweep_model",
            "tuning.sweep_run",
            "tuning.sweep",
            "tuning.sweep_report",
            "tuning.compare",
        ),
    ],
    "D": [
        "tuning.pages",
        "tuning.diagnosis",
        "tuning.diagnosis_report",
        "harness",
        "tuning.runs",
        "tuning.training_log",
        "tuning.cases",
        "tuning.cases_report",
        "tuning.study",
        "tuning.study_report",
        "tuning.overview",
        "demo",
        "bench",
        "subcommands",
        "cli",
        "__main__",
    ],
}
ORDER = [module for modules in LAYERS.values() for module in modules]

STANDARD_LIBRARY_ONLY = ["__init__", "__main__", "_autoload", "cli", "errors", "subcommands"]
MAY_IMPORT_LM_EVAL = {
    "_autoload",
    "arguments",
    "bench",
    "subcommands",
    "tuning.dev_tasks",
    "harness",
    "model",
    "rolling",
}
MAY_IMPORT_LM_EVAL |= {"tuning.runs"}
FILES_AND_MODELS = {"os", "pathlib", "json", "tempfile", "shutil", "transformers", "datasets"}


def imports(module: str, *, at_top_only: bool = False) -> Iterator[str]:
    """Every dotted name that `module` imports, those for the type checker left out."""
    place = SOURCES / module.replace(".", "/")
    files = [place.with_suffix(".py"), *place.glob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files if path.is_file()]
    pending: list[ast.AST] = [statement for tree in trees for statement in tree.body]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if not (at_top_only and isinstance(node, ast.FunctionDef | ast.ClassDef)):
            pending.extend(ast.iter_child_nodes(node))


def outside_packages(module: str, *, at_top_only: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(module, at_top_only=at_top_only)} - {PACKAGE}


def test_the_table_names_every_module_once():
    files = [path.relative_to(SOURCES).with_suffix("") for path in SOURCES.rglob("*.py")]
    modules = {".".join(file.parts) for file in files if file.name != "__init__"} | {"__main__"}
    modules = {"bench" if name.startswith("bench.") else name for name in modules}
    assert sorted(ORDER) == sorted(modules)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_those_above_it(module):
    known = set(ORDER[: ORDER.index(module)])
    ours = {name.removeprefix(f"{PACKAGE}.") for name in imports(module)}
    used = {other for other in ORDER for name in ours if f"{name}.".startswith(f"{other}.")}
    assert used - {module} <= known


@pytest.mark.parametrize("module", LAYERS["A"])
def test_pure_modules_open_no_file_and_know_no_model(module):
    assert not outside_packages(module) & FILES_AND_MODELS


@pytest.mark.parametrize("module", sorted(set(ORDER) - MAY_IMPORT_LM_EVAL))
def test_lm_eval_is_known_only_where_it_is_met(module):
    assert "lm_eval" not in outside_packages(module)


@pytest.mark.parametrize("module", STANDARD_LIBRARY_ONLY)
def test_what_starts_first_imports_nothing_heavy(module):
    import sys

    assert outside_packages(module, at_top_only=True) <= set(sys.stdlib_module_names)
