"""Seconds from the command to its end with one document: the default set, against `--model hf`.

    python results/performance/starting.py -o results/performance/starting.json

`lm_eval --model latentref` opens the packaged set, whose base is a GGUF file that its first start
unpacks into a cache folder, made for this script. `--model hf` opens the same base, saved as a
plain folder. Both answer one question of a task of this script's own. Then the seconds that
importing this package takes in a process that has imported what a run of `--model hf` does, without
Python's search for garbage, which goes through lm-eval's objects and falls to any import. Judged
are the processor's seconds, with one thread: other work on the machine changes them less. They are
judged from the moment when lm-eval looks the model up. What it does before is the same for every
model, and differs by what the machine does besides.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench
import pages
import phases

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.checkpoints.packaged import BASE_NAME, DEFAULT_SET
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.lm_eval_seams import parse_run

HF, OURS, FIRST = "--model hf", "--model latentref", "--model latentref, first start"
SECONDS, PROCESSOR, ENDING = "seconds", "of the processor", "the end of the process"
MOST_MORE, MOST_IMPORTING = 1.5, 0.3
"""Seconds."""

TASK = """
task: one_question
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: 0
doc_to_choice: ["a", "b"]
"""

IMPORTING = """
import gc, json, sys, time
import lm_eval.evaluator
from lm_eval.models.huggingface import HFLM
HFLM(sys.argv[1], device="cpu")
gc.disable()
before, started = set(sys.modules), time.process_time()
import lm_eval_latentref.harness.model
seconds = time.process_time() - started
print(json.dumps([seconds, sorted(set(sys.modules) - before)]))
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(__doc__, argv, rounds=5)
    call = _here if args.tiny else in_fresh_process
    with TemporaryDirectory() as folder:
        plain = _write(Path(folder), args)
        options = ["--tasks", "one_question", "--include_path", folder, "--batch_size", "1"]
        options += ["--device", "cpu", "--limit", "1", "--model_args"]
        commands = {
            HF: ["--model", "hf", *options, f"pretrained={plain}"],
            OURS: ["--model", "latentref", *options, f"pretrained={_set(args)}"],
        }
        starts = {FIRST: [start(call, commands[OURS], folder)], HF: [], OURS: []}
        for number in range(args.rounds):
            for name in (HF, OURS) if number % 2 == 0 else (OURS, HF):
                starts[name].append(start(call, commands[name], folder))
        imports = [] if args.tiny else [importing(plain)[0] for _ in range(args.rounds)]
    pairs = list(zip(starts[HF], starts[OURS], strict=True))
    report = pages.Report(
        name="starting",
        header=("median (range)", "seconds", "of the processor"),
        rows=[
            (name, *(bench.spread([each[kind] for each in many]) for kind in (SECONDS, PROCESSOR)))
            for name, many in starts.items()
        ],
        record={"starts": starts, "imports": imports},
        profile="" if args.tiny else _profile(starts),
    )
    report.judge(
        "seconds of the processor more than --model hf, from the look-up of the model on",
        [_own(ours) - _own(hf) for hf, ours in pairs],
        at_most=MOST_MORE,
        tiny=args.tiny,
    )
    report.judge(
        "seconds of the processor more than --model hf, what is the same for both included",
        [ours[PROCESSOR] - hf[PROCESSOR] for hf, ours in pairs],
    )
    if imports:
        report.judge("seconds of imports", imports, at_most=MOST_IMPORTING)
    return report.finish(args)


def start(call: Any, command: Sequence[str], folder: str) -> dict[str, float]:
    """Seconds of a start, those of the processor, child processes included, and those by phase."""
    before = os.times()
    seconds, by_phase = bench.timed(call, command, folder)
    processor = sum(os.times()[:4]) - sum(before[:4])
    ending = {ENDING: processor - sum(by_phase.values())}
    return {SECONDS: seconds, PROCESSOR: processor, **by_phase, **ending}


def _own(started: Mapping[str, float]) -> float:
    """The processor's seconds from the look-up of the model on."""
    return started[PROCESSOR] - started.get(phases.BEFORE, 0.0)


def _profile(starts: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Median seconds of the processor in each phase, and how many more there are."""
    names = dict.fromkeys(name for each in starts[OURS] for name in each)
    lines = ["Seconds of the processor, medians by phase:   hf  latentref   more"]
    for name in [name for name in names if name not in (SECONDS, PROCESSOR)]:
        hf, ours = (statistics.median(each.get(name, 0) for each in starts[k]) for k in (HF, OURS))
        lines.append(f"{name:42}{hf:6.2f}     {ours:6.2f} {ours - hf:6.2f}")
    return "\n".join(lines)


def in_fresh_process(command: Sequence[str], folder: str) -> dict[str, float]:
    """Runs `lm_eval` with these arguments and a cache in `folder`; the seconds of its phases."""
    environment = {**os.environ, "HF_HOME": f"{folder}/cache", "HF_HUB_OFFLINE": "1"}
    file = Path(folder, "phases.json")
    _run([str(Path(phases.__file__)), str(file), *command], environment)
    return json.loads(file.read_text(encoding="utf-8"))


def _here(command: Sequence[str], folder: str) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        given, execute = parse_run(command)
        execute(given)
    return {}


def importing(plain: str) -> tuple[float, list[str]]:
    """Seconds of importing this package beside `--model hf`, and the modules that come with it."""
    seconds, modules = json.loads(_run(["-c", IMPORTING, plain], os.environ).splitlines()[-1])
    return seconds, modules


def _run(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    # A user's second start finds compiled modules.
    own = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run([sys.executable, *arguments], env=own, capture_output=True, text=True)
    if done.returncode:
        raise LatentRefError(f"lm_eval failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def _set(args: Any) -> str:
    return "graph-small" if args.tiny else DEFAULT_SET


def _write(folder: Path, args: Any) -> str:
    """Writes the task, and the base of the set as a plain folder, whose name is returned."""
    (folder / "one.json").write_text(json.dumps([{"question": "Question: a or b?\n"}]))
    (folder / "one.yaml").write_text(TASK.format(file=folder / "one.json"))
    loaded = load("graph-small" if args.tiny else BASE_NAME, latent_steps=0).loaded
    loaded.backbone.model.save_pretrained(folder / "plain")
    loaded.tokenizer.save_pretrained(folder / "plain")
    return str(folder / "plain")


if __name__ == "__main__":
    bench.run(main)
