"""After a kill at any moment, the same command continues the run and gives the same weights."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from matrix import crossed
from tiny import tiny_model, tiny_tokenizer
from tqdm import tqdm
from training_helpers import metrics, small_recipe

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.training import state as training_state
from lm_eval_latentref.training.learner import Learner
from lm_eval_latentref.training.trainer import train

# Dropout (in the recipe of the helpers) makes every random number count.
CHANGES = {"phases": ["no_cot", "cot", "coconut"], "uniform_prob": 0.3, "weak_epoch": 1}
MANY = {"nodes": 6, "extra": 0, "min_hops": 2, "max_hops": 2, "symbols": 12}
"""Options of `graph` that give thousands of problems."""

NUM_STEPS = 28
"""Of the whole run: 7 epochs of 64 problems in batches of 16."""

FOLDERS = (".", "strong", "weak", "no_cot")
TIMES = ("seconds", "per_second")


class Killed(BaseException):
    """Simulates the end of the process; nothing catches it."""


def weights(folder, kind="model"):
    return {name: (folder / name / f"{kind}.safetensors").read_bytes() for name in FOLDERS}


def lines_without_times(folder):
    lines = metrics(folder)
    return [{k: v for k, v in line.items() if not k.endswith(TIMES)} for line in lines]


def die_after(monkeypatch, num_steps):
    """Lets `num_steps` steps pass, then ends the run in the middle of one."""
    calls, step = itertools.count(), Learner.step

    def counted(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        if next(calls) == num_steps:
            raise Killed
        return loss

    monkeypatch.setattr(Learner, "step", counted)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(small_recipe(tmp_path_factory.mktemp("whole") / "out", **CHANGES))


@pytest.mark.parametrize("reset_optimizer", crossed([True, False], every=2))
def test_a_run_stopped_again_and_again_ends_in_the_same_weights(tmp_path, reset_optimizer):
    changes = {**CHANGES, "reset_optimizer": reset_optimizer}
    whole = train(small_recipe(tmp_path / "whole", **changes))
    recipe = small_recipe(tmp_path / "parts", **changes)
    num_deaths = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            die_after(patch, 5)  # further than a save interval, so there is headway
            try:
                parts = train(recipe)
            except Killed:
                num_deaths += 1
                continue
        break
    assert num_deaths >= 4
    assert weights(parts) == weights(whole)
    assert lines_without_times(parts) == lines_without_times(whole)


@pytest.mark.slow
def test_an_adapter_resumes_to_the_same_weights_too(tmp_path, monkeypatch):
    tiny_model("gpt2").save_pretrained(tmp_path / "base")
    tiny_tokenizer(markers=False).save_pretrained(tmp_path / "base")
    lora = {"r": 2, "target_modules": "all-linear", "lora_dropout": 0.1}
    changes = {**CHANGES, "config": None, "pretrained": str(tmp_path / "base"), "lora": lora}
    whole = train(small_recipe(tmp_path / "whole", **changes))
    recipe = small_recipe(tmp_path / "parts", **changes)
    for num_steps in (10, 14):
        with monkeypatch.context() as patch:
            die_after(patch, num_steps)
            with pytest.raises(Killed):
                train(recipe)
    assert weights(train(recipe), "adapter_model") == weights(whole, "adapter_model")


@pytest.mark.parametrize("num_steps", crossed(range(0, NUM_STEPS, 5), every=2))
def test_wherever_it_is_stopped_the_weights_and_metrics_are_the_same(
    tmp_path, monkeypatch, uninterrupted, num_steps
):
    recipe = small_recipe(tmp_path / "out", **CHANGES)
    with monkeypatch.context() as patch:
        die_after(patch, num_steps)
        with pytest.raises(Killed):
            train(recipe)
    assert weights(train(recipe)) == weights(uninterrupted)
    assert lines_without_times(tmp_path / "out") == lines_without_times(uninterrupted)


def test_at_most_one_save_interval_is_lost(tmp_path, monkeypatch):
    recipe = small_recipe(tmp_path / "out", **CHANGES)
    for num_steps in (2, 6, 9, 14):
        with pytest.MonkeyPatch.context() as patch:
            die_after(patch, num_steps)
            with pytest.raises(Killed):
                train(recipe)
        path = tmp_path / "out" / training_state.STATE
        saved = torch.load(path, weights_only=True)["progress"]["num_steps"] if path.exists() else 0
        # The step that was killed is not counted; the state is that of a fresh start each time.
        assert num_steps + 1 - saved <= recipe.save_steps
        os.remove(path) if path.exists() else None


@pytest.mark.parametrize("part", ["state", "snapshot", "result"])
def test_a_kill_while_writing_leaves_no_incomplete_file_that_loads(
    tmp_path, monkeypatch, uninterrupted, part
):
    recipe = small_recipe(tmp_path / "out", **CHANGES)

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patch:
        if part == "state":
            saves, save = itertools.count(), torch.save

            def half(value, path):
                save(value, path)
                if next(saves) == 4:
                    os.truncate(path, 100)
                    raise Killed

            patch.setattr(torch, "save", half)
        elif part == "snapshot":
            patch.setattr("lm_eval_latentref.training.models.write_manifest", die)
        else:
            moves, replace = itertools.count(), os.replace

            def partly(source, target):
                if str(source).endswith("model.safetensors") and next(moves) == 0:
                    raise Killed
                replace(source, target)

            patch.setattr("lm_eval_latentref.training.state.os.replace", partly)
        with pytest.raises(Killed):
            train(recipe)
    for folder in [tmp_path / "out", *(tmp_path / "out").glob("*/")]:
        if (folder / "config.json").exists() and not folder.name.startswith("."):
            load(str(folder))
    with pytest.raises(LatentRefError):
        load(str(tmp_path / "out"))
    assert weights(train(recipe)) == weights(uninterrupted)


def test_a_full_disk_ends_in_a_message_and_the_run_can_continue(
    tmp_path, monkeypatch, uninterrupted
):
    recipe = small_recipe(tmp_path / "out", **CHANGES)
    saves, save = itertools.count(), torch.save

    def full(value, path):
        if next(saves) >= 4:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(value, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(LatentRefError, match=r"No space left.*free some space") as caught:
            train(recipe)
    assert "\n" not in str(caught.value)
    assert weights(train(recipe)) == weights(uninterrupted)


def test_leftovers_of_killed_processes_are_removed_by_a_finished_run(tmp_path):
    recipe = small_recipe(tmp_path / "out", phases=["cot"], cot_epochs=2, weak_epoch=1)
    folder = train(recipe)
    shutil.copytree(folder / "weak", folder / ".snapshots" / "epoch-1")
    shutil.copytree(folder / "weak", folder / ".new-weak")
    (folder / f".{training_state.STATE}.tmp").write_bytes(b"half")
    train(recipe)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_the_bar_of_a_resumed_run_begins_at_the_saved_step(tmp_path, monkeypatch):
    recipe, bars = small_recipe(tmp_path / "out", **CHANGES), []

    class Bar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr("lm_eval_latentref.training.trainer.tqdm", Bar)
    with monkeypatch.context() as patch:
        die_after(patch, 10)
        with pytest.raises(Killed):
            train(recipe)
    saved = torch.load(tmp_path / "out" / training_state.STATE, weights_only=True)
    train(recipe)
    first, second = bars
    assert first.initial == 0
    # Rate and time left are reckoned from the steps after `initial`.
    assert second.initial == saved["progress"]["num_steps"] == 9
    assert second.n == second.total == NUM_STEPS


def test_metrics_that_cannot_be_cut_end_in_a_message(tmp_path, monkeypatch):
    recipe = small_recipe(tmp_path / "out", **CHANGES)
    with monkeypatch.context() as patch:
        die_after(patch, 10)
        with pytest.raises(Killed):
            train(recipe)

    def fail(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("lm_eval_latentref.training.state.os.truncate", fail)
    with pytest.raises(LatentRefError, match="Permission denied"):
        train(recipe)


def test_a_run_on_other_data_is_not_continued(tmp_path, monkeypatch):
    recipe = small_recipe(tmp_path / "out", **CHANGES)
    with monkeypatch.context() as patch:
        die_after(patch, 5)
        with pytest.raises(Killed):
            train(recipe)
    path = tmp_path / "out" / training_state.STATE
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "data": "other"}, path)
    (tmp_path / "out" / training_state.DATA).write_text("of the other run")
    with pytest.raises(LatentRefError, match="other data"):
        train(recipe)
    assert (tmp_path / "out" / training_state.DATA).read_text() == "of the other run"


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / training_state.STATE).write_bytes(b"no state")
    with pytest.raises(LatentRefError, match=rf"{training_state.STATE} cannot be read"):
        train(small_recipe(tmp_path / "out", **CHANGES))


# In processes of their own.


def recipe_file(tmp_path, output, **changes):
    recipe = small_recipe(output, **CHANGES, **changes)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    return str(path)


def start(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *command]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_kill_9_at_any_moment_does_not_change_the_result(tmp_path):
    changes = {"num_train": 640, "task": MANY}  # so that the run outlasts the kills
    whole = train(small_recipe(tmp_path / "whole", **CHANGES, **changes))
    command = ["lm_eval_latentref", "train", recipe_file(tmp_path, tmp_path / "out", **changes)]
    for num_lines in (1, 3, 5):
        process = start(*command)
        deadline = time.monotonic() + 120
        while len(metrics(tmp_path / "out")) < num_lines and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(start(*command))
    assert weights(tmp_path / "out") == weights(whole)
    assert lines_without_times(tmp_path / "out") == lines_without_times(whole)


def two_processes(*arguments):
    # `accelerate launch --cpu` would start one process, whatever number it is given.
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*launch, "-m", "lm_eval_latentref", *arguments]


@pytest.mark.slow
def test_kill_9_of_two_processes_does_not_change_the_result(tmp_path):
    changes = {"num_train": 320, "task": MANY}
    (tmp_path / "parts").mkdir()
    whole = two_processes("train", recipe_file(tmp_path, tmp_path / "whole", **changes))
    assert "in 2 processes" in finish(start(*whole))
    path = recipe_file(tmp_path / "parts", tmp_path / "out", **changes)
    process = start(*two_processes("train", path))
    deadline = time.monotonic() + 120
    while len(metrics(tmp_path / "out")) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    # Both have sessions of their own, and their launcher must not act on the death of one.
    launcher = psutil.Process(process.pid)
    launcher.suspend()
    for each in [*launcher.children(recursive=True), launcher]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 4 <= len(metrics(tmp_path / "out")) < len(metrics(tmp_path / "whole"))
    output = finish(start(*two_processes("train", path)))
    assert "continuing from step" in output
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert lines_without_times(tmp_path / "out") == lines_without_times(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_have_the_losses_of_a_single_process(tmp_path):
    # Without dropout, which draws other numbers in each process.
    still = {"config": {**small_recipe(tmp_path).config, "attention_dropout": 0.0}}
    alone = train(small_recipe(tmp_path / "one", **CHANGES, **still))
    path = recipe_file(tmp_path, tmp_path / "two", **still)
    assert "in 2 processes" in finish(start(*two_processes("train", path)))
    for first, second in zip(metrics(alone), metrics(tmp_path / "two"), strict=True):
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
        assert second["step"] == first["step"]
        assert second["validation_accuracy"] == pytest.approx(first["validation_accuracy"], abs=0.1)
    load(str(tmp_path / "two"))
