"""Any damage to any kind of file that is read leads to a result or to a one-line error.

pytest tests/test_damaged_files.py --fuzz_examples 1000      # more of each kind
"""

from __future__ import annotations

import json
import pickle
import shutil
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from damage import DAMAGES, Damage
from hypothesis import HealthCheck, Phase, given, settings
from lm_eval_files import write_run
from safetensors.torch import load_file, save_file
from tiny_checkpoints import fresh_model, save_adapter, save_folder, save_raw
from training_helpers import small_recipe

from lm_eval_latentref.benchmarks import splits
from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.checkpoints.manifest import Manifest, read_manifest, write_manifest
from lm_eval_latentref.checkpoints.opening import StrictAutoModel
from lm_eval_latentref.checkpoints.questions import hash_questions, read_hashes, write_hashes
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.baseline import read_baseline, write_baseline
from lm_eval_latentref.evaluation.compare import read_answers
from lm_eval_latentref.evaluation.golden import answers, read_golden, write_golden
from lm_eval_latentref.evaluation.results import read_results, read_run
from lm_eval_latentref.evaluation.sweep_run import read_journal
from lm_eval_latentref.harness.response_cache import check_files
from lm_eval_latentref.training.data import read_examples
from lm_eval_latentref.training.log import read_training
from lm_eval_latentref.training.recipe import load_recipe
from lm_eval_latentref.training.trainer import train

# What is read: for each kind, a function that makes a folder, the file in it that is damaged, and
# a function that reads the folder. ---------------------------------------------------------------


def _make_model(folder: Path) -> None:
    save_folder(fresh_model("llama"), folder, markers=False)
    write_manifest(folder, Manifest(latent_steps=2))


def _read_model(folder: Path) -> None:
    load(str(folder), device="cpu")


def _make_adapter(folder: Path) -> None:
    base = save_folder(fresh_model("llama"), folder / "base", markers=False)
    save_adapter(base, folder / "adapter", seed=1)


def _make_raw(folder: Path) -> None:
    save_folder(fresh_model("llama"), folder / "base", markers=False)
    save_raw(fresh_model("llama", seed=2).state_dict(), folder / "raw.pt")


def _make_rows(folder: Path) -> None:
    row = {"Problem": "What is 1 + 1?", "options": "a ) 1 , b ) 2 , c ) 3 , d ) 4 , e ) 5"}
    (folder / "mathqa").mkdir()
    lines = [json.dumps({**row, "correct": "b", "Rationale": "", "category": "x"})] * 3
    (folder / "mathqa" / "test.jsonl").write_text("\n".join(lines) + "\n")


def _make_examples(folder: Path) -> None:
    rows = [{"question": "q", "steps": ["s", "t"], "answer": "a"}] * 3
    (folder / "train.json").write_text(json.dumps(rows, indent=1))


def _make_run(folder: Path) -> None:
    write_run(folder, {"t": {"acc": [0, 1, 1]}})


def _read_run(folder: Path) -> None:
    problems = read_results([folder]).problems
    assert all("\n" not in str(problem) for problem in problems)
    read_run(next(folder.rglob("results*.json")))


def _make_golden(folder: Path) -> None:
    write_run(folder / "run", {"t": {"acc": [0, 1, 1]}})
    files = {"t": next((folder / "run").rglob("samples_*.jsonl"))}
    write_golden(folder / "golden.json", answers(files), made_with={"torch": "2"})


def _make_baseline(folder: Path) -> None:
    values = {("mathqa", "acc,none"): {"value": 0.25, "stderr": 0.01}}
    write_baseline(folder / "baseline.yaml", values, {"model_name": "m", "limit": 10})


def _make_cache(folder: Path) -> None:
    with sqlite3.connect(folder / "cache_rank0.db") as connection:
        connection.execute("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)")
        answer = pickle.dumps((-1.5, True))
        connection.execute("INSERT INTO unnamed VALUES ('k', ?)", (answer,))
    connection.close()


def _make_training(folder: Path) -> None:
    train(small_recipe(folder / "out", phases=["cot"], cot_epochs=2))


def _read_recipe(folder: Path) -> None:
    load_recipe(str(folder / "out" / "recipe.yaml"))


def _go_on(folder: Path) -> None:
    train(small_recipe(folder / "out", phases=["cot"], cot_epochs=2))


def _make_sweep(folder: Path) -> None:
    setting = {"label": "T=1", "correct": [1, 0], "margins": [0.5, -0.5]}
    task = {"name": "t", "documents": [0, 1], "hashes": {"0": "a", "1": "b"}}
    content = {"task": task, "settings": [setting], "recommended": "T=1", "best": {"plain": "T=1"}}
    (folder / "sweep.json").write_text(json.dumps(content))


def _make_hashes(folder: Path) -> None:
    write_hashes(folder, hash_questions(["a?", "b?"]))


def _make_journal(folder: Path) -> None:
    (folder / "journal.jsonl").write_text('{"key": "a", "values": [1.5]}\n{"key": "b"}\n')


Kind = tuple[Callable[[Path], None], str, Callable[[Path], Any]]

KINDS: dict[str, Kind] = {
    "latentref.json": (
        _make_model,
        "latentref.json",
        lambda f: read_manifest(f / "latentref.json"),
    ),
    "config.json": (_make_model, "config.json", _read_model),
    "generation_config.json": (_make_model, "generation_config.json", _read_model),
    "tokenizer.json": (_make_model, "tokenizer.json", _read_model),
    "tokenizer_config.json": (_make_model, "tokenizer_config.json", _read_model),
    "model.safetensors": (_make_model, "model.safetensors", _read_model),
    "adapter_config.json": (
        *(_make_adapter, "adapter/adapter_config.json"),
        lambda f: load(str(f / "adapter"), device="cpu"),
    ),
    "adapter_model.safetensors": (
        *(_make_adapter, "adapter/adapter_model.safetensors"),
        lambda f: load(str(f / "adapter"), device="cpu"),
    ),
    "state dict": (
        *(_make_raw, "raw.pt"),
        lambda f: load(str(f / "base"), weights=str(f / "raw.pt"), device="cpu"),
    ),
    "data rows": (_make_rows, "mathqa/test.jsonl", lambda f: splits.load_split("mathqa", "test")),
    "training data": (
        *(_make_examples, "train.json"),
        lambda f: read_examples(str(f / "train.json")),
    ),
    "results": (_make_run, "results*.json", _read_run),
    "samples": (_make_run, "samples*.jsonl", _read_run),
    "compared samples": (_make_run, "samples*.jsonl", lambda f: read_answers(str(f))),
    "sweep": (_make_sweep, "sweep.json", lambda f: read_answers(str(f))),
    "golden": (_make_golden, "golden.json", lambda f: read_golden(f / "golden.json")),
    "baseline": (_make_baseline, "baseline.yaml", lambda f: read_baseline(f / "baseline.yaml")),
    "response cache": (_make_cache, "cache_rank0.db", lambda f: check_files(str(f / "cache"))),
    "question hashes": (
        *(_make_hashes, "trained_questions.npy"),
        lambda f: read_hashes(f / "trained_questions.npy"),
    ),
    "journal": (_make_journal, "journal.jsonl", lambda f: read_journal(f / "journal.jsonl")),
    "recipe": (_make_training, "out/recipe.yaml", _read_recipe),
    "metrics": (_make_training, "out/metrics.jsonl", lambda f: read_training(str(f / "out"))),
    "training_data.yaml": (
        *(_make_training, "out/training_data.yaml"),
        lambda f: read_training(str(f / "out")),
    ),
    "training state": (_make_training, "out/training_state.pt", _go_on),
}

SLOW = {"training state": 10}
"""Kinds that take long to read, with the examples of each that a short run tries."""

IN_SLOW_TESTS = ("training_data.yaml", "generation_config.json", "tokenizer_config.json")
"""Kinds that take long to read, and that are read as others are."""


def _message(read: Callable[[Path], Any], folder: Path) -> str:
    try:
        read(folder)
    except LatentRefError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] if kind in IN_SLOW_TESTS else [])
        for kind in KINDS
    ],
)
def test_any_damage_gives_a_result_or_one_line(tmp_path, monkeypatch, once_a_run, request, kind):
    make, name, read = KINDS[kind]
    whole = once_a_run(f"damaged-{make.__name__}", make)
    (file,) = whole.rglob(Path(name).name) if "*" in name else [whole / name]
    content = file.read_bytes()
    monkeypatch.setenv("LATENTREF_DATA", str(tmp_path / "copy"))
    examples = request.config.getoption("fuzz_examples") or SLOW.get(kind, 40)

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(DAMAGES)
    def check(damage: Damage) -> None:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        (copy / file.relative_to(whole)).write_bytes(damage(content))
        message = _message(read, copy)
        assert "\n" not in message
        assert "\x1b" not in message

    read(whole if kind != "data rows" else Path(shutil.copytree(whole, tmp_path / "copy")))
    check()


@pytest.mark.parametrize(
    ("kind", "key", "value", "part"),
    [
        ("adapter_config.json", "trainable_token_indices", -1, "save the adapter again"),
        ("adapter_config.json", "megatron_config", {"a": 1}, "makes PEFT import a module"),
        ("adapter_config.json", "peft_type", ["LORA"], "does not know"),
        ("samples", "doc_id", 10**30, ""),
        ("samples", "acc", 10**400, ""),
        ("compared samples", "target", float("inf"), ""),
        ("compared samples", "acc", 10**400, "samples_t_"),
        ("compared samples", "acc", float("nan"), "acc of document 0 is nan"),
        ("baseline", "limit", 10**400, "baseline.yaml"),
        ("metrics", "epoch", "", "metrics.jsonl"),
    ],
)
def test_values_that_long_runs_have_shown(tmp_path, once_a_run, kind, key, value, part):
    make, name, read = KINDS[kind]
    folder = shutil.copytree(once_a_run(f"damaged-{make.__name__}", make), tmp_path / "copy")
    (file,) = folder.rglob(Path(name).name)
    parse, dump = (yaml.safe_load, yaml.safe_dump) if file.suffix == ".yaml" else (json.loads, None)
    first, line_break, rest = file.read_text().partition("\n" if file.suffix == ".jsonl" else "\0")
    changed = (dump or json.dumps)({**parse(first), key: value})
    file.write_text(changed + line_break + rest)
    message = _message(read, folder)
    assert part in message
    assert "\n" not in message


def test_a_state_with_a_changed_weight_is_refused(tmp_path, once_a_run):
    folder = shutil.copytree(
        once_a_run("damaged-_make_training", _make_training), tmp_path / "copy"
    )
    file = folder / "out" / "training_state.pt"
    with zipfile.ZipFile(file) as archive:
        largest = archive.read(max(archive.infolist(), key=lambda part: part.file_size))
    content = bytearray(file.read_bytes())
    content[content.find(largest) + len(largest) // 2] ^= 1
    file.write_bytes(content)
    assert "is damaged); remove it to start over" in _message(_go_on, folder)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(8, 16, dtype=torch.int64),
        torch.zeros(8, 16, dtype=torch.complex64),
        torch.zeros(()),
        torch.zeros(8, 16).to_sparse(),
    ],
    ids=["integers", "complex", "0-dimensional", "sparse"],
)
def test_a_state_dict_of_other_tensors_is_refused(tmp_path, tensor):
    base = save_folder(fresh_model("llama"), tmp_path / "base", markers=False)
    state = fresh_model("llama").state_dict()
    raw = save_raw({**state, "model.norm.weight": tensor}, tmp_path / "raw.pt")
    with pytest.raises(LatentRefError, match=r"model\.norm\.weight"):
        load(base, weights=raw, device="cpu")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
@pytest.mark.parametrize("kind", ["model.safetensors", "adapter_model.safetensors", "state dict"])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path, once_a_run, kind, dtype):
    make, name, read = KINDS[kind]
    folder = shutil.copytree(once_a_run(f"damaged-{make.__name__}", make), tmp_path / "copy")
    file = folder / name
    is_safe = file.suffix == ".safetensors"
    tensors = load_file(file) if is_safe else torch.load(file)
    key = next(key for key in tensors if "q_proj" in key)
    changed = {**tensors, key: tensors[key].to(dtype)}
    if is_safe:
        save_file(changed, file, metadata={"format": "pt"})
    else:
        torch.save(changed, file)
    message = _message(read, folder)
    assert f"{key!r} is stored as {dtype}" in message


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_integers_in_a_pytorch_model_file_are_refused_in_a_folder_and_of_the_hub(tmp_path, place):
    base = Path(save_folder(fresh_model("llama"), tmp_path / "base", markers=False))
    tensors = load_file(base / "model.safetensors")
    key = next(key for key in tensors if "q_proj" in key)
    (base / "model.safetensors").unlink()
    torch.save({**tensors, key: tensors[key].long()}, base / "pytorch_model.bin")
    name, given = str(base), {}
    if place == "hub":
        snapshot = tmp_path / "cache/models--a--b/snapshots/0"
        shutil.copytree(base, snapshot)
        (tmp_path / "cache/models--a--b/refs").mkdir()
        (tmp_path / "cache/models--a--b/refs/main").write_text("0")
        name, given = "a/b", {"cache_dir": str(tmp_path / "cache")}
    with pytest.raises(
        LatentRefError, match=r"pytorch_model\.bin: .*q_proj.* stored as torch\.int64"
    ):
        StrictAutoModel.from_pretrained(name, **given)


def test_hashes_of_another_shape_are_refused(tmp_path):
    np.save(tmp_path / "trained_questions.npy", np.zeros((2, 2), dtype="<u8"))
    with pytest.raises(LatentRefError, match=r"trained_questions\.npy"):
        read_hashes(tmp_path / "trained_questions.npy")


@pytest.mark.parametrize("role", ["pretrained", "strong"])
def test_a_name_in_a_file_that_is_too_long_is_one_line(tmp_path, role):
    base = save_folder(fresh_model("llama"), tmp_path / "base", markers=False)
    write_manifest(base, Manifest(latent_steps=2, strong="x" * 5000, weak="weak"))
    names = {"pretrained": "x" * 5000} if role == "pretrained" else {"pretrained": base}
    with pytest.raises(LatentRefError, match="File name too long") as error:
        load(**names, search_step_size=1, device="cpu")
    assert "\n" not in str(error.value)
