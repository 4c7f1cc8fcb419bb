"""lm-eval's own command line, with the model registered and our tasks on its include path.

    harness.run(["--tasks", "latentref_mathqa_mc", "--limit", "8"])

It works where a .pth file does not (PYTHONPATH, `pip install --target`). `--model` defaults to
latentref; every other argument goes to lm-eval unchanged after `door` has checked it.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Sequence
from typing import Any

from lm_eval_latentref import _autoload
from lm_eval_latentref.benchmarks.documents import include_paths
from lm_eval_latentref.checkpoints.files import one_line
from lm_eval_latentref.errors import LatentRefError, say


def run(arguments: Sequence[str]) -> int:
    """Run `lm_eval run ARGUMENTS`; without arguments lm-eval prints its help and exits.

    Returns 0, or 1 if a file of results could not be written. Raises LatentRefError on a mistake in
    the arguments.
    """
    from lm_eval.utils import setup_logging

    from lm_eval_latentref.harness import door
    from lm_eval_latentref.harness.lm_eval_seams import (
        log_as_lm_eval,
        noting_unsaved_files,
        parse_run,
    )

    setup_logging()
    _autoload.install()
    log_as_lm_eval()
    try:
        args, execute = parse_run(arguments)
    except ValueError as error:  # of JSON in an argument
        raise LatentRefError(one_line(error)) from error
    given = _of_file(args)
    args.model = args.model or given.get("model") or _autoload.MODEL_NAME
    args.include_path = include_paths(args.include_path or given.get("include_path"))
    try:
        door.check(args)
        with noting_unsaved_files() as unsaved:
            execute(args)
    except sqlite3.Error as error:
        raise LatentRefError(
            f"--use_cache: {args.use_cache or given.get('use_cache')}_rank*.db cannot be written "
            f"({error}); make room, or name another place, and give the same command again: the "
            "answers so far are kept"
        ) from error
    except OSError as error:
        if args.model == _autoload.MODEL_NAME:
            raise
        # So transformers reports a checkpoint that is not there.
        raise LatentRefError(f"--model {args.model}: {one_line(error)}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_what_is_kept(args)) from None
    if unsaved:
        where = args.output_path or given.get("output_path")
        why = "; ".join(dict.fromkeys(unsaved))
        say(f"{where}: results could not be written ({why}); make room")
    return 1 if unsaved else 0


def _of_file(args: argparse.Namespace) -> dict[str, Any]:
    """The values of the YAML file given by `--config`; the command line overrides them."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    if not args.config:
        return {}
    try:
        return EvaluatorConfig.load_yaml_config(args.config)
    except (ValueError, TypeError, OSError) as error:
        raise LatentRefError(f"--config {args.config}: {' '.join(str(error).split())}") from error


def _what_is_kept(args: argparse.Namespace) -> str:
    cache = getattr(args, "use_cache", None)
    if cache:
        return f"the answers so far are in {cache}_rank*.db; run it again to go on"
    return "nothing is kept; with --use_cache FILE answers are kept as they come"
