"""Whatever a results or samples file holds, a board is built of the others or says why not."""

from __future__ import annotations

import json
import random

import pytest
from lm_eval_files import DATE, write_run

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.leaderboard import leaderboard
from lm_eval_latentref.evaluation.leaderboard_report import WRITERS, save_eval_results

ODD = (None, "", "x", -1, 0, 1.5, 10**30, True, [], {}, [[]], {"a": None}, "\x1b[0m", "<b>|")
LATENT = {
    "latent_steps": 6,
    "backbone": {"name": "b", "fingerprint": "f"},
    "data": {"mathqa test": {"sha256": "s"}},
    "cost": {
        "forwards": {"backbone": 8},
        "thought_steps": 6,
        "tokens_encoded": 8,
        "tokens_generated": 8,
        "seconds": {"encode": 1.0, "think": 1.0, "decode": 1.0},
        "peak_memory_bytes": {"host": 8},
    },
}


def places(value, path=()):
    """Every place in a JSON value, as a path of keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def replaced(value, path, odd):
    """A copy with another value at `path`."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    return copy


def build(folder):
    try:
        board = leaderboard([folder])
    except LatentRefError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    for write in WRITERS.values():
        assert "\x1b" not in write(board)
    save_eval_results(board, folder / "hub")


@pytest.mark.parametrize("seed", range(2))
def test_any_value_in_a_results_file_ends_in_a_board_or_one_line(seed, tmp_path):
    file = write_run(tmp_path, {"t": {"acc": [1.0, 0.0]}}, name="m", config={"latentref": LATENT})
    write_run(tmp_path / "other", {"t": {"acc": [0.0, 0.0]}}, name="other")
    content = json.loads(file.read_text())
    generator = random.Random(seed)
    for path in generator.sample(sorted(places(content), key=str), 12):
        file.write_text(json.dumps(replaced(content, path, generator.choice(ODD))))
        build(tmp_path)


@pytest.mark.parametrize("seed", range(2))
def test_any_value_in_a_sample_ends_in_a_board_or_one_line(seed, tmp_path):
    write_run(tmp_path, {"t": {"acc": [1.0, 0.0]}}, name="m")
    write_run(tmp_path / "other", {"t": {"acc": [0.0, 1.0]}}, name="other")
    file = tmp_path / f"samples_t_{DATE}.jsonl"
    first, second = file.read_text().splitlines()
    generator = random.Random(seed)
    content = json.loads(first)
    for path in generator.sample(sorted(places(content), key=str), 8):
        changed = json.dumps(replaced(content, path, generator.choice(ODD)))
        file.write_text(f"{changed}\n{second}\n")
        build(tmp_path)


@pytest.mark.parametrize("seed", range(2))
def test_any_byte_of_a_sample_ends_in_a_board_or_one_line(seed, tmp_path):
    write_run(tmp_path, {"t": {"acc": [1.0, 0.0]}}, name="m")
    write_run(tmp_path / "other", {"t": {"acc": [0.0, 1.0]}}, name="other")
    file = tmp_path / f"samples_t_{DATE}.jsonl"
    content = file.read_bytes()
    generator = random.Random(seed)
    for _ in range(8):
        place = generator.randrange(len(content))
        file.write_bytes(content[:place] + bytes([generator.randrange(256)]) + content[place + 1 :])
        build(tmp_path)
