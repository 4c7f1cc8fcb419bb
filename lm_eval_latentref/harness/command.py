"""lm-eval's own command line, with the model registered and our tasks on its include path.

    harness.run(["--model", "latentref", "--tasks", "latentref_mathqa_mc", "--limit", "8"])

Works where a .pth file does not (PYTHONPATH, `pip install --target`). Knows lm-eval's command line
and nothing of models: every argument goes to lm-eval as it came.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lm_eval_latentref import _autoload
from lm_eval_latentref.benchmarks.tasks import tasks_path


def run(arguments: Sequence[str]) -> None:
    """`lm_eval run ARGUMENTS`; with no argument lm-eval prints its help and exits.

    A LatentRefError comes through as it is: the caller decides how it is shown.
    """
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    setup_logging()
    _autoload.install()
    command_line = HarnessCLI()
    # lm-eval takes its arguments from here and nowhere else.
    sys.argv = ["lm_eval", "run", *arguments]
    args = command_line.parse_args()
    args.include_path = include_paths(args)
    command_line.execute(args)


def include_paths(args: argparse.Namespace) -> list[str]:
    """Our task folder, then the user's, whose tasks win over ours of the same name.

    Reads `include_path` of the YAML file given by `--config` too, since lm-eval lets the command
    line's value replace that one.
    """
    from lm_eval.config.evaluate_config import EvaluatorConfig

    given = args.include_path
    if given is None and args.config:
        given = EvaluatorConfig.load_yaml_config(args.config).get("include_path")
    users = [] if given is None else [given] if isinstance(given, str) else list(given)
    ours = str(tasks_path())
    return [ours, *(path for path in users if path != ours)]
