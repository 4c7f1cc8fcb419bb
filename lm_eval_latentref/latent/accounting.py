"""Measures what a run costs: peak memory, forwards of each model, tokens, seconds in each phase.

    accounting = Accounting({"backbone": backbone, "strong": strong, "weak": weak})
    with accounting.working(), accounting.thinking():
        ...                       # run the models
    accounting.report()           # a dict for the results file

Hooks on the models' decoders count the forwards, so the forwards of every caller count (our loop,
transformers' `generate`, lm-eval), and the thought loop needs no counting code. Counting never
waits for the device: on a GPU, events record the time and are read when `report` is called.

There are four phases. A forward belongs to "encode" if its cache is empty or holds nothing but the
prefix that contexts share. Every later forward belongs to "think" inside `thinking`, and to
"decode", which includes scoring, outside. If a reference reads the context and the first thought
in one forward, that forward belongs to "encode". "load" is the time given to `loaded`.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from lm_eval_latentref.latent.networks import Network

COUNTS = (
    *("contexts_thought_about", "thought_steps", "padding_columns"),
    *("tokens_encoded", "tokens_shared", "tokens_generated"),
)
"""Counters that callers increase; `thought_steps` divided by `contexts_thought_about` is the mean
number of thoughts."""

PHASES = ("load", "encode", "think", "decode")


class Accounting:
    """The cost of one set of models in this process since it was loaded.

    Args:
        networks: the networks by name; they may share a model with different adapters.
    """

    def __init__(self, networks: Mapping[str, Network]) -> None:
        self._names = tuple(networks)
        self._laps = _Laps(next(iter(networks.values())).device)
        self._networks = dict(networks)
        self._hooks = ExitStack()
        self.restart()
        self._depth = 0
        self._phase_of_step, self._num_shared = "decode", 0

    def restart(self) -> None:
        """Set all counters to zero, except the loading time."""
        self._forwards: Counter[str] = Counter(dict.fromkeys(self._names, 0))
        self._columns: Counter[str] = Counter(dict.fromkeys(self._names, 0))
        self._counts = Counter(dict.fromkeys(COUNTS, 0))
        self._laps.restart()

    def count(self, **numbers: int) -> None:
        """Increase the counters with these names, which must be in `COUNTS`."""
        self._counts.update(numbers)

    def loaded(self, seconds: float) -> None:
        """Add to the loading time."""
        self._laps.seconds["load"] += seconds

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count time and forwards inside this block; blocks may be nested."""
        if self._depth == 0:
            for name, network in self._networks.items():
                self._hooks.enter_context(network.before_forward(self._listener(name)))
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._hooks.close()
                self._laps.enter(None)

    @contextmanager
    def thinking(self, num_shared: int = 0) -> Iterator[None]:
        """Assign forwards inside this block to "think", unless they read contexts.

        Args:
            num_shared: the length of the shared prefix; a forward counts as reading contexts if its
                cache holds at most this many columns.
        """
        self._phase_of_step, self._num_shared = "think", num_shared
        try:
            yield
        finally:
            self._phase_of_step = "decode"

    def report(self) -> dict[str, Any]:
        """All counters as JSON values: seconds, bytes and counts.

        `columns_read` is the sum over a model's forwards of rows times columns, with padding.
        `tokens_encoded` is the sum of the lengths of all distinct contexts, and `tokens_shared` the
        part of it that the backbone did not read because it had read the shared prefix before.
        `padding_columns` is the number of columns of contexts, in one model, that hold no token.
        `tokens_generated` does not include EOS. Memory is the peak of the process: resident memory
        on the host, and tensors on each GPU.
        """
        return {
            "peak_memory_bytes": peak_memory(),
            "forwards": dict(self._forwards),
            "columns_read": dict(self._columns),
            **self._counts,
            "seconds": {name: round(self._laps.total(name), 4) for name in PHASES},
        }

    @staticmethod
    def of_all(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One report for several processes: the sum of counts, the maximum of memory and time."""
        combined: dict[str, Any] = {"processes": len(reports)}
        for name, first in reports[0].items():
            values = [report[name] for report in reports]
            combine = max if name in ("peak_memory_bytes", "seconds") else sum
            if isinstance(first, Mapping):
                keys = dict.fromkeys(key for value in values for key in value)
                combined[name] = {
                    key: combine([value.get(key, 0) for value in values]) for key in keys
                }
            else:
                combined[name] = combine(values)
        if num_contexts := combined.get("contexts_thought_about"):
            combined["thoughts_per_context"] = round(combined["thought_steps"] / num_contexts, 4)
        return combined

    def _listener(self, name: str) -> Callable[[int, int], None]:
        def count_forward(num_columns: int, past: int) -> None:
            self._forwards[name] += 1
            self._columns[name] += num_columns
            self._laps.enter("encode" if past <= self._num_shared else self._phase_of_step)

        return count_forward


def peak_memory() -> dict[str, int]:
    """Peak bytes so far of "host" and each "cuda:N"; "host" is missing where it cannot be read."""
    peaks = {f"cuda:{i}": torch.cuda.max_memory_allocated(i) for i in _used_gpus()}
    host = _peak_of_host()
    return peaks if host is None else {"host": host, **peaks}


def restart_peak_memory() -> None:
    """Reset the peaks of `peak_memory` to the memory now in use; for the host on Linux only.

    Objects that the garbage collector has not freed yet count as in use.
    """
    for index in _used_gpus():
        torch.cuda.reset_peak_memory_stats(index)
    try:
        # On Linux, writing 5 sets the recorded peak (VmHWM) to the current resident memory.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_of_host() -> int | None:
    # On Linux getrusage is not used: its value starts at the parent process's peak.
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        return int(match[1]) * 1024 if match else None
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _used_gpus() -> range:
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


class _Laps:
    """A stopwatch that adds up the seconds of each phase; phases do not overlap."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[str, Any, Any]] = []
        self._phase: str | None = None
        self._since: Any = None

    def restart(self) -> None:
        """Set the seconds of every phase except "load" to zero."""
        self._events.clear()
        self.seconds.update((phase, 0.0) for phase in PHASES if phase != "load")

    def enter(self, phase: str | None) -> None:
        """Count time for `phase` from now on; None stops the watch."""
        if phase == self._phase:
            return
        now = self._now()
        if self._phase is not None and self._on_gpu:
            self._events.append((self._phase, self._since, now))
        elif self._phase is not None:
            self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def total(self, phase: str) -> float:
        """The seconds in `phase` so far; waits for the device."""
        for name, start, end in self._events:
            end.synchronize()
            self.seconds[name] += start.elapsed_time(end) / 1000
        self._events = []
        return self.seconds[phase]

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
