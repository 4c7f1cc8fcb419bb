"""What it would save to let both references read a thought as rows of one batch.

    python results/performance/mixed.py --clock cpu -o results/performance/mixed.json

The references of the packaged set are adapters on one base, and PEFT computes batches whose rows
have different adapters: a weight of the base is then read once for both references, not twice. The
backbone cannot join them, because they read what it makes. Timed are the reading of a thought by
both references, one after the other and as rows of one batch, and whole answers (up to 16 tokens of
text, and the score of one token), of which every thought but the first could save the difference.
This package does not do so: for a single question it would save about a tenth, but with several in
a batch, which take less time each, much less.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bench
import memory
import pages
import torch
import workload
from earlier import CONTEXT_TOKENS, refining
from torch import Tensor
from workload import LATENT_STEPS, NEW_TOKENS

from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.contexts import Context
from lm_eval_latentref.latent.peft_seams import adapter_layers
from lm_eval_latentref.latent.streams import Stream

APART, MIXED, TEXT, SCORE = "one by one", "as one batch", "text", "score"
BATCH_SIZES = (1, 4, 16)
NUM_READINGS = 10
"""Of a thought in each round and each way."""
CLOSE = 0.05
"""The largest difference of states, relative to their largest component; bfloat16 has 8 bits."""


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(__doc__, argv, dtype="auto", rounds=9, any_model=False)
    args.shape, args.batch_size = "tiny" if args.tiny else None, 1
    report = pages.Report(
        name="mixed",
        header=("questions", *(f"{name}, ms" for name in (APART, MIXED, TEXT, SCORE))),
        rows=[],
        record={"seconds": {}},
    )
    needed = max(BATCH_SIZES) * (args.rounds + 1)
    prompts = workload.prosqa(needed, args.tiny)
    bench.check_enough(prompts, needed, args)
    lm = model(args)
    prompts = workload.shortened(lm, prompts, CONTEXT_TOKENS)
    contexts = [tuple(lm.tok_encode(prompt)) for prompt in prompts]
    for size in BATCH_SIZES:
        batches = [
            contexts[start : start + size] for start in range(0, size * (args.rounds + 1), size)
        ]
        seconds = timed(lm.reasoner, batches, report, args)
        report.record["seconds"][size] = seconds
        medians = (f"{1000 * statistics.median(values):.0f}" for values in seconds.values())
        report.rows = [*report.rows, (str(size), *medians)]
        for answer in (TEXT, SCORE):
            columns = zip(*(seconds[name] for name in (APART, MIXED, answer)), strict=True)
            saved = [(LATENT_STEPS - 1) * (a - b) / whole for a, b, whole in columns]
            what = f"{size} {'question' if size == 1 else 'questions'}: share of the time of a"
            report.judge(f"{what} {answer} that would be saved", saved)
    return report.finish(args)


def model(args: Any) -> Any:
    """The packaged set with both refinements; with `tiny`, tiny adapters."""
    if not args.tiny:
        return refining(args)
    with TemporaryDirectory() as folder:
        memory.write_checkpoints(folder, args)
        backbone, strong, weak = (str(Path(folder) / role) for role in memory.ROLES)
        return LatentRefLM(
            backbone,
            strong=strong,
            weak=weak,
            dtype=args.dtype,
            device="cpu",
            latent_steps=LATENT_STEPS,
            search_step_size=1.0,
            latent_markers="none",
        )


@torch.no_grad()
def timed(
    reasoner: Any, batches: Sequence[Any], report: pages.Report, args: Any
) -> dict[str, list[float]]:
    """Seconds of each kind of work, round by round; checks that both ways of reading agree."""
    seconds: dict[str, list[float]] = {name: [] for name in (APART, MIXED, TEXT, SCORE)}
    for number, batch in enumerate(batches):
        readings = both_ways(reasoner, batch)
        apart, mixed = (reading() for reading in readings.values())
        difference = float((apart - mixed).abs().max() / apart.abs().max())
        report.check(difference <= CLOSE, f"the states differ by {difference:.2g}")
        scored = [[context[:1]] for context in batch]
        works = {
            **{name: partial(repeated, reading) for name, reading in readings.items()},
            TEXT: partial(reasoner.answer, batch, max_new_tokens=NEW_TOKENS),
            SCORE: partial(reasoner.score, batch, scored, max_rows=len(batch)),
        }
        for name in works if number % 2 == 0 else reversed(works):
            took = bench.timed(works[name], clock=bench.clock_of(args))[0]
            if number:  # the first batch warms up
                seconds[name].append(took / NUM_READINGS if name in readings else took)
    return seconds


def repeated(reading: Any) -> None:
    for _ in range(NUM_READINGS):
        reading()


def both_ways(reasoner: Any, batch: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Two functions that read one more thought, and return the references' states (2B, D).

    As in a search, each reference reads two columns: the last thought and the next.
    """
    networks = reasoner.references.strong, reasoner.references.weak
    context = Context.pad(batch, device=reasoner.backbone.device)

    def begun(network: Any) -> Stream:
        stream = Stream(network, can_crop=True)
        stream.feed(network.embed(context.ids_BC), context.mask_BC)
        return stream

    single = [begun(network) for network in networks]
    joined = Stream.join([begun(network) for network in networks])
    new_BLD = networks[0].embed(context.ids_BC[:, -2:])

    def apart() -> Tensor:
        return torch.cat([_read(stream, new_BLD) for stream in single])

    def mixed() -> Tensor:
        names = [name for name in ("strong", "weak") for _ in batch]
        with adapters_of_rows(reasoner.loaded.strong.model, names):
            return _read(joined, torch.cat([new_BLD, new_BLD]))

    return {APART: apart, MIXED: mixed}


def _read(stream: Stream, new_BLD: Tensor) -> Tensor:
    state_BD = stream.feed(new_BLD)[:, -1]
    stream.crop(new_BLD.shape[1])
    return state_BD


@contextmanager
def adapters_of_rows(peft_model: Any, names: list[str]) -> Iterator[None]:
    """Rows of a batch have the adapters `names`, as in PEFT's mixed batches."""

    def named(module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return args, {**kwargs, "adapter_names": names}

    layers = [layer for layer in adapter_layers(peft_model) if hasattr(layer, "lora_A")]
    hooks = [layer.register_forward_pre_hook(named, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    bench.run(main)
