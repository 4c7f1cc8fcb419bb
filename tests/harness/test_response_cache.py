"""Cached answers are reused as they were committed, and only for the same settings."""

from __future__ import annotations

import collections
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest
from sqlitedict import SqliteDict

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness import response_cache
from lm_eval_latentref.harness.response_cache import SETTINGS_KEY, check_files, check_settings

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
    actual = {key: value for key, value in answers.items() if key != SETTINGS_KEY}
    assert actual == {f"done {number}": (-float(number), True) for number in range(40)}
    answers.close()


@pytest.mark.parametrize("own_rank", [0, 1])
def test_answers_of_other_settings_are_refused_whichever_rank_has_them(tmp_path, own_rank):
    filled(tmp_path / "cache_rank0.db", {"latent_steps": 2})
    hook, answers = opened(tmp_path / f"cache_rank{own_rank}.db")
    with pytest.raises(LatentRefError, match=r"latent_steps=2 \(now 3\)"):
        check_settings(hook, SETTINGS)
    answers.close()


class Planted:
    """An object whose pickle creates a file when Python's unpickler loads it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def planted(path, value):
    filled(path)
    with sqlite3.connect(path) as connection:
        row = ("planted", sqlite3.Binary(value))
        connection.execute("INSERT INTO unnamed VALUES (?, ?)", row)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": 1},
        b"bytes",
        {1},
        1j,
        [(1.0, {"deep": 1})],
        collections.OrderedDict(a=1),
        SimpleNamespace(a=1),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_value_that_is_no_answer_is_refused_in_any_file(tmp_path, value, rank):
    planted(tmp_path / f"cache_rank{rank}.db", pickle.dumps(value))
    hook, answers = opened(tmp_path / "cache_rank0.db")
    with pytest.raises(LatentRefError, match=rf"cache_rank{rank}\.db .* delete it"):
        check_settings(hook, SETTINGS)
    answers.close()


@pytest.mark.parametrize("rank", [0, 1])
def test_nothing_planted_in_a_cache_is_run(tmp_path, rank):
    planted(tmp_path / f"cache_rank{rank}.db", pickle.dumps(Planted(tmp_path / "run")))
    with pytest.raises(LatentRefError, match=r"mkdir.* delete it"):
        check_files(str(tmp_path / "cache"))
    hook, answers = opened(tmp_path / "cache_rank0.db")
    with pytest.raises(LatentRefError, match=r"mkdir.* delete it"):
        check_settings(hook, SETTINGS)
    answers.close()
    assert not (tmp_path / "run").exists()


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i, i FROM n"


@pytest.mark.parametrize("kind", ["view", "trigger"])
def test_a_cache_that_would_compute_without_end_is_refused(tmp_path, kind):
    path = tmp_path / "cache_rank1.db"
    if kind == "trigger":
        filled(path)
    with sqlite3.connect(path) as connection:
        if kind == "view":
            connection.execute(f"CREATE VIEW unnamed (key, value) AS {ENDLESS}")
        else:
            connection.execute("CREATE TABLE t (a, b)")
            what = f"BEGIN INSERT INTO t {ENDLESS}; END"
            connection.execute(f"CREATE TRIGGER endless AFTER INSERT ON unnamed {what}")
    with pytest.raises(LatentRefError, match=r"more than the table .* delete it"):
        check_files(str(tmp_path / "cache"))


def test_a_value_that_would_take_all_memory_or_time_is_refused(tmp_path):
    doubled = (1.0,)
    for _ in range(60):
        doubled = (doubled, doubled)
    large_index = b"\x80\x04Nr\xff\xff\xff\x7f."
    for number, value in enumerate((pickle.dumps(doubled), large_index)):
        planted(tmp_path / f"{number}_rank1.db", value)
        with pytest.raises(LatentRefError, match="delete it"):
            check_files(str(tmp_path / str(number)))


def test_answers_of_every_plain_kind_are_read(tmp_path):
    values = [1, -0.5, "text", True, (-1.5, False), [1, "a", (2.0, [True])]]
    for number, value in enumerate(values):
        path = tmp_path / f"{number}_rank1.db"
        planted(path, pickle.dumps(value))
        assert response_cache._read(path)["planted"] == value
        assert check_files(str(tmp_path / str(number))) is None


@pytest.mark.parametrize("kind", ["cut", "foreign", "text", "empty pickle", "cut pickle"])
def test_a_file_that_is_cut_or_foreign_is_refused(tmp_path, kind):
    path = tmp_path / "cache_rank0.db"
    if kind == "cut":
        filled(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 + 100])
    elif kind == "foreign":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE bookmarks (url TEXT)")
    elif kind == "text":
        path.write_text("no database\n" * 100)
    else:
        planted(path, pickle.dumps((1.0, True))[: 3 if kind == "cut pickle" else 0])
    with pytest.raises(LatentRefError) as error:
        check_files(str(tmp_path / "cache"))
    assert str(path) in str(error.value)
    assert "delete it" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cache_that_is_only_being_made_is_none_yet(tmp_path):
    (tmp_path / "cache_rank0.db").touch()
    (tmp_path / "cache_rank1.txt").write_text("not ours")
    for name in ("cache", "nowhere/cache"):
        assert check_files(str(tmp_path / name)) is None
