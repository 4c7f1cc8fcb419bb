"""The price of a kind of thought: short contexts and many thoughts, against Coconut's own.

    python results/performance/kinds.py -o results/performance/kinds.json

Every kind is that of the package on the same weights; the projector is a random one of the
published size. `output layer` is the layer alone, once for each thought that `mixture` looks at
logits for. Thoughts are compared in float32 with a loop that reads the whole row again for each. A
kind that needs no logits may compute none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import bench
import pages
import torch
import workload
from bench import NUM_CHECKED, Side
from torch import Tensor

from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.kinds import State
from lm_eval_latentref.latent.loaded import ThoughtFiles
from lm_eval_latentref.latent.reasoner import Reasoner

CONTINUOUS, MIXTURE, HEAD = "continuous", "mixture", "output layer"
KINDS = (CONTINUOUS, "projected", "realigned", MIXTURE)
TARGET = 1.05
TOLERANCE = 1e-4
"""Largest difference of a thought's components in float32, relative to the largest."""

# Legend of shape suffixes: B batch, T thoughts, L columns, D hidden size.


def main(argv: Sequence[str] | None = None) -> int:
    defaults = {"rounds": 18, "documents": 16, "batch_size": 16, "context": 16, "thoughts": 16}
    args = bench.parse(__doc__, argv, bench.PROFILE, dtype="auto", **defaults)
    exact = reasoners(workload.load_lm(args, dtype="float32"), args.thoughts)
    lm = workload.load_lm(args)
    prompts = workload.prosqa(max(300, (args.rounds + 2) * args.documents), args.tiny)
    # Equal contexts would be thought about once.
    contexts = list(dict.fromkeys(tuple(lm.tok_encode(p))[: args.context] for p in prompts))
    checked, timed = contexts[:NUM_CHECKED], contexts[NUM_CHECKED:]
    gaps = {name: gap(reasoner, checked) for name, reasoner in exact.items()}
    kinds = reasoners(lm, args.thoughts)
    projected = {name: num_projected(reasoner, checked) for name, reasoner in kinds.items()}
    sides = [
        *(Side(name, partial(think, each, args.batch_size)) for name, each in kinds.items()),
        Side(HEAD, partial(output_layer, kinds[MIXTURE], args.thoughts, args.batch_size)),
    ]
    rounds = bench.alternate(sides, timed, args)
    report = pages.Report(
        name="kinds",
        header=("", "documents/s: median (range)", "IQR"),
        rows=rounds.rows(),
        record={
            **rounds.record(),
            "rows_with_logits": projected,
            "largest_gap_float32": gaps,
            "model": workload.identity(lm, args),
        },
        remarks=[f"{args.thoughts} thoughts after {args.context} tokens, in {args.dtype}."],
    )
    judge(report, rounds, args)
    wanted = dict.fromkeys(KINDS, 0) | {MIXTURE: args.thoughts * NUM_CHECKED}
    report.check(projected == wanted, f"rows with logits are {projected}, not {wanted}")
    report.check(
        max(gaps.values()) <= TOLERANCE, f"thoughts differ from those of the slow loop: {gaps}"
    )
    if args.profile:
        mix = partial(think, kinds[MIXTURE], args.batch_size)
        report.profile = bench.profile_of(partial(mix, timed[: args.batch_size]))
    return report.finish(args)


def judge(report: pages.Report, rounds: bench.Rounds, args: Any) -> None:
    limit = 1.0, "columns read"
    for name in ("projected", "realigned"):
        ratio = rounds.ratio(name, CONTINUOUS)
        what = f"time of {name} / {CONTINUOUS}"
        report.judge(what, ratio, at_most=TARGET, tiny=args.tiny, limit=limit)
    times = (rounds.seconds[name] for name in (MIXTURE, HEAD, CONTINUOUS))
    ratio = [(ours - head) / plain for ours, head, plain in zip(*times, strict=True)]
    what = f"time of {MIXTURE} without the {HEAD} / {CONTINUOUS}"
    report.judge(what, ratio, at_most=TARGET, tiny=args.tiny, limit=limit)


def reasoners(lm: Any, num_thoughts: int) -> dict[str, Reasoner]:
    """One for each kind, on the weights of `lm`."""
    loaded = lm.reasoner.loaded
    files = ThoughtFiles(tensors=projector(lm.reasoner.backbone.hidden_size))
    backbone = dataclasses.replace(loaded.backbone, thought_files=files)
    return {
        name: Reasoner(
            dataclasses.replace(loaded, backbone=backbone),
            RefinementConfig(latent_kind=name, latent_steps=num_thoughts),
        )
        for name in KINDS
    }


def projector(size: int) -> dict[str, Tensor]:
    """Random weights of CODI's map, which is as wide as the model in the published checkpoints."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in ("linear_1", "linear_2"):
        tensors[f"{layer}.weight"] = torch.randn(size, size, generator=generator) / size**0.5
        tensors[f"{layer}.bias"] = torch.zeros(size)
    return {**tensors, "norm.weight": torch.ones(size), "norm.bias": torch.zeros(size)}


def think(reasoner: Reasoner, batch_size: int, contexts: Sequence[Tokens]) -> list[Tensor]:
    """The thoughts (B, T, D) of each batch."""
    starts = range(0, len(contexts), batch_size)
    return [reasoner.think(contexts[n : n + batch_size]).thoughts_BTD for n in starts]


def output_layer(
    reasoner: Reasoner, num_thoughts: int, batch_size: int, contexts: Sequence[Tokens]
) -> None:
    """The logits that as many thoughts about each of `contexts` look at, of any states."""
    network = reasoner.backbone
    for start in range(0, len(contexts), batch_size):
        num_rows = len(contexts[start : start + batch_size])
        states_BD = torch.ones(
            num_rows, network.hidden_size, dtype=network.dtype, device=network.device
        )
        for _ in range(num_thoughts):
            network.project(states_BD)


def num_projected(reasoner: Reasoner, contexts: Sequence[Tokens]) -> int:
    """For how many rows the output layer is asked while these contexts are thought about."""
    seen: list[int] = []
    head = reasoner.backbone.causal_lm.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-2]))
    reasoner.think(contexts)
    handle.remove()
    return sum(seen)


@torch.no_grad()
def gap(reasoner: Reasoner, contexts: Sequence[Tokens]) -> float:
    """The largest difference from a loop without a cache, one context at a time.

    The loop goes on from our thoughts: what rounding does to one would grow in those after it.
    """
    network, gaps = reasoner.backbone, []
    for context, ours_TD in zip(contexts, reasoner.think(contexts).thoughts_BTD, strict=True):
        columns_1LD = network.embed(torch.tensor([context]))
        for ours_D in ours_TD:
            out = network.causal_lm(
                inputs_embeds=columns_1LD, output_hidden_states=True, use_cache=False
            )
            state = State(network=network, num_rows=1, hidden=out.hidden_states[-1][:, -1].float())
            thought_1D = reasoner.kind.vector(state)
            gaps.append(float((thought_1D[0] - ours_D).abs().max() / thought_1D.abs().max()))
            columns_1LD = torch.cat([columns_1LD, ours_D[None, None]], dim=1)
    return max(gaps)


if __name__ == "__main__":
    bench.run(main)
