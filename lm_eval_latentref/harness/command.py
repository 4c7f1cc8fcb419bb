"""`latentref run`: lm-eval's command line with our model registered and our tasks included.

    run(["--tasks", "latentref_mathqa_mc", "--limit", "8"])

It also works in installations without .pth files (PYTHONPATH, `pip install --target`). `--model`
defaults to latentref. `door` checks all arguments, which then go to lm-eval unchanged.
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

    Returns 0, or 1 if a results file could not be written. Raises LatentRefError on a mistake in
    the arguments.
    """
    from lm_eval.utils import setup_logging

    from lm_eval_latentref.harness import door
    from lm_eval_latentref.harness.lm_eval_seams import (
        log_as_lm_eval,
        parse_run,
        recording_unsaved_files,
    )

    setup_logging()
    _autoload.install()
    log_as_lm_eval()
    try:
        args, execute = parse_run(arguments)
    except ValueError as error:  # an argument is not valid JSON
        raise LatentRefError(one_line(error)) from error
    defaults = _read_config_file(args)
    args.model = args.model or defaults.get("model") or _autoload.MODEL_NAME
    args.include_path = include_paths(args.include_path or defaults.get("include_path"))
    try:
        door.check(args)
        with recording_unsaved_files() as unsaved:
            execute(args)
    except sqlite3.Error as error:
        raise LatentRefError(
            f"--use_cache: {args.use_cache or defaults.get('use_cache')}_rank*.db cannot be "
            f"written ({error}); make room, or name another place, and give the same command "
            "again: the answers so far are kept"
        ) from error
    except OSError as error:
        if args.model == _autoload.MODEL_NAME:
            raise
        # transformers raises OSError if a checkpoint does not exist.
        raise LatentRefError(f"--model {args.model}: {one_line(error)}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_interrupted_message(args)) from None
    if unsaved:
        path = args.output_path or defaults.get("output_path")
        reasons = "; ".join(dict.fromkeys(unsaved))
        say(f"{path}: results could not be written ({reasons}); make room")
    return 1 if unsaved else 0


def _read_config_file(args: argparse.Namespace) -> dict[str, Any]:
    """The values in the YAML file given by `--config`; the command line overrides them."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    if not args.config:
        return {}
    try:
        return EvaluatorConfig.load_yaml_config(args.config)
    except (ValueError, TypeError, OSError) as error:
        raise LatentRefError(f"--config {args.config}: {' '.join(str(error).split())}") from error


def _interrupted_message(args: argparse.Namespace) -> str:
    cache = getattr(args, "use_cache", None)
    if cache:
        return f"the answers so far are in {cache}_rank*.db; run the command again to continue"
    return "nothing is kept; with --use_cache FILE every answer is kept"
