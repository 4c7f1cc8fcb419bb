"""The journal of a sweep: whole lines or none, and errors of one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.sweep_run import Journal, read_journal


def test_a_line_that_was_cut_off_is_dropped_and_written_over(tmp_path):
    path = tmp_path / "folder" / "journal.jsonl"
    with Journal(path) as journal:
        journal.add({"a": 1})
    path.write_bytes(path.read_bytes() + b'{"b": ')
    assert read_journal(path) == [{"a": 1}]
    with Journal(path) as journal:
        journal.add({"c": 3})
    assert read_journal(path) == [{"a": 1}, {"c": 3}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has such a device")
def test_a_full_disk_under_the_journal_is_an_error_of_one_line(tmp_path):
    def fill_up():
        with Journal(tmp_path / "journal.jsonl") as journal:
            journal.add({"a": 1})
            journal._file.close()
            journal._file = open("/dev/full", "ab")  # noqa: SIM115
            journal.add({"b": 2})

    with pytest.raises(LatentRefError, match=r"No space left.*finished work is kept") as error:
        fill_up()
    assert "\n" not in str(error.value)
    assert read_journal(tmp_path / "journal.jsonl") == [{"a": 1}]


@pytest.mark.parametrize("line", [b"not json", b"[1]", b"\xff", b"[" * 5000])
def test_a_damaged_line_is_named_with_its_number(tmp_path, line):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(LatentRefError, match=r"line 2 cannot be read .*; remove it"):
        read_journal(path)
