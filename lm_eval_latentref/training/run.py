"""The state of one training run, which its phases share: data, progress, saving and resuming.

    run = TrainingRun(recipe)
    saved = run.resume()             # None, or the state of the phase that was stopped
    run.save(learner)

`trainer` trains the models.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from lm_eval_latentref.checkpoints.questions import Hashes, hash_questions
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.distributed import prepare_processes
from lm_eval_latentref.latent.protocol import Example
from lm_eval_latentref.training.data import load_data, texts
from lm_eval_latentref.training.learner import Learner
from lm_eval_latentref.training.models import state, words
from lm_eval_latentref.training.recipe import Recipe
from lm_eval_latentref.training.schedule import Progress, check_kept
from lm_eval_latentref.training.start import Start, check_start
from lm_eval_latentref.training.state import RunFolder

logger = logging.getLogger(__name__)


def _find_processes() -> Accelerator:
    prepare_processes()
    accelerator = Accelerator()
    num_started = int(os.environ.get("WORLD_SIZE", 1))
    if num_started > accelerator.num_processes:  # every process would write the whole output
        raise LatentRefError(
            f"{num_started} processes were started but do not find each other on "
            f"{accelerator.device}; set ACCELERATE_USE_CPU=true, or start one process"
        )
    return accelerator


class TrainingRun:
    """One training run: everything that its phases share."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.accelerator = _find_processes()
        self.is_main = self.accelerator.is_main_process
        if not self.is_main:
            logging.getLogger("lm_eval_latentref").setLevel(logging.ERROR)  # one process logs
        check_kept(recipe)
        check_start(recipe)
        self.folder = RunFolder(recipe.output, recipe.to_dict(), is_main=self.is_main)
        self.data = load_data(recipe)
        self.data_digest = self.data.digest()
        self.words = words(self.data.texts) if recipe.config is not None else []
        self.start = Start(recipe)
        self.progress = Progress()
        self.bar = tqdm(disable=True)

    def resume(self) -> dict[str, Any] | None:
        """The saved state to continue from; None if there is none."""
        saved = self.folder.load()
        self.accelerator.wait_for_everyone()
        if saved is not None:
            with self.folder.reading_state():
                self._check_data(saved["data"])
                self.progress = Progress(**saved["progress"])
            logger.info("continuing from step %d of the saved run", self.progress.num_steps)
        if self.is_main:
            self.folder.record_data(self.data.counts)
            self.folder.cut_metrics(self.progress.metrics_bytes)
        return saved

    def _check_data(self, digest: str) -> None:
        if digest != self.data_digest:
            raise LatentRefError(
                f"output={self.folder.path} holds a run on other data or by another release; "
                "give another output, or remove the folder"
            )

    def save(self, learner: Learner | None) -> None:
        """Saves everything needed to continue from here; `learner` is None between phases."""
        rng: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            rng["cuda"] = torch.cuda.get_rng_state()
        every_rng = gather_object([rng])
        if self.is_main:
            self.folder.save(
                {
                    "progress": dataclasses.asdict(self.progress),
                    "data": self.data_digest,
                    "rng": every_rng,
                    "trained": None if learner is None else state(learner.trainee),
                    "optimizer": None if learner is None else learner.optimizer.state_dict(),
                }
            )
        self.accelerator.wait_for_everyone()

    def check_words(self, examples: Sequence[Example]) -> None:
        """Raises LatentRefError if `examples` have words that this run's own tokenizer lacks."""
        unknown = sorted({*words(texts(examples))} - {*self.words}) if self.words else []
        if unknown:
            shown = ", ".join(map(repr, unknown[:5])) + (", ..." if unknown[5:] else "")
            raise LatentRefError(
                f"the tokenizer lacks {len(unknown)} of the words of epoch "
                f"{self.progress.num_epochs + 1}, because it was made from the first epoch and the "
                f"validation problems: {shown}; give a larger num_train"
            )

    @functools.cached_property
    def trained_questions(self) -> Hashes:
        """Hashes of all questions trained on, including those that the starting model saw."""
        own = hash_questions(example.question for example in self.data.fixed)
        return np.union1d(own, self.start.questions)

    @property
    def trained_on(self) -> list[str]:
        """The splits trained on, including those that the starting model saw."""
        own = self.recipe.trained_on
        return [*own, *sorted(self.start.trained_on - {*own})]

    def seed(self, phase: str) -> None:
        """Seeds torch; random numbers then depend only on the recipe's seed, phase and process."""
        text = f"{self.recipe.seed} {phase} {self.accelerator.process_index}"
        torch.manual_seed(random.Random(text).getrandbits(63))
