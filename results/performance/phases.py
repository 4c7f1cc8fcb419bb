"""Runs `lm_eval` and writes how many seconds of the processor its phases took; for `starting`.

    python results/performance/phases.py FILE.json --model hf --model_args ... --tasks ...

A phase is the time in its functions, without that in functions of other phases.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

BEFORE, AFTER = "until the model is looked up", "the rest"
IMPORTS = "imports of its class"
FILES, WEIGHTS, CHECKS = "configuration, tokenizer", "weights", "checks of the base"
ADAPTERS, THOUGHTS, SCORES = "adapters", "thoughts", "scores"
GARBAGE = "the search for garbage"
"""Python's collector goes through all objects whenever there are a quarter more, in any phase."""

EITHER = {
    "lm_eval.models.huggingface.HFLM._get_config": FILES,
    "lm_eval.models.huggingface.HFLM._create_tokenizer": FILES,
    "lm_eval.models.huggingface.HFLM._create_model": WEIGHTS,
    "lm_eval.models.huggingface.HFLM._loglikelihood_tokens": SCORES,
}
OURS = {
    "lm_eval_latentref.harness.model.plan_run": FILES,
    "lm_eval_latentref.harness.model.load_tokenizer": FILES,
    "lm_eval_latentref.checkpoints.loading.open_config": FILES,
    "lm_eval_latentref.checkpoints.loading.read_adapter": ADAPTERS,
    "lm_eval_latentref.checkpoints.loading.attach": ADAPTERS,
    "lm_eval_latentref.checkpoints.opening.check_model": CHECKS,
    "lm_eval_latentref.harness.model.LatentRefLM.score_pairs": SCORES,
    "lm_eval_latentref.latent.token_reasoner.TokenReasoner.think_in_groups": THOUGHTS,
}


class Phases:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter({BEFORE: 0.0})
        self._open = [BEFORE]
        self._since = 0.0  # the process's start

    def enter(self, phase: str) -> None:
        """Count time for `phase` until `leave`."""
        self.count()
        self._open.append(phase)

    def leave(self) -> None:
        self.count()
        self._open.pop()

    def part(self) -> None:
        """lm-eval looks the model up: what is in no phase from now on is the rest."""
        self.count()
        self._open[0] = AFTER

    def on_garbage(self, place: str, info: Any) -> None:
        """A callback of `gc`."""
        if place == "start":
            self.enter(GARBAGE)
        else:
            self.leave()

    def watch(self, path: str, phase: str) -> None:
        """Count the calls of the function at `path` for `phase`."""
        place, name = _place(path)
        function = getattr(place, name)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        setattr(place, name, watched)

    def count(self) -> None:
        """Add the seconds up to now to the phase of now."""
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


def _place(path: str) -> tuple[Any, str]:
    """The module or class that has the function at `path`, and its name there."""
    *parents, name = path.split(".")
    if parents[-1][0].isupper():
        return getattr(import_module(".".join(parents[:-1])), parents[-1]), name
    return import_module(".".join(parents)), name


def run(file: Path, arguments: list[str]) -> None:
    from lm_eval.api import registry

    phases, look_up = Phases(), registry.get_model

    def watched_look_up(name: str) -> Any:
        phases.part()
        gc.callbacks.append(phases.on_garbage)
        phases.enter(IMPORTS)
        model_class = look_up(name)
        phases.leave()
        for path, phase in {**EITHER, **(OURS if name == "latentref" else {})}.items():
            phases.watch(path, phase)
        return model_class

    registry.get_model = watched_look_up
    sys.argv = ["lm_eval", *arguments]
    main: Callable[[], None] = import_module("lm_eval.__main__").cli_evaluate
    main()
    phases.count()
    file.write_text(json.dumps(phases.seconds), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit(0)
    if len(sys.argv) < 3 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    run(Path(sys.argv[1]), sys.argv[2:])
