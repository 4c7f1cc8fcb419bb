"""What a set of checkpoints learnt from, as far as they tell: the record of all of them together.

    splits, questions = learnt_from(pretrained="out/mine", strong="hops-small/strong")
    "mathqa train" in splits

Read from each latentref.json and the hashes it names. Deliberately opens no model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lm_eval_latentref.checkpoints.questions import Hashes, hash_questions, read_hashes
from lm_eval_latentref.checkpoints.sets import SetPlan, resolve


def learnt_from(*, resolved: SetPlan | None = None, **names: Any) -> tuple[frozenset[str], Hashes]:
    """The splits and the questions' hashes; `names` are the arguments of `resolve`.

    `resolved` is what they stand for, where that is known already.

    Raises LatentRefError for a name that stands for nothing, and for hashes that cannot be read.
    """
    plan = resolved or resolve(**names)
    # References that latentref.json names were trained together with the backbone.
    given = [
        names[role]
        for role, source in (("strong", plan.strong), ("weak", plan.weak))
        if names.get(role) is not None and source is not None and source.weights is None
    ]
    revision = names.get("revision")
    plans = [plan, *(resolve(pretrained=name, revision=revision) for name in given)]
    files = sorted({one.trained_questions for one in plans if one.trained_questions is not None})
    questions = np.concatenate([hash_questions([]), *(read_hashes(file) for file in files)])
    return frozenset(split for one in plans for split in one.trained_on), np.unique(questions)
