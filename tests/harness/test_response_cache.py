"""Answers in a cache are taken over as they were committed, and under the same settings only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from sqlitedict import SqliteDict

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.response_cache import SETTINGS_KEY, check_settings

SETTINGS = {"latent_steps": 3}
# A cache of one page makes sqlite write to the file before the commit; its journal stays behind.
KILLED_BETWEEN_WRITE_AND_COMMIT = """
import os, pickle, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size=1")
connection.execute("BEGIN")
value = sqlite3.Binary(pickle.dumps("half" * 1000))
connection.execute("UPDATE unnamed SET value = ? WHERE key LIKE 'done%'", (value,))
rows = ((f"late {n}", value) for n in range(50))
connection.executemany("INSERT INTO unnamed VALUES (?, ?)", rows)
os.kill(os.getpid(), signal.SIGKILL)
"""


def opened(path):
    answers = SqliteDict(str(path), autocommit=True)
    return SimpleNamespace(dbdict=answers), answers


def filled(path, settings=SETTINGS):
    hook, answers = opened(path)
    check_settings(hook, settings)
    for number in range(40):
        answers[f"done {number}"] = (-float(number), True)
    answers.close()


def kill_in_a_transaction(path):
    before = path.read_bytes()
    command = [sys.executable, "-c", KILLED_BETWEEN_WRITE_AND_COMMIT, str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert os.path.getsize(f"{path}-journal") > 0
    assert path.read_bytes() != before


@pytest.mark.parametrize("own_rank", [0, 1])
def test_a_write_that_was_not_committed_is_rolled_back_whoever_reads_it(tmp_path, own_rank):
    filled(tmp_path / "cache_rank0.db")
    kill_in_a_transaction(tmp_path / "cache_rank0.db")
    hook, answers = opened(tmp_path / f"cache_rank{own_rank}.db")
    check_settings(hook, SETTINGS)
    found = {key: value for key, value in answers.items() if key != SETTINGS_KEY}
    assert found == {f"done {number}": (-float(number), True) for number in range(40)}
    answers.close()


@pytest.mark.parametrize("own_rank", [0, 1])
def test_answers_of_other_settings_are_refused_whichever_rank_has_them(tmp_path, own_rank):
    filled(tmp_path / "cache_rank0.db", {"latent_steps": 2})
    hook, answers = opened(tmp_path / f"cache_rank{own_rank}.db")
    with pytest.raises(LatentRefError, match=r"latent_steps=2 \(now 3\)"):
        check_settings(hook, SETTINGS)
    answers.close()
