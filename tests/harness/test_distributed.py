"""Several processes share the documents and give the same results as one process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
TASKS = ("latentref_prosqa_generated_mc", "latentref_prosqa_generated")
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    for seed, name in enumerate(("backbone", "strong", "weak")):
        tiny_model("llama", seed).save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    return root


def evaluation(folders, output, *, start=(), limit=5, extra=()):
    """The command and environment of an lm_eval run."""
    settings = "latent_steps=2,memory_rate=0.4,search_step_size=48,max_length=2048,dtype=float32"
    models = ",".join(
        f"{argument}={folders / name}"
        for argument, name in (("pretrained", "backbone"), ("strong", "strong"), ("weak", "weak"))
    )
    command = [
        *(sys.executable, *start, "-m", "lm_eval", "run"),
        *("--model", "latentref", "--model_args", f"{models},{settings}", "--batch_size", "2"),
        *("--include_path", str(ROOT / "task_configs"), "--tasks", ",".join(TASKS)),
        *("--gen_kwargs", "max_gen_toks=6", "--limit", str(limit), "--log_samples"),
        *("--output_path", str(output), "--device", "cpu", *extra),
    ]
    # Where there is nothing but CPUs, it need not be said.
    only = {"ACCELERATE_USE_CPU": "true"} if torch.accelerator.is_available() else {}
    return command, {**os.environ, "PYTHONPATH": str(ROOT), **only}


def evaluate(folders, output, **how):
    """Runs lm_eval; returns its status, its output, and the responses by task and document."""
    command, environment = evaluation(folders, output, **how)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=output.parent, check=False
    )
    return done.returncode, done.stdout + done.stderr, samples(output)


def samples(output):
    actual = {}
    for path in output.rglob("samples_*.jsonl"):
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            task = next(task for task in TASKS if path.name.startswith(f"samples_{task}_2"))
            # Where ranks have unequal shares lm-eval asks the last request again, to fill up.
            actual[task, sample["doc_id"]] = [responses[0] for responses in sample["resps"]]
    return actual


@pytest.fixture(scope="module")
def alone(folders, tmp_path_factory):
    status, printed, actual = evaluate(folders, tmp_path_factory.mktemp("alone") / "out")
    assert status == 0, printed
    assert len(actual) == 10
    return actual


def assert_same(actual, wanted):
    assert actual.keys() == wanted.keys()
    for key, responses in wanted.items():
        if key[0].endswith("_mc"):
            values = [float(value) for value, _ in responses]
            assert [float(value) for value, _ in actual[key]] == pytest.approx(values, abs=1e-4)
        else:
            assert actual[key] == responses


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "num"), [("torchrun", 2), ("torchrun", 3), ("accelerate", 2)])
def test_processes_give_the_numbers_of_one(folders, alone, tmp_path, launcher, num):
    start = [*LAUNCHERS[launcher], str(num)]
    status, printed, actual = evaluate(folders, tmp_path / "out", start=start)
    assert status == 0, printed
    assert_same(actual, alone)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    cost = json.loads(results.read_text())["config"]["latentref"]["cost"]
    # Two tasks of five documents, two thoughts each; some are asked again where shares are unequal.
    assert cost["processes"] == num
    assert cost["thought_steps"] >= 2 * 5 * 2


def wait_for_answers(cache, process, num, seconds=120):
    """Wait until a running evaluation has put `num` answers into its cache."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(f"file:{cache}?mode=ro", uri=True)) as answers,
        ):
            if answers.execute("select count(*) from unnamed").fetchone()[0] >= num:
                return
        time.sleep(0.02)
    pytest.fail("the evaluation ended, or hung, before it was killed")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_with_more_processes_too(folders, alone, tmp_path):
    caches = ["--use_cache", str(tmp_path / "cache")]
    command, environment = evaluation(folders, tmp_path / "killed", extra=caches)
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_answers(tmp_path / "cache_rank0.db", process, num=4)
    process.send_signal(signal.SIGKILL)
    process.wait()

    start = [*LAUNCHERS["torchrun"], "2"]
    status, printed, actual = evaluate(folders, tmp_path / "out", start=start, extra=caches)
    assert status == 0, printed
    assert re.search(r"Cached requests: [1-9]", printed)
    assert_same(actual, alone)

    status, printed, actual = evaluate(folders, tmp_path / "again", extra=caches)
    assert status == 0, printed
    # What both ranks answered is all there is to know for one process.
    assert re.search(r"Cached requests: 10, Requests remaining: 0", printed)
    assert_same(actual, alone)
