"""The page of untrained thoughts is made from finished answers, and says how many are missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from tiny import tiny_model, tiny_tokenizer

from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet

FOLDER = Path(__file__).parents[2] / "results" / "families"


@pytest.fixture
def script(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("untrained", FOLDER / "untrained.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "untrained", module)
    spec.loader.exec_module(module)
    shutil.copy(FOLDER / "untrained.md.j2", tmp_path)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "models", lambda work: {"tiny": {"pretrained": "tiny"}})
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "NEW_TOKENS", 3)
    model = LoadedModel(model=tiny_model("llama"), identity={"name": "tiny"})
    loaded = LoadedSet(tokenizer=tiny_tokenizer(markers=False), backbone=model)
    monkeypatch.setattr(module, "load", lambda **names: type("R", (), {"loaded": loaded}))
    return module


def test_answers_are_made_once_and_the_page_counts_those_of_all_kinds(script, tmp_path):
    tasks = {
        "MathQA": [script.Problem(f"What is 3 + {n}?", tuple("ab"), "a") for n in range(4)],
        "GSM8K": [script.Problem("What is 2 + 2?", (), "4")],
    }
    args = (tmp_path, "tiny", {}, tasks)
    script.answer_all(*args, float("inf"))
    journals = {path: path.read_text() for path in tmp_path.glob("*.jsonl")}
    assert len(journals) == len(script.KINDS) * len(tasks)
    script.answer_all(*args, float("inf"))
    assert journals == {path: path.read_text() for path in tmp_path.glob("*.jsonl")}
    cut = script.journal_of(tmp_path, "tiny", "MathQA", "realigned")
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:2]))
    script.write_page(tmp_path, tasks)
    content = json.loads((tmp_path / "untrained.json").read_text())
    assert {row["num"] for row in content["rows"] if row["task"] == "MathQA"} == {2}
    assert content["missing"] == 2
    page = (tmp_path / "README.md").read_text()
    assert "| MathQA | tiny | mixture | 2 |" in page
