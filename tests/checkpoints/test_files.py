"""Every problem with a file becomes an error of one line that names the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lm_eval_latentref.checkpoints.files import (
    holding,
    parse_json,
    read_json,
    read_json_lines,
    read_json_object,
    read_yaml,
    reading,
    replacing,
    write_text,
)
from lm_eval_latentref.errors import LatentRefError, printable

DAMAGED = {
    "no UTF-8": (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
    "cut": (b'{"a": 1', "delimiter"),
    "empty": (b"", "Expecting value"),
    "nested": (b"[" * 5000 + b"]" * 5000, "nested too deeply"),
    "long number": (b"1" * 5000, "digit"),
    "NaN": (b'{"a": NaN}', "NaN is not a JSON number"),
    "Infinity": (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
    "too large": (b'{"a": 1e999}', "too large"),
    "lone surrogate": (b'{"a": "\\ud800"}', "surrogate"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_json_is_named_in_one_line(tmp_path, kind):
    content, reason = DAMAGED[kind]
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(LatentRefError, match=reason) as caught:
        read_json(path, "replace it")
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith("; replace it")
    assert "\n" not in message


@pytest.mark.parametrize("kind", sorted(DAMAGED.keys() - {"empty"}))
def test_a_damaged_line_is_named_with_its_number(tmp_path, kind):
    content, reason = DAMAGED[kind]
    path = tmp_path / "file.jsonl"
    path.write_bytes(b'{"good": 1}\n\n' + content + b"\n")
    lines = read_json_lines(path)
    assert next(lines) == (1, {"good": 1})
    with pytest.raises(LatentRefError, match=f"line 3 .*{reason}"):
        next(lines)


def test_whole_json_comes_back_as_it_was(tmp_path):
    value = {"text": "é\n\U0001f600", "numbers": [1, -2.5, 10**30, 1e-300], "null": None}
    path = tmp_path / "file.json"
    write_text(path, json.dumps(value))
    assert read_json_object(path) == value
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a: [", "cannot be read"), ("- 1", "KEY: VALUE"), ("1: 2", "key 1 is not text"), ("", "KEY")],
)
def test_yaml_that_is_no_mapping_of_texts_is_refused(tmp_path, text, reason):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(LatentRefError, match=reason):
        read_yaml(path)


@pytest.mark.parametrize("make", ["folder", "loop", "missing"])
def test_what_is_no_file_is_named(tmp_path, make):
    path = tmp_path / "file.json"
    if make == "folder":
        path.mkdir()
    elif make == "loop":
        path.symlink_to(path)
    with pytest.raises(LatentRefError, match=r"file\.json cannot be read"):
        read_json(path)


def test_a_panic_of_a_parser_is_one_line_and_ctrl_c_is_not():
    class PanicException(BaseException):
        pass

    with pytest.raises(LatentRefError, match="file cannot be read"), reading("file"):
        raise PanicException("index out of bounds")
    with pytest.raises(KeyboardInterrupt), reading("file"):
        raise KeyboardInterrupt


def test_a_crash_while_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as temporary:
        temporary.write_bytes(b"half" + "\ud800".encode())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_is_held_by_one_process_and_free_after_its_death(tmp_path):
    code = (
        "import sys, time; from lm_eval_latentref.checkpoints.files import holding\n"
        "with holding(sys.argv[1], 'latentref train'): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        message = f"in use by latentref train, process {other.pid} on .*; wait"
        with pytest.raises(LatentRefError, match=message), holding(tmp_path, "latentref sweep"):
            pass
    finally:
        other.kill()
        other.wait()
    with holding(tmp_path, "latentref sweep"):
        pass


def test_text_of_a_file_reaches_a_terminal_without_control_characters():
    assert printable("a\x1b[31mred\x07\r\nb\u202e c é") == "a [31mred   b  c é"
    assert printable("\ud800") == "?"
