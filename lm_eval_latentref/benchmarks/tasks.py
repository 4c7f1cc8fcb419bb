"""Where the lm-eval task files are.

    lm_eval --include_path "$(latentref tasks-path)" --tasks latentref_mathqa_mc ...

Knows the folder's two places and nothing of what is in it.
"""

from __future__ import annotations

from pathlib import Path

from lm_eval_latentref.errors import LatentRefError


def tasks_path() -> Path:
    """The folder of the task YAML files: inside an installed wheel, else beside the checkout.

    Raises:
        LatentRefError: it is in neither place, so the installation is incomplete.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "task_configs", package.parent / "task_configs"):
        if (folder / "utils.py").is_file():
            return folder
    raise LatentRefError(
        f"no task_configs folder in {package} or beside it: reinstall lm-eval-latentref"
    )
