"""Peak memory: three adapters on one base with thoughts, against `--model hf` on that base.

    latentref bench memory --rounds 3 --documents 16 --batch_size 8

Each sample loads its checkpoints and works in a process of its own: MathQA's choices, then 16
tokens for each of as many ProsQA questions, other ones in every round. The adapters are LoRA with
random weights. Peaks are those of the process while it loads, scores and writes; the target is that
of the largest.
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lm_eval_latentref.bench.refinement import settings
from lm_eval_latentref.bench.report import Report, Spread, environment, verdict
from lm_eval_latentref.bench.sides import mathqa_documents, prosqa_prompts, score_choices, write
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.accounting import peak_memory

HF, OURS = "--model hf", "three adapters"
TARGET = 1.2
RANK, SCALE = 16, 0.02
MEGABYTE = 2**20


def run(
    *,
    rounds: int = 3,
    documents: int = 16,
    dtype: str = "bfloat16",
    batch_size: int = 8,
    pretrained: str | None = None,
) -> Report:
    """Megabytes of both, in each kind of work and as a whole."""
    if rounds < 1 or documents < 1:
        raise LatentRefError(f"rounds={rounds}, documents={documents}; give at least 1 of each")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        in_fresh_process(write_checkpoints, folder, pretrained, dtype)
        common = {"dtype": dtype, "batch_size": batch_size, "device": device}
        base, *adapters = (str(Path(folder) / name) for name in ("base", "f", "strong", "weak"))
        peaks: dict[str, list[dict[str, int]]] = {HF: [], OURS: []}
        for number in range(rounds):
            asked = (number * documents, (number + 1) * documents)
            peaks[HF].append(in_fresh_process(measure_hf, base, asked, common))
            peaks[OURS].append(in_fresh_process(measure_adapters, adapters, asked, common))
    return _report(
        peaks,
        **{"dtype": dtype, "batch_size": batch_size, "documents": documents, "rounds": rounds},
        **environment(device),
    )


def _report(peaks: dict[str, list[dict[str, int]]], **record: Any) -> Report:
    for found in (one for rounds in peaks.values() for one in rounds):
        found["in all"] = max(found.values())
    kinds = list(peaks[HF][0])
    pairs = list(zip(peaks[OURS], peaks[HF], strict=True))
    ratios = {kind: Spread.of([ours[kind] / hf[kind] for ours, hf in pairs]) for kind in kinds}
    megabytes = {
        name: {kind: Spread.of([one[kind] / MEGABYTE for one in rounds]) for kind in kinds}
        for name, rounds in peaks.items()
    }
    return Report(
        bench="memory",
        header=("MiB at the peak: median (range)", *kinds),
        rows=[
            *((name, *map(_whole, found.values())) for name, found in megabytes.items()),
            (f"{OURS} / {HF}", *map(str, ratios.values())),
        ],
        remarks=[verdict(f"{OURS} against {HF}, in all", ratios["in all"].median, at_most=TARGET)],
        record={
            "peak_bytes": peaks,
            "ratio": {kind: spread.rounded() for kind, spread in ratios.items()},
            "target": TARGET,
            "lora_rank": RANK,
            **record,
        },
    )


def _whole(spread: Spread) -> str:
    return f"{spread.median:.0f} ({spread.low:.0f} to {spread.high:.0f})"


def in_fresh_process(work: Any, *args: Any) -> Any:
    """`work(*args)` in a process that has done nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *args).result()


def write_checkpoints(folder: str, pretrained: str | None, dtype: str) -> None:
    """The base model as a plain folder, and three LoRA adapters on it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from lm_eval_latentref.checkpoints.convert import convert
    from lm_eval_latentref.checkpoints.packaged import BASE_NAME

    base = convert(out=Path(folder) / "base", pretrained=pretrained or BASE_NAME, dtype=dtype)
    for seed, name in enumerate(("f", "strong", "weak")):
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=dtype),
            LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        with torch.no_grad():
            for weight_name, weight in model.named_parameters():
                if "lora_B" in weight_name:
                    weight.normal_(std=SCALE)
        model.save_pretrained(Path(folder) / name)


def measure_hf(base: str, asked: tuple[int, int], common: dict[str, Any]) -> dict[str, int]:
    """Peaks of lm-eval's own class on the base model."""
    from lm_eval.models.huggingface import HFLM

    return _measure(HFLM(base, **common), asked)


def measure_adapters(
    adapters: Sequence[str], asked: tuple[int, int], common: dict[str, Any]
) -> dict[str, int]:
    """Peaks of a backbone and two references, refined thoughts and all."""
    from transformers import AutoConfig

    from lm_eval_latentref.harness.model import LatentRefLM

    backbone, strong, weak = adapters
    hidden_size = AutoConfig.from_pretrained(Path(backbone).parent / "base").hidden_size
    options = {
        name: value
        for name, value in vars(settings(hidden_size)).items()
        if name in ("latent_steps", "memory_rate", "search_step_size")
    }
    lm = LatentRefLM(backbone, strong=strong, weak=weak, **common, **options)
    return _measure(lm, asked)


def _measure(lm: Any, asked: tuple[int, int]) -> dict[str, int]:
    """Peaks of `lm`, which answers documents number `asked[0]` up to `asked[1]`."""
    peaks = {"loading": _peak()}
    score_choices(lm, _fresh(mathqa_documents()[slice(*asked)]))
    peaks["choices"] = _peak()
    write(lm, _fresh(prosqa_prompts(asked[1])[slice(*asked)]), max_new_tokens=16)
    peaks["generation"] = _peak()
    return peaks


def _fresh(documents: list[Any]) -> list[Any]:
    """The same documents; what memory peaked at before them is forgotten."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux only; elsewhere the peak is that of all work so far
        Path("/proc/self/clear_refs").write_text("5")
    return documents


def _peak() -> int:
    peaks = peak_memory()
    return max((value for place, value in peaks.items() if place != "host"), default=peaks["host"])
