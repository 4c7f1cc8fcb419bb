"""Arguments to a plan: which checkpoints a run loads and how it refines, settled before it starts.

    plan, config = plan_run({"memory_rate": 0.3}, pretrained="FOLDER")

Where values meet that come from the user and from latentref.json. Loads nothing, and deliberately
knows no lm-eval.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from lm_eval_latentref.checkpoints.sets import SetPlan, resolve
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig

logger = logging.getLogger(__name__)


def plan_run(
    options: Mapping[str, Any], *, resolved: SetPlan | None = None, **names: Any
) -> tuple[SetPlan, RefinementConfig]:
    """The checkpoints to load, references only if they are used, and the refinement.

    Args:
        options: fields of `RefinementConfig` as given; they win over latentref.json.
        resolved: what `names` stand for, where that is known already.
        names: the arguments of `resolve`.

    Raises LatentRefError for a name that stands for nothing, a value outside its domain, or a
    search without both references; warns of references and thoughts that are not used.
    """
    given = {k: v for k, v in options.items() if v is not None or k == "latent_markers"}
    # lm-eval's command line makes numbers of names such as 100.
    names = {k: v if v is None else str(v) for k, v in names.items()}
    plan = resolved or resolve(**names, explicit=given)
    config = RefinementConfig.parse({**plan.settings, **given})
    _check_references(plan, config)
    if not config.searches and (plan.strong or plan.weak):
        if names.get("strong") or names.get("weak"):
            logger.warning(
                "strong and weak are given but search_step_size=%g and latent_steps=%d: they are "
                "neither loaded nor used",
                config.search_step_size,
                config.latent_steps,
            )
        plan = dataclasses.replace(plan, strong=None, weak=None)
    if config.latent_steps == 0:
        logger.warning("latent_steps=0: nothing is thought; give latent_steps=6, for example")
    for note in plan.notes:
        logger.info("%s", note)
    return plan, config


def _check_references(plan: SetPlan, config: RefinementConfig) -> None:
    missing = [name for name in ("strong", "weak") if getattr(plan, name) is None]
    if config.search_step_size != 0 and missing:
        names = " and ".join(missing)
        raise LatentRefError(
            f"search_step_size={config.search_step_size} needs both references, and {names} is not "
            f"given; give {names}= as well, or search_step_size=0"
        )
