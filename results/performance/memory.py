"""Peak memory of three adapters on one base with thoughts, against `--model hf` on that base.

    python results/performance/memory.py --documents 16 -o results/performance/memory.json

Each sample is a process that loads its checkpoints, scores MathQA's choices, writes 16 tokens for
each of as many ProsQA questions, and 16 tokens after one context of 4,096; every round has other
documents. The adapters are LoRA with random weights. Peaks are those of the process while it loads,
scores and writes; the targets are for the long context and for the largest of the others. Before
that, this package's class and lm-eval's score choices in float32 with the backbone's adapter and
without thoughts, to check that they agree.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench
import pages
import torch
import workload
from lm_eval.models.huggingface import HFLM

from lm_eval_latentref.checkpoints.convert import convert
from lm_eval_latentref.harness.model import LatentRefLM

HF, OURS = "--model hf", "three adapters"
TARGET, LONG_TARGET = 1.2, 1.3
LONG, LONG_TOKENS = "4,096 tokens", 4096
TOLERANCE = 1e-4
RANK, SCALE = 16, 0.02
ROLES = ("f", "strong", "weak")


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(__doc__, argv, dtype="auto", documents=16, batch_size=8)
    call = _here if args.tiny else in_fresh_process
    peaks: dict[str, list[dict[str, int]]] = {HF: [], OURS: []}
    with TemporaryDirectory() as folder:
        call(write_checkpoints, folder, args)
        difference = call(largest_difference, folder, args)
        for number in range(args.rounds):
            asked = (number * args.documents, (number + 1) * args.documents)
            peaks[HF].append(call(measure_hf, folder, asked, args))
            peaks[OURS].append(call(measure_adapters, folder, asked, args))
    for peak in (peak for rounds in peaks.values() for peak in rounds):
        peak["in all"] = max(value for kind, value in peak.items() if kind != LONG)
    kinds = list(peaks[HF][0])
    ratios = {
        kind: [a[kind] / b[kind] for a, b in zip(peaks[OURS], peaks[HF], strict=True)]
        for kind in kinds
    }
    report = pages.Report(
        name="memory",
        header=("MiB at the peak: median (range)", *kinds),
        rows=[
            *(
                (
                    name,
                    *(
                        bench.spread([peak[kind] / bench.MEBIBYTE for peak in rounds])
                        for kind in kinds
                    ),
                )
                for name, rounds in peaks.items()
            ),
            (f"{OURS} / {HF}", *map(bench.spread, ratios.values())),
        ],
        record={"peak_bytes": peaks, "lora_rank": RANK, "max_difference_float32": difference},
    )
    for kind, most in (("in all", TARGET), (LONG, LONG_TARGET)):
        label = f"{OURS} against {HF}, {kind}"
        report.judge(label, ratios[kind], at_most=most, tiny=args.tiny)
    report.check(difference <= TOLERANCE, f"log-likelihoods in float32 differ by {difference:.2g}")
    return report.finish(args)


def _here(work: Any, *args: Any) -> Any:
    return work(*args)


def in_fresh_process(work: Any, *args: Any) -> Any:
    """Calls `work(*args)` in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *args).result()


def write_checkpoints(folder: str, args: Any) -> None:
    """Writes the base model as a plain folder, and three LoRA adapters on it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with workload.checkpoint(args) as name:
        base = convert(out=Path(folder) / "base", pretrained=name, dtype=args.dtype)
    for seed, role in enumerate(ROLES):
        torch.manual_seed(seed)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base, dtype=args.dtype),
            LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        with torch.no_grad():
            for weight_name, weight in model.named_parameters():
                if "lora_B" in weight_name:
                    weight.normal_(std=SCALE)
        model.save_pretrained(Path(folder) / role)


def largest_difference(folder: str, args: Any) -> float:
    """The largest difference of float32 log-likelihoods between both classes, without thoughts."""
    how = {**_how(args), "dtype": "float32"}
    ours = LatentRefLM(f"{folder}/f", latent_steps=0, latent_markers="none", **how)
    theirs = HFLM(f"{folder}/base", peft=f"{folder}/f", **how)
    asked = workload.mathqa(args.tiny)[: bench.NUM_CHECKED]
    rows = zip(*(workload.score_choices(lm, asked) for lm in (ours, theirs)), strict=True)
    return max(abs(a - b) for row in rows for a, b in zip(*row, strict=True))


def measure_hf(folder: str, asked: tuple[int, int], args: Any) -> dict[str, int]:
    """Peaks of lm-eval's own class on the base model."""
    return _measure(HFLM(f"{folder}/base", **_how(args)), asked, args)


def measure_adapters(folder: str, asked: tuple[int, int], args: Any) -> dict[str, int]:
    """Peaks of a backbone and two references with refined thoughts."""
    backbone, strong, weak = (f"{folder}/{role}" for role in ROLES)
    lm = LatentRefLM(
        backbone,
        strong=strong,
        weak=weak,
        latent_steps=workload.LATENT_STEPS,
        memory_rate=0.5,
        search_step_size=1.0,
        latent_markers="none",
        **_how(args),
    )
    return _measure(lm, asked, args)


def _how(args: Any) -> dict[str, Any]:
    return {"dtype": args.dtype, "batch_size": args.batch_size, "device": str(workload.device())}


def _measure(lm: Any, asked: tuple[int, int], args: Any) -> dict[str, int]:
    """Peaks of `lm` while it answers the documents from `asked[0]` to `asked[1]` (exclusive)."""
    peaks = {"loading": bench.peak()}
    workload.score_choices(lm, _fresh(workload.mathqa(args.tiny)[slice(*asked)]))
    peaks["choices"] = bench.peak()
    workload.write(lm, _fresh(workload.prosqa(asked[1], args.tiny)[slice(*asked)]))
    peaks["generation"] = bench.peak()
    workload.write(lm, _fresh([long_prompt(lm, 64 if args.tiny else LONG_TOKENS)]))
    peaks[LONG] = bench.peak()
    return peaks


def long_prompt(lm: Any, num_tokens: int) -> str:
    """ProsQA questions one after another, cut to that many tokens."""
    ids = lm.tok_encode("\n".join(workload.prosqa(300, tiny=False))[: 8 * num_tokens])
    return lm.tok_decode(ids[:num_tokens])


def _fresh(documents: list[Any]) -> list[Any]:
    """Returns `documents`, after resetting the record of peak memory."""
    bench.reset_peak()
    return documents


if __name__ == "__main__":
    bench.run(main)
