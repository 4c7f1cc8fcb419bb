"""A small sweep over a user's own task, and what its tests begin with."""

from __future__ import annotations

import json

import pytest
import yaml
from tiny import tiny_model, tiny_tokenizer

from lm_eval_latentref.evaluation import sweep_model
from lm_eval_latentref.evaluation.sweep import sweep

TASK = "riddles_dev"

SIZES = {"memory_rates": (0.4,), "step_sizes": (1.0,), "latent_steps": (1, 3)}

NUM_SETTINGS = 6  # T=1: plain, search; T=3: plain, residual, search, both


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("backbone", "strong", "weak")):
        tiny_model("gpt2", seed).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A user's own task files: twelve riddles with three candidates each."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": f"Tom is {'a lempus and ' * (number % 4)}{number}. What is Tom?\n",
            "choices": [f"### {number + 1}", "### a gorpus", "### no"],
            "gold": number % 3,
        }
        for number in range(12)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    for split in ("validation", "test", "train"):
        task = {
            "task": {"validation": TASK}.get(split, f"riddles_{split}"),
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {split: str(data)}, "cache_dir": str(folder / "c")},
            "test_split" if split == "test" else "validation_split": split,
            "output_type": "multiple_choice",
            "doc_to_text": "question",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}],
        }
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return str(folder)


def model_args(folders, **others):
    names = {"pretrained": "backbone", "strong": "strong", "weak": "weak"}
    paths = {role: str(folders / name) for role, name in names.items()}
    return {**paths, "dtype": "float32", "device": "cpu", "batch_size": 4, **others}


def run(folders, tasks, output, args=(), **options):
    options = {"task": TASK, "include_path": tasks, **SIZES, **options}
    return sweep(model_args(folders, **dict(args)), output=str(output), **options)


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def finished(folders, tasks, finished_folder):
    return run(folders, tasks, finished_folder)


@pytest.fixture
def stops_after(monkeypatch):
    """Makes the process stop, as by Ctrl-C, once so many settings' batches are scored."""
    original = sweep_model.SweepModel.score_under

    def arm(number):
        left = iter(range(number))

        def score_under(self, *args, **kwargs):
            for scored in original(self, *args, **kwargs):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                yield scored

        monkeypatch.setattr(sweep_model.SweepModel, "score_under", score_under)

    return arm
