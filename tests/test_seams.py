"""Private names of other packages are used only in the files of seams; test files stay apart."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent / "lm_eval_latentref"
SEAMS = {
    "harness/lm_eval_seams.py",
    "latent/peft_seams.py",
    "latent/torch_seams.py",
    "latent/transformers_seams.py",
}
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_foreign(module: str) -> bool:
    """Whether it is a private module of another package."""
    return not module.startswith(ROOT.name) and any(map(private, module.split(".")))


def own_names() -> set[str]:
    """Every name that the package itself binds: functions, variables, attributes of `self`."""
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_private_names_of_others_are_used_in_seams_only():
    own, used = own_names(), set()
    for file in TREES.keys() - SEAMS:
        for node in ast.walk(TREES[file]):
            if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
                used.add((file, node.attr))
            elif isinstance(node, ast.ImportFrom) and is_foreign(node.module):
                used.add((file, node.module))
    assert not used


def test_each_file_of_seams_is_there_and_needed():
    for file in SEAMS:
        names = {node.attr for node in ast.walk(TREES[file]) if isinstance(node, ast.Attribute)}
        assert any(map(private, names)), file


def test_no_test_file_imports_another():
    imports = re.compile(r"^\s*(?:from|import) (?:\w+\.)*test_\w+", re.MULTILINE)
    files = sorted(Path(__file__).parent.rglob("*.py"))
    assert not [file for file in files if imports.search(file.read_text(encoding="utf-8"))]
