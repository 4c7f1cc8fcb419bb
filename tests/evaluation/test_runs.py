"""Which evaluations are read back, and which are done again."""

from __future__ import annotations

import json

import pytest

from lm_eval_latentref.evaluation.provenance import versions
from lm_eval_latentref.evaluation.runs import _is_done

IDENTITY = {"command": "latentref run", "checkpoints": ["a"]}


@pytest.mark.parametrize(
    ("files", "is_done"),
    [
        (["results_1.json", "samples_t_1.jsonl"], True),
        (["results_1.json", "results_2.json", "samples_t_1.jsonl"], False),
        (["results_1.json", "samples_t_1.jsonl", "samples_t_2.jsonl"], False),
        (["results_1.json"], False),
    ],
)
def test_a_folder_with_results_of_two_runs_is_evaluated_again(tmp_path, files, is_done):
    for name in files:
        (tmp_path / name).write_text("")
    done = {**IDENTITY, "made_with": {"versions": versions()}, "data": {}}
    (tmp_path / "done.json").write_text(json.dumps(done))
    assert _is_done(tmp_path, IDENTITY) is is_done
