"""Measures which fraction of a machine's compute and memory rates each phase reaches.

    python results/performance/device.py --models adapters,llama-3.2-3b --batch_size 64

Each round thinks six thoughts, refined by both references, and writes 16 tokens on a new batch of
ProsQA questions. For encoding, thinking and decoding, the table has seconds, forwards, and the
fractions of the machine's rates of matrix products and of memory, which are measured in the same
run. The larger fraction shows what bounds the phase; if both are low, neither does. Operations are
counted by torch.utils.flop_counter; bytes are the weights once per forward, and the caches once per
forward that reads them. `adapters` is the base of the default set with three random LoRA adapters;
the other models have random weights.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import bench
import pages
import torch
import workload
from memory import ROLES, write_checkpoints
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula
from transformers import AutoConfig

from lm_eval_latentref.checkpoints.loading import load
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.accounting import peak_memory
from lm_eval_latentref.latent.batching import Tokens
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.reasoner import Reasoner

PHASES = ("encode", "think", "decode")
ADAPTERS = "adapters"
MODELS = {"cuda": f"{ADAPTERS},{workload.QWEN},{workload.LLAMA}", "cpu": "tiny"}
BATCH_SIZE = {"cuda": 64, "cpu": 4}
SIDE = {"cuda": 8192, "cpu": 512}
COPIED_BYTES = {"cuda": 2**31, "cpu": 2**26}
LOW = 0.3
"""If a phase reaches less than this fraction of both rates, neither bounds it."""

HEADER = (
    "model",
    "phase",
    "seconds: median (range)",
    "forwards",
    "ms a forward",
    "of matrix rate",
    "of memory rate",
    "bound by",
)

OPTIONS = [
    ("--models", {"help": f"with commas between: {', '.join([ADAPTERS, *workload.SHAPES])}"}),
    ("--rows", {"type": int, "help": "contexts of a batch; default: 64 on a GPU, 4 on a CPU"}),
]


@dataclass
class Work:
    """The operations, bytes and forwards of one batch, by phase."""

    flops: Counter = field(default_factory=Counter)
    num_bytes: Counter = field(default_factory=Counter)
    forwards: Counter = field(default_factory=Counter)


def main(argv: Sequence[str] | None = None) -> int:
    args = bench.parse(__doc__, argv, *OPTIONS, batch_size=1)
    place = workload.device().type
    names = (args.models or ("tiny" if args.tiny else MODELS[place])).split(",")
    for name in names:
        if name not in (ADAPTERS, *workload.SHAPES):
            known = ", ".join([ADAPTERS, *workload.SHAPES])
            raise LatentRefError(f"--models {name}: give one or more of {known}")
    num_rows = args.rows or (2 if args.tiny else BATCH_SIZE[place])
    rates = peak_rates(args)
    measured = {name: measure(build(name, args), args, num_rows, rates) for name in names}
    report = pages.Report(
        name="device",
        header=HEADER,
        rows=[line for name in names for line in _rows(name, measured[name])],
        record={"models": measured, "rates": rates, "rows": num_rows},
        remarks=[
            f"Rates of this machine in {args.dtype}: {rates['flops'] / 1e12:.3g} TFLOP/s of "
            f"matrix products, {rates['bytes'] / 1e9:.3g} GB/s of copies.",
            *(
                f"{name}: {bench.spread(model['documents_per_second'])} documents/s."
                for name, model in measured.items()
            ),
        ],
    )
    return report.finish(args)


def peak_rates(args: Any) -> dict[str, float]:
    """The rates of a large matrix product and of a large copy (bytes read plus bytes written).

    The data is random, because products of zeros can run faster.
    """
    place, dtype = workload.device(), getattr(torch, args.dtype)
    side = 64 if args.tiny else SIDE[place.type]
    num_bytes = 2**16 if args.tiny else COPIED_BYTES[place.type]
    left, right, product = (torch.randn(side, side, device=place, dtype=dtype) for _ in range(3))
    source = torch.randint(0, 255, (num_bytes,), device=place, dtype=torch.uint8)
    names = {"left": left, "right": right, "product": product}
    names |= {"torch": torch, "source": source, "target": torch.empty_like(source)}
    least = 0.01 if args.tiny else 1.0
    took = {
        what: Timer(statement, globals=names, num_threads=torch.get_num_threads())
        .blocked_autorange(min_run_time=least)
        .median
        for what, statement in {
            "flops": "torch.mm(left, right, out=product)",
            "bytes": "target.copy_(source)",
        }.items()
    }
    return {"flops": 2 * side**3 / took["flops"], "bytes": 2 * num_bytes / took["bytes"]}


def build(name: str, args: Any) -> Reasoner:
    """The set `name` with refined thoughts; it never writes the end of sequence."""
    reasoner = _adapters(args) if name == ADAPTERS else _random(name, args)
    # Every document then takes the same number of tokens.
    reasoner.backbone.causal_lm.generation_config.eos_token_id = None
    return reasoner


def _adapters(args: Any) -> Reasoner:
    with TemporaryDirectory() as folder:
        write_checkpoints(folder, args)
        backbone, strong, weak = (f"{folder}/{role}" for role in ROLES)
        hidden_size = AutoConfig.from_pretrained(f"{folder}/base").hidden_size
        how = {"dtype": args.dtype, "device": str(workload.device()), "latent_markers": "none"}
        step_size = workload.refined(hidden_size).search_step_size
        how |= {"latent_steps": workload.LATENT_STEPS, "search_step_size": step_size}
        return load(backbone, strong=strong, weak=weak, memory_rate=0.5, **how)


def _random(name: str, args: Any) -> Reasoner:
    identity = {"name": f"random weights in the shape of {name}"}
    backbone, strong, weak = (
        LoadedModel(model=workload.random_model(name, seed, args.dtype), identity=identity)
        for seed in range(3)
    )
    config = workload.refined(backbone.model.config.hidden_size, latent_markers="none")
    tokenizer = workload.byte_tokenizer()
    loaded = LoadedSet(tokenizer=tokenizer, backbone=backbone, strong=strong, weak=weak)
    return Reasoner(loaded, config)


def measure(
    reasoner: Reasoner, args: Any, num_rows: int, rates: dict[str, float]
) -> dict[str, Any]:
    """Speed and phases of one model as JSON values."""
    prompts = workload.prosqa((args.rounds + 1) * num_rows * 2, args.tiny)
    contexts = list(dict.fromkeys(tuple(reasoner.tokenizer.encode(text)) for text in prompts))
    work = counted(reasoner, contexts[:num_rows])
    seconds: dict[str, list[float]] = {name: [] for name in (*PHASES, "all")}
    for number in range(1, args.rounds + 1):
        batch = contexts[number * num_rows : (number + 1) * num_rows]
        before = reasoner.accounting.report()["seconds"]
        took, _ = bench.timed(lambda batch=batch: _answer(reasoner, batch))
        after = reasoner.accounting.report()["seconds"]
        seconds["all"].append(took)
        for name in PHASES:
            seconds[name].append(after[name] - before[name])
    phases = {}
    for name in PHASES:
        median = max(statistics.median(seconds[name]), 1e-9)
        of_matrix = work.flops[name] / median / rates["flops"]
        of_memory = work.num_bytes[name] / median / rates["bytes"]
        phases[name] = {
            **{"seconds": seconds[name], "forwards": work.forwards[name]},
            **{"flops": work.flops[name], "bytes": work.num_bytes[name]},
            **{"of_matrix_rate": of_matrix, "of_memory_rate": of_memory},
            "bound_by": bound(of_matrix, of_memory),
        }
    speed = [num_rows / took for took in seconds["all"]]
    return {"documents_per_second": speed, "phases": phases, "peak_memory_bytes": peak_memory()}


def _answer(reasoner: Reasoner, contexts: Sequence[Tokens]) -> None:
    reasoner.answer(contexts, max_new_tokens=workload.NEW_TOKENS)


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _flops_by_onednn(
    rows_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any
) -> int:
    return 2 * math.prod(rows_shape) * weight_shape[0]


def counted(reasoner: Reasoner, contexts: Sequence[Tokens]) -> Work:
    """The operations, bytes and forwards of one batch, which is also a warm-up."""
    work, counter = Work(), FlopCounterMode(display=False)
    state: dict[str, Any] = {"phase": "encode", "flops": 0, "decodes": False, "listens": True}

    def enter(phase: str) -> None:
        total = counter.get_total_flops()
        work.flops[state["phase"]] += total - state["flops"]
        state.update(phase=phase, flops=total)

    def listener(network: Any) -> Any:
        num_bytes = sum(weight.nbytes for weight in network.causal_lm.parameters())
        of_column = column_bytes(network.causal_lm.config.get_text_config(), network.dtype)

        def heard(num_columns: int, past: int) -> None:
            if state["listens"]:
                enter("decode" if state["decodes"] else "think" if past else "encode")
                work.forwards[state["phase"]] += 1
                work.num_bytes[state["phase"]] += num_bytes + past * len(contexts) * of_column

        return heard

    for network in reasoner.networks():
        network.before_forward(listener(network))
    with torch.no_grad(), counter:
        thoughts = reasoner.think(contexts)
        state["decodes"] = True
        reasoner.backbone.causal_lm.generate(
            **reasoner.generation_inputs(contexts, thoughts),
            **{"max_new_tokens": workload.NEW_TOKENS, "do_sample": False, "pad_token_id": 0},
        )
        enter("decode")
    state["listens"] = False
    return work


def column_bytes(config: Any, dtype: torch.dtype) -> int:
    """The bytes of one column's keys and values in all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * dtype.itemsize


def bound(of_matrix_rate: float, of_memory_rate: float) -> str:
    """The rate that bounds a phase, by the fractions that it reaches of both rates."""
    if max(of_matrix_rate, of_memory_rate) < LOW:
        return "launches and small kernels"
    return "matrix products" if of_matrix_rate > of_memory_rate else "memory"


def _rows(name: str, measured: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            *(name, phase, bench.spread(cost["seconds"]), str(cost["forwards"])),
            f"{statistics.median(cost['seconds']) * 1000 / cost['forwards']:.3g}",
            *(f"{cost['of_matrix_rate']:.1%}", f"{cost['of_memory_rate']:.1%}", cost["bound_by"]),
        )
        for phase, cost in measured["phases"].items()
    ]


if __name__ == "__main__":
    bench.run(main)
