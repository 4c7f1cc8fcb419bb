"""What the `latentref` command writes to a terminal, a pipe and a file."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from lm_eval_latentref import cli
from lm_eval_latentref.cli import main
from lm_eval_latentref.errors import LatentRefError


def test_a_reader_that_has_read_enough_ends_a_command_quietly():
    code = (
        "import sys; from lm_eval_latentref import cli\n"
        "cli.tasks_path = lambda args: [print('x' * 100) for _ in range(10000)] and 0\n"
        "sys.exit(cli.main(['tasks-path']))"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    writer.stdout.readline()
    writer.stdout.close()
    assert (writer.wait(), writer.stderr.read()) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("stdout", "status", "said"),
    [(">&-", 0, b""), ("> /dev/full", 2, b"stdout cannot be written (No space left on device)")],
)
def test_a_stdout_that_is_closed_or_full_ends_in_no_traceback(stdout, status, said):
    command = f"{sys.executable} -m lm_eval_latentref tasks-path {stdout}"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, check=False)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert done.stderr.count(b"\n") == (1 if said else 0)


def test_nothing_reaches_the_terminal_with_control_characters(monkeypatch, capsys):
    """Prints, log lines and warnings of any package, and errors; a line of ours stays one line."""

    def hostile(args):
        print("out \x1b[2J\u202e")
        logging.getLogger("lm_eval_latentref.x").warning("tuned on %s", "\x1b]0;a\x07\nb")
        logging.getLogger("peft").warning("of peft\n\x9b31m")
        logging.getLogger("peft").warning("too few %s %s", "\x1b")
        warnings.warn("renamed from '\x1b[8m'", stacklevel=1)
        raise LatentRefError("folder \x1b[8m")

    monkeypatch.setattr(cli, "tasks_path", hostile)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    handler = logging.StreamHandler(sys.stdout)
    monkeypatch.setattr(logging.getLogger("lm_eval_latentref"), "handlers", [handler])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["tasks-path"]) == 2
    out, err = capsys.readouterr()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out + err)
    assert out == "out  [2J \ntuned on  ]0;a  b\n"
    assert err == "folder  [8m\n"
