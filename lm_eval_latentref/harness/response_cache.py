"""Keeps lm-eval's response cache (`--use_cache`) to the settings it was filled under.

    check_settings(cache_hook, reasoner.settings())

lm-eval looks answers up by the request's text alone, so two settings that share a file would share
answers. The settings are therefore kept in the file, beside the answers. lm-eval also gives each
process a file of its own; what the others' hold is taken over, so that a run may go on with another
number of processes. Deliberately knows nothing of what settings and answers mean.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from lm_eval_latentref.errors import LatentRefError

logger = logging.getLogger(__name__)

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
    file = Path(answers.filename)
    _check_same(file, answers.get(SETTINGS_KEY), now)
    for other in _files_of_other_ranks(file):
        for key, answer in _read(other, now):
            if key not in answers:
                answers[key] = answer
    answers.commit()


def _check_same(file: Path, before: str | None, now: str) -> None:
    if before == now:
        return
    if before is None:
        what = "answers of another model"
    else:
        what = f"answers made with {_differences(json.loads(before), json.loads(now))}"
    raise LatentRefError(
        f"--use_cache: {file} holds {what}; they must not be reused: give another --use_cache path "
        "for these settings, or delete the file"
    )


def _files_of_other_ranks(file: Path) -> list[Path]:
    name = re.fullmatch(r"(.*_rank)\d+\.db", file.name)
    if name is None:
        return []
    siblings = file.parent.glob(f"{_escaped(name[1])}*.db")
    return sorted(
        path
        for path in siblings
        if path.name != file.name and re.fullmatch(re.escape(name[1]) + r"\d+\.db", path.name)
    )


def _read(file: Path, now: str) -> Iterator[tuple[str, Any]]:
    """The answers in another rank's file, which must be of these settings."""
    from sqlitedict import decode

    try:
        # Not read-only: what a killed process left half written has to be rolled back first.
        with closing(sqlite3.connect(f"file:{file}?mode=rw", uri=True)) as connection:
            rows = dict(connection.execute("select key, value from unnamed"))
    except sqlite3.Error as error:
        logger.warning("--use_cache: nothing is taken over from %s (%s)", file, error)
        return
    if SETTINGS_KEY not in rows:
        return  # that rank is only just making it
    _check_same(file, decode(rows.pop(SETTINGS_KEY)), now)
    for key, value in rows.items():
        yield key, decode(value)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name}={before.get(name)} (now {now.get(name)})" for name in names)
