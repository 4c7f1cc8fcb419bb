"""Keeps lm-eval's response cache (`--use_cache`) to the settings it was filled under.

    check_settings(cache_hook, reasoner.settings())

lm-eval looks answers up by the request's text alone, so two settings that share a file would share
answers. The settings are therefore kept in the file, beside the answers. Deliberately knows nothing
of what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lm_eval_latentref.errors import LatentRefError

SETTINGS_KEY = "latentref settings"


def check_settings(cache_hook: Any, settings: Mapping[str, Any]) -> None:
    """Mark an empty cache with `settings`; raise LatentRefError if it was filled under others.

    Args:
        cache_hook: lm-eval's `CacheHook`; without a file behind it nothing is done.
        settings: whatever decides the answers, as JSON values.
    """
    answers = cache_hook.dbdict
    if answers is None:
        return
    now = json.dumps(settings, sort_keys=True)
    if len(answers) == 0:
        answers[SETTINGS_KEY] = now
        answers.commit()
        return
    before = answers.get(SETTINGS_KEY)
    if before == now:
        return
    file = getattr(answers, "filename", "the cache")
    if before is None:
        what = "answers of another model"
    else:
        what = f"answers made with {_differences(json.loads(before), json.loads(now))}"
    raise LatentRefError(
        f"--use_cache: {file} holds {what}; they must not be reused: give another --use_cache path "
        "for these settings, or delete the file"
    )


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name}={before.get(name)} (now {now.get(name)})" for name in names)
