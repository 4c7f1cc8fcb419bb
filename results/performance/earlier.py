"""Refined thoughts now and at an earlier commit: in one run, in turn, on the same questions.

    python results/performance/earlier.py --clock cpu -o results/performance/earlier.json

Each version answers in a process of its own, which loads the models once; the earlier version is
checked out into a temporary folder, which needs the repository's history. Two kinds of models, each
with 16 rows in a batch and with one: `copies`, random weights in GPT-2's shape in float32, whose
references are copies with noise, and `adapters`, the packaged set of three adapters on one base.
Questions of 62 tokens on average, six thoughts, up to 16 tokens. The target: no work takes longer
than at the earlier commit.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import bench
import pages
import workload

from lm_eval_latentref.checkpoints.packaged import DEFAULT_SET, PACKAGED_MODELS
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.model import LatentRefLM

NOW, EARLIER = "now", "earlier"
ROOT = Path(__file__).parents[2]
KINDS = {"copies": workload.GPT2, "adapters": None}
"""By name: the shape of random weights; None: the packaged set."""
FEWER = {16: 1, 1: 4}
"""By batch size: how many times fewer documents are answered in a round."""
CONTEXT_TOKENS, LEAST_EQUAL = 62, 0.95
"""Of the texts in float32, where near-ties fall either way."""
STEP_SIZE = 288.0
"""Of the packaged set: half its width."""
COMMIT = ("--commit", {"default": "98241f6", "help": "the earlier version (default: 98241f6)"})


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(__doc__, argv, COMMIT, dtype="auto", rounds=4, documents=16, any_model=False)
    kinds = {"copies": "tiny"} if args.tiny else KINDS
    report = pages.Report(
        name="earlier",
        header=("", "", "documents/s: median (range)", "IQR"),
        rows=[],
        record={"works": {}, "commit": args.commit},
    )
    with checked_out(args) as tree:
        for kind, shape in kinds.items():
            for batch_size, fewer in FEWER.items():
                given = {"shape": shape, "batch_size": batch_size}
                given["documents"] = max(1, args.documents // fewer)
                work = argparse.Namespace(**{**vars(args), **given})
                if shape is not None:
                    work.dtype = "float32"
                _show(f"{kind}, batch size {batch_size}", timed(tree, work), report, work)
    report.remarks.append(f"Earlier is commit {args.commit}.")
    return report.finish(args)


def timed(tree: Path, work: Any) -> bench.Rounds:
    """Both versions in turn, each timed by itself."""
    rounds = bench.Rounds({NOW: [], EARLIER: []}, {NOW: [], EARLIER: []})
    asked = questions(work)
    with ExitStack() as running:
        versions = {
            name: running.enter_context(version(folder, work))
            for name, folder in ((NOW, ROOT), (EARLIER, tree))
        }
        for number in range(work.rounds + 1):
            batch = asked[number * work.documents : (number + 1) * work.documents]
            for name in (NOW, EARLIER) if number % 2 == 0 else (EARLIER, NOW):
                seconds, texts = answered(versions[name], batch)
                if number:  # the first round warms up
                    rounds.seconds[name].append(seconds / len(batch))
                    rounds.answers[name].append(texts)
    return rounds


def questions(work: Any) -> list[str]:
    tokenizer: Any = workload.byte_tokenizer()
    if work.shape is None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(PACKAGED_MODELS / DEFAULT_SET)
    reader: Any = SimpleNamespace(tokenizer=tokenizer, tok_encode=tokenizer.encode)
    needed = (work.rounds + 1) * work.documents
    prompts = workload.prosqa(needed, work.tiny)
    bench.check_enough(prompts, needed, work)
    return workload.shortened(reader, prompts, CONTEXT_TOKENS)


def _show(name: str, rounds: bench.Rounds, report: pages.Report, work: Any) -> None:
    """Adds the rows and the verdicts of one kind of work."""
    texts = {side: [*chain.from_iterable(made)] for side, made in rounds.answers.items()}
    num_equal = sum(a == b for a, b in zip(texts[NOW], texts[EARLIER], strict=True))
    num_texts = len(texts[NOW])
    report.record["works"][name] = {**rounds.record(), "texts": [num_equal, num_texts]}
    report.rows = [*report.rows, *((name, *row) for row in rounds.rows())]
    ratio = rounds.ratio(NOW, EARLIER)
    report.judge(f"{name}: time of {NOW} / {EARLIER}", ratio, at_most=1.0, tiny=work.tiny)
    report.remarks.append(f"{name}: {num_equal} of {num_texts} texts are equal ({work.dtype}).")
    enough = work.dtype != "float32" or num_equal >= LEAST_EQUAL * num_texts
    report.check(enough, f"{name}: only {num_equal} of {num_texts} texts are equal")


# Versions --------------------------------------------------------------------------------------


@contextmanager
def checked_out(args: Any) -> Iterator[Path]:
    """A folder with the earlier version; with `tiny`, this one."""
    if args.tiny:
        yield ROOT
        return
    git = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=False)
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "earlier"
        try:
            made = git(["git", "worktree", "add", "--detach", "--", str(tree), args.commit])
            made.check_returncode()
        except (OSError, subprocess.CalledProcessError) as error:  # OSError: git is not installed
            complaint = " ".join((getattr(error, "stderr", None) or str(error)).split())
            raise LatentRefError(
                f"--commit {args.commit}: git cannot check it out ({complaint}); give a commit of "
                "this repository, with its history at hand"
            ) from error
        try:
            yield tree
        finally:
            git(["git", "worktree", "remove", "--force", str(tree)])


@contextmanager
def version(tree: Path, work: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that runs the package in `tree`."""
    command = [sys.executable, __file__, "answer", json.dumps(vars(work))]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    # In a session of its own, it does not get the terminal's Ctrl-C beside our signal.
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.communicate()


def answered(process: subprocess.Popen[str], batch: Sequence[str]) -> tuple[float, list[str]]:
    """The seconds and the texts of a version's process."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # it may have ended already
        process.stdin.write(json.dumps(batch) + "\n")
        process.stdin.flush()
    if not (line := process.stdout.readline()):
        raise LatentRefError("a version ended before it answered; its error is above")
    seconds, texts = json.loads(line)
    return seconds, texts


def answer(work: Any) -> None:
    """What the process of a version does: answers each line of questions with a line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # temporary folders go away
    lines, sys.stdout = sys.stdout, sys.stderr
    lm = refining(work)
    for line in sys.stdin:
        batch = json.loads(line)
        timing = bench.timed(partial(workload.write, lm, batch), clock=bench.clock_of(work))
        print(json.dumps(timing), file=lines, flush=True)


def refining(work: Any) -> Any:
    """The model class with both refinements."""
    if work.shape is not None:
        lm = workload.load_lm(work)
        references = (workload.perturbed(lm.model, seed) for seed in (1, 2))
        return workload.thinking(lm, workload.refined(lm.model.config.hidden_size), *references)
    return LatentRefLM(
        DEFAULT_SET,
        dtype=work.dtype,
        device=str(workload.device()),
        batch_size=work.batch_size,
        latent_steps=workload.LATENT_STEPS,
        memory_rate=workload.MEMORY_RATE,
        search_step_size=STEP_SIZE,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["answer"]:
        answer(argparse.Namespace(**json.loads(sys.argv[2])))
    else:
        bench.run(main)
