"""A recipe so small that a run takes seconds, and functions that read its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lm_eval_latentref.training.recipe import Recipe, parse_recipe

SMALL: dict[str, Any] = {
    "phases": ["cot", "coconut"],
    "config": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "attention_dropout": 0.1,
        "tie_word_embeddings": True,
    },
    "train": "graph",
    "task": {"nodes": 6, "extra": 0, "min_hops": 2, "max_hops": 2, "symbols": 6},
    "num_train": 64,
    "num_validation": 20,
    "max_new_tokens": 8,
    "max_latent_stage": 2,
    "epochs_per_stage": 1,
    "no_cot_epochs": 1,
    "cot_epochs": 3,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "warmup_steps": 3,
    "save_steps": 3,
}


def small_recipe(output: Path, **changes: Any) -> Recipe:
    values = {**SMALL, "output": str(output), **changes}
    return parse_recipe({name: value for name, value in values.items() if value is not None})


def metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_json(path: Path, questions: list[str]) -> str:
    rows = [{"question": question, "steps": ["s"], "answer": "a"} for question in questions]
    path.write_text(json.dumps(rows))
    return str(path)
