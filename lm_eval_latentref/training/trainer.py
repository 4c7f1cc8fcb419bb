"""Trains the checkpoints that the method needs: No-CoT, CoT with its references, pause, Coconut.

    folder = train(load_recipe("graph-small", ["output=out/graph", "seed=1"]))
    reasoner = load(str(folder))

Training uses accelerate and runs on any number of processes. After a kill at any moment, the same
call continues from the last saved state; on a CPU in float32 the final weights are bit-identical.
`run` holds and saves the state that phases share.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lm_eval_latentref.checkpoints.files import holding
from lm_eval_latentref.checkpoints.manifest import Manifest
from lm_eval_latentref.checkpoints.questions import QUESTIONS_NAME, write_hashes
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.selection import find_markers, make_kind
from lm_eval_latentref.training.curriculum import Problem, Row, epoch_batches
from lm_eval_latentref.training.data import encode
from lm_eval_latentref.training.learner import Learner
from lm_eval_latentref.training.loss import num_labelled
from lm_eval_latentref.training.models import build, restore, save
from lm_eval_latentref.training.recipe import Recipe
from lm_eval_latentref.training.run import TrainingRun
from lm_eval_latentref.training.schedule import (
    LATENT_KINDS,
    Epoch,
    Stage,
    choose,
    epoch_name,
    epochs_left,
    latent_steps,
    learning_rate,
    stage_rows,
    stages,
    writes_steps,
)
from lm_eval_latentref.training.state import EPOCHS, SNAPSHOTS

logger = logging.getLogger(__name__)


def train(recipe: Recipe) -> Path:
    """Trains the phases of `recipe` that are not finished; returns the folder of the result.

    Raises LatentRefError if a model, file or data set of the recipe is not available, if the output
    folder cannot be written or another process trains in it, or if the loss is no longer finite.
    """
    # Of several processes, only the first writes.
    writes = int(os.environ.get("RANK", 0)) == 0
    with holding(recipe.output, "latentref train") if writes else contextlib.nullcontext():
        run = TrainingRun(recipe)
        with logging_redirect_tqdm():
            _train(run)
    return run.folder.path


def _train(run: TrainingRun) -> None:
    saved = run.resume()
    if run.accelerator.num_processes > 1:
        logger.info("training in %d processes", run.accelerator.num_processes)
    phases, progress = run.recipe.phases, run.progress
    # With `initial`, the time left is estimated from this call's steps alone.
    options = {"desc": "training", "unit": "step", "disable": not run.is_main}
    with tqdm(initial=progress.num_steps, **options) as run.bar:
        if progress.phase < len(phases):
            run.start.warn_of_seen([example.question for example in run.data.validation])
        while progress.phase < len(phases):
            Phase(run, phases[progress.phase], saved).go()
            saved = None
    if run.is_main:
        run.folder.remove_leftovers(SNAPSHOTS)
    logger.info("finished: %s", run.folder.path)


RUNNING_LOSS_DECAY = 0.98


class Phase:
    """The training of one model.

    Args:
        saved: the state to continue from, if the run was stopped within this phase.
    """

    def __init__(self, run: TrainingRun, name: str, saved: dict[str, Any] | None) -> None:
        self._run, self._name = run, name
        self._recipe, self._progress, self._folder = run.recipe, run.progress, run.folder
        kind = LATENT_KINDS.get(name)
        starts_from_cot = kind and run.recipe.start_from_cot and "cot" in run.recipe.phases
        start = self._folder.path / "strong" if starts_from_cot else None
        trainee = build(self._recipe, words=run.words, latent=kind is not None, start=start)
        run.seed(name)
        config = RefinementConfig(latent_kind=kind or "continuous")
        self._learner = Learner(
            trainee,
            recipe=self._recipe,
            accelerator=run.accelerator,
            markers=find_markers(trainee.tokenizer, config) if kind else None,
            kind=make_kind(trainee.tokenizer, trainee.network(), config),
        )
        self._encoded: tuple[Sequence[Any], list[Problem]] = ([], [])
        self._check_room()
        if saved is not None:
            with self._folder.reading_state():
                self._restore(saved)

    def go(self) -> None:
        progress = self._progress
        planned = stages(self._recipe, self._name)
        while progress.stage < len(planned):
            stage = planned[progress.stage]
            self._epoch(stage)
            num_correct = self._validate(stage)
            self._keep_epoch(stage)
            kept = self._keep_snapshot(stage, num_correct) if self._name == "cot" else set()
            if progress.epoch >= stage.num_epochs:
                progress.end_stage()
            self._run.save(self._learner)
            if self._name == "cot" and self._run.is_main:
                self._drop_snapshots(kept)
        if self._run.is_main:
            self._finish(planned[-1])
        self._run.accelerator.wait_for_everyone()
        progress.end_phase()
        self._run.save(None)
        if self._run.is_main:
            self._folder.remove(SNAPSHOTS)

    def _epoch(self, stage: Stage) -> None:
        recipe, progress, learner = self._recipe, self._progress, self._learner
        is_new = progress.epoch == 0 and progress.step == 0
        if is_new and (recipe.reset_optimizer or progress.stage == 0):
            learner.reset_optimizer()
            progress.num_updates = 0
        batches = self._batches(stage)
        bar = self._run.bar
        bar.total = progress.num_steps - progress.step
        bar.total += epochs_left(recipe, progress) * len(batches)
        bar.update(progress.num_steps - bar.n)
        for batch in batches[progress.step :]:
            started = time.perf_counter()
            rate = learning_rate(recipe, self._name, stage, progress, steps_per_epoch=len(batches))
            loss = learner.step(batch, learning_rate=rate)
            self._count(batch, loss, time.perf_counter() - started)
            bar.set_postfix_str(
                f"{self._label(stage)}, loss {progress.running_loss:.4f}", refresh=False
            )
            bar.update()
            if progress.num_steps % recipe.save_steps == 0 and progress.step < len(batches):
                self._run.save(learner)

    def _count(self, batch: Sequence[Row], loss: float, seconds: float) -> None:
        progress = self._progress
        progress.step += 1
        progress.num_steps += 1
        progress.num_updates += 1
        progress.loss += loss
        progress.num_labelled += num_labelled(batch)
        progress.num_columns += sum(row.num_columns for row in batch)
        progress.num_rows += len(batch)
        progress.seconds += seconds
        mean, running = loss / num_labelled(batch), progress.running_loss
        decay = RUNNING_LOSS_DECAY
        progress.running_loss = mean if running is None else decay * running + (1 - decay) * mean

    def _batches(self, stage: Stage) -> list[list[Row]]:
        """The global batches of the next epoch, in order."""
        seed, number = self._recipe.seed, self._progress.num_epochs
        rng = random.Random(f"{seed} {self._name} {number}")
        examples = self._run.data.epoch(number)
        if self._encoded[0] != examples:
            self._run.check_words(examples)
            self._encoded = (examples, encode(examples, self._learner.trainee.tokenizer))
        rows = stage_rows(self._recipe, self._name, stage, self._encoded[1], rng)
        longest = self._learner.max_length
        # The two markers add two columns; the last token is never read, which saves one.
        fitting = [row for row in rows if longest is None or row.num_columns + 1 <= longest]
        if len(fitting) < len(rows):
            num_long = len(rows) - len(fitting)
            logger.warning(
                "%s: %d of %d rows are left out: longer than the %s columns the model reads",
                self._label(stage),
                num_long,
                len(rows),
                longest,
            )
        if not fitting:
            raise LatentRefError(
                f"{self._label(stage)}: no row fits the {longest} columns the model reads; give "
                "shorter problems or another model"
            )
        return epoch_batches(fitting, self._recipe.batch_size, rng)

    def _validate(self, stage: Stage) -> int:
        """Validates after an epoch and writes its metrics; returns the number of right answers."""
        progress, sources = self._progress, self._run.data.validation_by_source
        num_thoughts = latent_steps(self._recipe, stage)
        started = time.perf_counter()
        correct = {
            name: self._learner.num_correct(examples, latent_steps=num_thoughts)
            for name, examples in sources.items()
            if examples
        }
        num_correct, num_problems = sum(correct.values()), sum(map(len, sources.values()))
        values = {
            "phase": self._name,
            "stage": stage.number,
            "epoch": progress.epoch + 1,
            "step": progress.num_steps,
            "latent_steps": num_thoughts,
            "loss": progress.loss / progress.num_labelled,
            "validation_accuracy": num_correct / num_problems,
            "validation_problems": num_problems,
            "validation_accuracy_by_source": {
                name: num / len(sources[name]) for name, num in correct.items()
            },
            "seconds": round(progress.seconds, 3),
            "validation_seconds": round(time.perf_counter() - started, 3),
            "examples_per_second": round(progress.num_rows / progress.seconds, 2),
            "tokens_per_second": round(progress.num_columns / progress.seconds, 1),
        }
        if self._run.is_main:
            progress.metrics_bytes = self._folder.append_metrics(values)
        logger.info(
            "%s, epoch %d: loss %.4f, validation accuracy %.3f, %.0f s",
            self._label(stage),
            values["epoch"],
            values["loss"],
            values["validation_accuracy"],
            values["seconds"],
        )
        progress.end_epoch()
        return num_correct

    def _keep_epoch(self, stage: Stage) -> None:
        number = self._progress.epoch
        name = epoch_name(self._name, stage, number)
        if name in self._recipe.keep_epochs and self._run.is_main:
            self._save(f"{EPOCHS}/{name}", self._manifest(stage, epoch=number))

    def _keep_snapshot(self, stage: Stage, num_correct: int) -> set[int]:
        """Saves the finished epoch if it may become a reference.

        Returns:
            The numbers of all epochs so far that may become references.
        """
        progress, number = self._progress, self._progress.epoch
        progress.validated.append([number, num_correct, len(self._run.data.validation)])
        chosen = self._chosen_epochs()
        if number in chosen and self._run.is_main:
            self._save(f"{SNAPSHOTS}/epoch-{number}", self._manifest(stage, epoch=number))
        return {epoch for epoch in chosen if epoch is not None}

    def _chosen_epochs(self) -> tuple[int | None, int | None]:
        recipe = self._recipe
        return choose(
            [Epoch(*values) for values in self._progress.validated],
            chance=self._run.data.majority,
            strong_epoch=recipe.strong_epoch,
            weak_epoch=recipe.weak_epoch,
        )

    def _drop_snapshots(self, kept: set[int]) -> None:
        # Only called after a save of the training state, which does not need them.
        for folder in (self._folder.path / SNAPSHOTS).glob("epoch-*"):
            if int(folder.name.removeprefix("epoch-")) not in kept:
                self._folder.remove(f"{SNAPSHOTS}/{folder.name}")

    def _finish(self, last: Stage) -> None:
        """Saves the phase's model, and the references it needs or gives."""
        is_root = self._name == self._recipe.main_phase
        if self._name != "cot":
            if self._name == "coconut" and "cot" not in self._recipe.phases:
                self._take_references()
            roles = self._saved_references() if self._name == "coconut" else {}
            self._save("." if is_root else self._name, self._manifest(last, **roles))
            return
        weak, strong = self._chosen_epochs()
        self._folder.copy_folder(f"{SNAPSHOTS}/epoch-{strong}", "strong")
        if weak is None:
            logger.warning(
                "no epoch of CoT other than the best clearly beats chance, so there is no weak "
                "reference; validate more often (a smaller num_train) or name weak_epoch"
            )
        else:
            self._folder.copy_folder(f"{SNAPSHOTS}/epoch-{weak}", "weak")
        logger.info("CoT epochs kept: strong %s, weak %s", strong, weak)
        if is_root:
            self._folder.copy_folder(
                "strong", ".", self._manifest(last, **self._saved_references())
            )

    def _take_references(self) -> None:
        """Copies the references of the set that training started from (for runs without CoT)."""
        for role, source in self._run.start.references().items():
            with self._folder.new_folder(role) as folder:
                shutil.copytree(source, folder, dirs_exist_ok=True)

    def _saved_references(self) -> dict[str, str]:
        """Both references as latentref.json names them; empty unless both exist."""
        roles = ("strong", "weak")
        both_exist = all((self._folder.path / role).is_dir() for role in roles)
        return {role: role for role in roles} if both_exist else {}

    def _manifest(self, stage: Stage, **values: Any) -> Manifest:
        kind = LATENT_KINDS.get(self._name, "continuous")
        examples = self._run.data.validation
        return Manifest(
            latent_steps=latent_steps(self._recipe, stage),
            latent_kind=None if kind == "continuous" else kind,
            trained_on=self._run.trained_on,
            trained_questions=QUESTIONS_NAME if len(self._run.trained_questions) else None,
            writes_steps=writes_steps(self._recipe, self._name, stage, examples) or None,
            **values,
        )

    def _save(self, name: str, manifest: Manifest) -> None:
        with self._folder.new_folder(name) as folder:
            save(self._learner.trainee, folder, manifest)
            if manifest.trained_questions is not None:
                write_hashes(folder, self._run.trained_questions)

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["trained"] is None:  # saved between phases
            return
        restore(self._learner.trainee, saved["trained"])
        self._learner.optimizer.load_state_dict(saved["optimizer"])
        every_rng = saved["rng"]
        if len(every_rng) != self._run.accelerator.num_processes:
            raise LatentRefError(
                f"the saved run had {len(every_rng)} processes, this run has "
                f"{self._run.accelerator.num_processes}; start {len(every_rng)} processes"
            )
        rng = every_rng[self._run.accelerator.process_index]
        torch.set_rng_state(rng["cpu"])
        if "cuda" in rng and torch.cuda.is_available():
            torch.cuda.set_rng_state(rng["cuda"])

    def _check_room(self) -> None:
        """Raises before training if the longest validation problem does not fit the model."""
        planned = stages(self._recipe, self._name)
        longest = max(latent_steps(self._recipe, stage) for stage in planned)
        self._learner.check_room(self._run.data.validation, latent_steps=longest)

    def _label(self, stage: Stage) -> str:
        return self._name if stage.number is None else f"{self._name} stage {stage.number}"
