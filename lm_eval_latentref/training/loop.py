"""Training of the checkpoints the method needs: No-CoT, CoT with its snapshots, pause, Coconut.

    folder = train(load_recipe("hops-small", ["output=out/hops", "seed=1"]))
    reasoner = load(str(folder))

Runs on accelerate, on any number of processes. Killed at any moment, the same call goes on from the
state saved last; on a CPU in float32 to the same weights, bit for bit. Deliberately knows no
lm-eval.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lm_eval_latentref.checkpoints.files import holding
from lm_eval_latentref.training.phase import Phase
from lm_eval_latentref.training.recipe import Recipe
from lm_eval_latentref.training.run import Run
from lm_eval_latentref.training.state import SNAPSHOTS

logger = logging.getLogger(__name__)


def train(recipe: Recipe) -> Path:
    """Trains all phases of `recipe`, or what is left of them; the folder of the result.

    Raises LatentRefError for what the recipe names and cannot be had or written, for an output
    folder that another process trains in, and when the loss is no longer finite.
    """
    # Of several processes the first one writes.
    writes = int(os.environ.get("RANK", 0)) == 0
    with holding(recipe.output, "latentref train") if writes else contextlib.nullcontext():
        run = Run(recipe)
        with logging_redirect_tqdm():
            _train(run)
    return run.folder.path


def _train(run: Run) -> None:
    saved = run.resume()
    if run.accelerator.num_processes > 1:
        logger.info("training in %d processes", run.accelerator.num_processes)
    phases, progress = run.recipe.phases, run.progress
    # With `initial` the time left is reckoned from this run's steps alone.
    options = {"desc": "training", "unit": "step", "disable": not run.is_main}
    with tqdm(initial=progress.num_steps, **options) as run.bar:
        if progress.phase < len(phases):
            run.start.warn_of_seen([one.question for one in run.data.validation])
        while progress.phase < len(phases):
            Phase(run, phases[progress.phase], saved).go()
            saved = None
    if run.is_main:
        run.folder.remove_leftovers(SNAPSHOTS)
    logger.info("finished: %s", run.folder.path)
