"""The first run of a new user: SmolLM2-135M with refined thoughts through lm-eval.

    latentref demo --output results/demo

Picks the benchmark by what can be reached from here, prints the lm-eval command it runs, so that it
can be copied and changed, and runs it. Knows nothing of models and of what data mean.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

from lm_eval_latentref import published
from lm_eval_latentref.tasks import tasks_path

logger = logging.getLogger(__name__)

REAL_TASK = "latentref_mathqa_mc"
GENERATED_TASK = "latentref_prosqa_generated_mc"
MODEL_ARGS = "latent_steps=6,memory_rate=0.5"
PROBE_SECONDS = 5.0


def run_demo(*, output: str, limit: int) -> int:
    """Prints and runs the demo's lm-eval command; the exit status is lm-eval's.

    The results JSON goes below the folder `output`; `limit` is the number of documents.
    """
    task = choose_task(hub_reachable)
    command = lm_eval_command(task, output=output, limit=limit)
    print(f"$ {shlex.join(command)}", flush=True)
    environment = dict(os.environ)
    if task == GENERATED_TASK:
        # Nothing of this run is on the hub: without this, libraries still wait for it.
        environment["HF_HUB_OFFLINE"] = "1"
    return subprocess.run([sys.executable, "-m", *command], env=environment, check=False).returncode


def choose_task(reachable: Callable[[], bool]) -> str:
    """MathQA from the folder `LATENTREF_DATA` or the hub; where it is in neither, generated data.

    `reachable` is asked before any download is tried: a failing one takes minutes.
    """
    try:
        if os.environ.get(published.DATA_VARIABLE) or reachable():
            published.read("mathqa", "test")
            return REAL_TASK
    except published.DataMissingError as error:
        logger.warning("%s", error)
    return GENERATED_TASK


def lm_eval_command(task: str, *, output: str, limit: int) -> list[str]:
    """The words of the demo's command, as a user would type them."""
    return [
        *("lm_eval", "run", "--model", "latentref", "--model_args", MODEL_ARGS),
        *("--include_path", str(tasks_path()), "--tasks", task),
        *("--limit", str(limit), "--batch_size", "8", "--output_path", output),
    ]


def hub_reachable(seconds: float = PROBE_SECONDS) -> bool:
    """Whether the Hugging Face hub answers within `seconds`, looking up its name included."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def probe() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=seconds):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except OSError:
            return

    # A name look-up obeys no timeout: waiting for a thread does.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
