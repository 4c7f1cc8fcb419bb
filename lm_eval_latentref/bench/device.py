"""How much of a machine the method uses: phase by phase, against rates measured in the same run.

    latentref bench device --models smollm2-135m-base,llama-3.2-3b --batch_size 64 --rounds 5

Six thoughts refined by both references, then 16 tokens, on a fresh batch of ProsQA questions every
round. For encoding, thinking and decoding: seconds, forwards, and the fractions of the machine's
matrix rate and of its memory's, of which the larger says what bounds the phase, or that neither
does. Without --models a GPU gets all three of the large ones, a CPU a tiny one.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lm_eval_latentref.bench.ceilings import Peaks, measure_peaks
from lm_eval_latentref.bench.report import Report, Spread, environment, timed_call
from lm_eval_latentref.bench.subjects import ADAPTERS, build, check_names, questions
from lm_eval_latentref.bench.workload import PHASES, Meter, Work
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.accounting import peak_memory
from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.reasoner import Reasoner

MODELS = {"cuda": f"{ADAPTERS},qwen2.5-1.5b,llama-3.2-3b", "cpu": "tiny"}
BATCH_SIZE = {"cuda": 64, "cpu": 4}
NEW_TOKENS = 16
LOW = 0.3
"""A phase that reaches less of both rates is bound by neither."""

HEADER = (
    *("model", "phase", "seconds: median (range)", "forwards", "ms a forward"),
    *("of matrix rate", "of memory rate", "bound by"),
)


@dataclass(frozen=True)
class Round:
    """What one batch took."""

    seconds: float
    phases: dict[str, float]
    work: dict[str, Work]


def run(
    *,
    rounds: int = 3,
    batch_size: int | None = None,
    dtype: str = "bfloat16",
    models: str | None = None,
    pretrained: str | None = None,
) -> Report:
    """Documents a second of each model, and what each phase reaches of the machine's rates.

    Args:
        models: names with commas between.
        pretrained: the base of the adapters in place of the default weights.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = (models or MODELS[device.type]).split(",")
    check_names(names)
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise LatentRefError(f"dtype={dtype}: give a floating-point type such as bfloat16")
    num_rows = BATCH_SIZE[device.type] if batch_size is None else batch_size
    if rounds < 1 or num_rows < 1:
        raise LatentRefError(f"rounds={rounds}, batch_size={num_rows}; give at least 1 each")
    peaks = measure_peaks(device, kind)
    found = {}
    for name in names:
        _forget_memory()
        reasoner = build(name, device=device, dtype=dtype, pretrained=pretrained)
        found[name] = summary(measure(reasoner, rounds, num_rows), num_rows, peaks)
        found[name]["model"] = reasoner.loaded.backbone.identity
        del reasoner
    return Report(
        bench="device",
        header=HEADER,
        rows=[row for name in names for row in _rows(name, found[name])],
        remarks=_remarks(peaks, dtype, found),
        record={
            "models": found,
            "peaks": vars(peaks),
            **{"dtype": dtype, "batch_size": num_rows, "rounds": rounds},
            **{"new_tokens": NEW_TOKENS, "bound_by_neither_below": LOW},
            **environment(device),
        },
    )


def measure(reasoner: Reasoner, rounds: int, num_rows: int) -> list[Round]:
    """`rounds` batches of fresh questions, after one that nobody times."""
    contexts = list(dict.fromkeys(questions(reasoner, (rounds + 1) * num_rows + num_rows)))
    meter = Meter(reasoner)
    found = []
    for number in range(rounds + 1):
        batch = contexts[number * num_rows : (number + 1) * num_rows]
        meter.phases = {name: Work() for name in PHASES}
        before = reasoner.accounting.report()["seconds"]
        seconds, _ = timed_call(answer, reasoner, meter, batch)
        after = reasoner.accounting.report()["seconds"]
        phases = {name: after[name] - before[name] for name in PHASES}
        found.append(Round(seconds, phases, meter.phases))
    return found[1:]


def answer(reasoner: Reasoner, meter: Meter, contexts: Sequence[Tokens]) -> None:
    """Think about `contexts` and decode, as `Reasoner.ask` does."""
    with torch.no_grad(), reasoner.accounting.working(), meter.batch(contexts):
        thoughts = reasoner.think(contexts)
        inputs = reasoner.generation_inputs(contexts, thoughts)
        meter.decoding()
        reasoner.backbone.causal_lm.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1, pad_token_id=0
        )


def summary(found: Sequence[Round], num_rows: int, peaks: Peaks) -> dict[str, Any]:
    """Speed and phases of one model as JSON values."""
    phases: dict[str, Any] = {}
    for name in PHASES:
        seconds = [one.phases[name] for one in found]
        work = [one.work[name] for one in found]
        rates = [
            (w.flops / s / peaks.flops_per_second, w.num_bytes / s / peaks.bytes_per_second)
            for w, s in zip(work, seconds, strict=True)
        ]
        matrix, memory = (Spread.of(values) for values in zip(*rates, strict=True))
        phases[name] = {
            "seconds": Spread.of(seconds).rounded(),
            "forwards": work[0].forwards,
            "ms_a_forward": Spread.of(seconds).median * 1000 / work[0].forwards,
            "flops": work[0].flops,
            "bytes": work[0].num_bytes,
            "of_matrix_rate": matrix.rounded(),
            "of_memory_rate": memory.rounded(),
            "bound_by": bound(matrix.median, memory.median),
        }
    return {
        "documents_per_second": Spread.of([num_rows / one.seconds for one in found]).rounded(),
        "phases": phases,
        "peak_memory_bytes": peak_memory(),
    }


def bound(of_matrix_rate: float, of_memory_rate: float) -> str:
    """What a phase waits for, from the fractions it reaches of both rates."""
    if max(of_matrix_rate, of_memory_rate) < LOW:
        return "launches and small kernels"
    return "matrix products" if of_matrix_rate > of_memory_rate else "memory"


def _forget_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _rows(name: str, found: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            phase,
            str(Spread(**values["seconds"])),
            str(values["forwards"]),
            f"{values['ms_a_forward']:.3g}",
            f"{values['of_matrix_rate']['median']:.1%}",
            f"{values['of_memory_rate']['median']:.1%}",
            values["bound_by"],
        )
        for phase, values in found["phases"].items()
    ]


def _largest(peaks: dict[str, int]) -> int:
    """The peak of the place that computes: a GPU if there is one."""
    on_gpus = [num_bytes for place, num_bytes in peaks.items() if place != "host"]
    return max(on_gpus or peaks.values(), default=0)


def _remarks(peaks: Peaks, dtype: str, found: dict[str, Any]) -> list[str]:
    speeds = [
        f"{name}: {Spread(**one['documents_per_second'])} documents/s, "
        f"{_largest(one['peak_memory_bytes']) / 2**30:.3g} GiB at the peak."
        for name, one in found.items()
    ]
    return [
        f"Measured here: {peaks.flops_per_second / 1e12:.3g} TFLOP/s in {dtype} matrix products, "
        f"{peaks.bytes_per_second / 1e9:.4g} GB/s in copies, read and written.",
        *speeds,
    ]
