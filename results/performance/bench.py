"""What the scripts of this folder share: options, rounds in turn, counts, profiles.

    args = bench.parse(__doc__, argv, documents=64, batch_size=8)
    rounds = bench.alternate([Side("a", answer_a), Side("b", answer_b)], documents, args)

All sides of a script get the same documents, fresh ones in each round, and take turns at being
first. `workload` has the models and the documents, `pages` what is written.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile
from torch.utils.benchmark import Measurement, TaskSpec, Timer, timer
from workload import SHAPES, device

from lm_eval_latentref.errors import LatentRefError, saving
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.accounting import peak_memory
from lm_eval_latentref.latent.batching import give_back_memory

NUM_WARM_UP = 2
"""Documents that each side answers before the clock runs."""
NUM_CHECKED = 2
"""Documents on which all sides must agree in float32."""
CONTEXT_TOKENS = (
    "--context_tokens",
    {"type": int, "help": "cut prompts to this many tokens on average (default: not)"},
)
PROFILE = ("--profile", {"action": "store_true", "help": "show where our time goes"})


# Options ---------------------------------------------------------------------------------------


def parse(
    description: str | None,
    argv: Sequence[str] | None,
    *extra: tuple[str, Any],
    dtype: str = "bfloat16",
    rounds: int = 3,
    any_model: bool = True,
    **defaults: int,
) -> argparse.Namespace:
    """The options that all scripts have, `defaults` as integers, and `extra` (name, settings).

    Args:
        any_model: whether the script runs the model that the options name, not its own.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"rounds": rounds, **defaults}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    help = f"of the weights, or auto: the faster of float32 and bfloat16 here (default: {dtype})"
    parser.add_argument("--dtype", default=dtype, help=help)
    parser.set_defaults(about=description, pretrained=None, shape=None)
    if any_model:
        parser.add_argument("--pretrained", help="the model (default: SmolLM2-135M-Instruct)")
        parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead")
    clocks = "wall: seconds that pass; cpu: seconds this process computes, where others do too"
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=clocks)
    parser.add_argument("--tiny", action="store_true", help="a tiny model; judges no target")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="and the page beside it")
    for name, settings in extra:
        parser.add_argument(name, **settings)
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        if type(value) is int and value < 1:
            raise LatentRefError(f"{name}={value}: give at least 1")
    if args.tiny:
        args.shape, args.dtype, args.rounds = "tiny", "float32", 1
        for name in defaults:
            setattr(args, name, min(2, getattr(args, name)))
    if args.clock == "cpu" and (device().type != "cpu" or torch.get_num_threads() > 1):
        raise LatentRefError("clock=cpu: only on a CPU and with OMP_NUM_THREADS=1; give clock=wall")
    if args.dtype == "auto":
        args.dtype = faster_dtype()
    if not isinstance(kind := getattr(torch, args.dtype, None), torch.dtype) or (
        not kind.is_floating_point
    ):
        raise LatentRefError(f"dtype={args.dtype}: give a floating-point type such as bfloat16")
    if args.output:
        _check_output(Path(args.output), is_tiny=args.tiny)
    return args


def _check_output(path: Path, *, is_tiny: bool) -> None:
    """Raises LatentRefError if a run could not write its record to `path`."""
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise LatentRefError(f"-o {path} cannot be written; give the name of a file, FILE.json")
    if is_tiny and path.exists() and '"tiny": false' in path.read_text("utf-8", "replace"):
        raise LatentRefError(f"-o {path} is the record of a whole run; give another name")
    if path.suffix != ".json":
        raise LatentRefError(f"-o {path}: the page lies beside it as FILE.md; give FILE.json")


def faster_dtype() -> str:
    """The dtype of the two in which this machine multiplies faster: not all have bfloat16's."""
    took = {}
    for name in ("float32", "bfloat16"):
        left = torch.randn(512, 512, device=device()).to(getattr(torch, name))
        names = {"left": left}
        timing = Timer("left @ left", globals=names, num_threads=torch.get_num_threads())
        took[name] = timing.blocked_autorange(min_run_time=0.5).median
    return min(took, key=took.__getitem__)


def run(main: Callable[[], int]) -> None:
    """Runs a script; a mistake is one line and status 2. SIGTERM lets it clean up, as Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(main())
    except LatentRefError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


# Rounds ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One way of answering documents."""

    name: str
    answer: Callable[[Sequence[Any]], Any]
    most: int | None = None
    """How many of a round's documents it answers, the first ones; None for all."""


@dataclass
class Rounds:
    """By side: seconds a document and answers, round by round."""

    seconds: dict[str, list[float]]
    answers: dict[str, list[Any]]

    def measurement(self, name: str) -> Measurement:
        """Of seconds a document, as torch.utils.benchmark keeps it."""
        spec = TaskSpec("answer(documents)", "", description=name)
        return Measurement(1, self.seconds[name], spec)

    def ratio(self, slow: str, fast: str) -> list[float]:
        """The time of `slow` over that of `fast` in each round."""
        return [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]

    def rows(self) -> list[tuple[str, str, str]]:
        """Of each side: documents a second, and the quartiles' distance relative to the median."""
        return [
            (name, spread([1 / value for value in seconds]), f"{_iqr(self.measurement(name)):.1%}")
            for name, seconds in self.seconds.items()
        ]

    def record(self) -> dict[str, Any]:
        return {"seconds_per_document": self.seconds}


def alternate(sides: Sequence[Side], documents: Sequence[Any], args: Any) -> Rounds:
    """Lets all sides answer the same `args.documents` documents, fresh ones in each round."""
    check_enough(documents, args.rounds * args.documents + NUM_WARM_UP, args)
    names = [side.name for side in sides]
    rounds = Rounds({name: [] for name in names}, {name: [] for name in names})
    for side in sides:
        side.answer(documents[:NUM_WARM_UP])
    for number in range(args.rounds):
        start = NUM_WARM_UP + number * args.documents
        batch = documents[start : start + args.documents]
        for side in sides if number % 2 == 0 else sides[::-1]:
            seconds, answers = timed(partial(side.answer, batch[: side.most]), clock=clock_of(args))
            rounds.seconds[side.name].append(seconds / len(batch[: side.most]))
            rounds.answers[side.name].append(answers)
    return rounds


def check_enough(documents: Sequence[Any], needed: int, args: Any) -> None:
    """Raises LatentRefError if there are fewer documents than all rounds take."""
    if needed > len(documents):
        raise LatentRefError(
            f"rounds={args.rounds} take {needed} documents, there are {len(documents)}; lower "
            "--rounds or the number of documents in each"
        )


def timed(
    call: Callable[..., Any], *args: Any, clock: Callable[[], float] = timer
) -> tuple[float, Any]:
    """Seconds that `call(*args)` takes until the device is done, and what it returns."""
    gc.collect()
    started = clock()  # torch's timer waits for the device
    result = call(*args)
    return clock() - started, result


def clock_of(args: Any) -> Callable[[], float]:
    """The clock that `args` name; a GPU's work and that of several threads need the wall's."""
    return time.process_time if getattr(args, "clock", "wall") == "cpu" else timer


MEBIBYTE = 2**20


def reset_peak() -> None:
    """Begins to record the peak of memory anew; elsewhere than on Linux and CUDA, it does not."""
    gc.collect()
    give_back_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The peak of memory in bytes, on the device or else in this process."""
    peaks = peak_memory()
    return max((value for place, value in peaks.items() if place != "host"), default=peaks["host"])


def _iqr(measurement: Measurement) -> float:
    return float(measurement.iqr / measurement.median)


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def counts(lm: LatentRefLM, work: Callable[[], Any]) -> dict[str, Any]:
    """Thoughts, tokens, forwards and columns of `lm` during one call of `work`."""
    return counted(lm, work)[1]


def counted(lm: LatentRefLM, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What one call of `work` returns, and `counts` during it."""
    before = lm.reasoner.accounting.report()
    result = work()
    after = lm.reasoner.accounting.report()
    numbers = {name: after[name] - before[name] for name in after if isinstance(after[name], int)}
    return result, numbers | {
        kind: {name: after[kind][name] - before[kind][name] for name in after[kind]}
        for kind in ("forwards", "columns_read")
    }


def profile_of(call: Callable[[], Any], num_rows: int = 12) -> str:
    """A table of the operators that take most of the time of `call`."""
    return profile_table(operators_of(call), num_rows)


def profile_table(operators: Sequence[tuple[float, int, str]], num_rows: int = 12) -> str:
    """The longest `operators` as text."""
    total = sum(seconds for seconds, _, _ in operators)
    lines = [
        f"{seconds / total:6.1%}  {num_calls:7d} calls  {name}"
        for seconds, num_calls, name in operators[:num_rows]
    ]
    return "\n".join([f"Where the {total:.1f} s of one profiled batch go:", *lines])


def operators_of(call: Callable[[], Any]) -> list[tuple[float, int, str]]:
    """Seconds in each operator itself during `call`, its calls, its name; longest first."""
    with profile() as profiled:
        call()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    return [(event.self_cpu_time_total / 1e6, event.count, event.key) for event in events]
