"""What the scripts of this folder share: options, models, documents, rounds in turn, pages.

    args = bench.parse(__doc__, argv, documents=64, batch_size=8)
    rounds = bench.alternate([Side("a", answer_a), Side("b", answer_b)], documents, args)
    report.judge("b against a", rounds.ratio("a", "b"), at_least=2.5)
    return report.finish(args)

All sides of a script share the same weights in memory, get the same documents, fresh ones in each
round, and take turns at being first.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.profiler import profile
from torch.utils.benchmark import Measurement, TaskSpec, Timer, timer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from lm_eval_latentref.benchmarks.documents import documents, generated_documents, harness_documents
from lm_eval_latentref.benchmarks.published import DATA_VARIABLE
from lm_eval_latentref.checkpoints.packaged import BASE_NAME
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.evaluation.provenance import command, machine, versions
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel
from lm_eval_latentref.latent.reasoner import Reasoner

LATENT_STEPS, NEW_TOKENS = 6, 16
NUM_WARM_UP = 2
"""Documents that each side answers before the clock runs."""
NUM_CHECKED = 2
"""Documents on which all sides must agree in float32."""
NOISE = 0.01
"""Size of the perturbation that makes a reference, relative to each weight matrix's own spread."""

GPT2, QWEN, LLAMA = "gpt2-124m", "qwen2.5-1.5b", "llama-3.2-3b"
SHAPES: dict[str, Callable[[], Any]] = {
    GPT2: lambda: GPT2Config(),
    QWEN: lambda: Qwen2Config(
        **{"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960},
        **{"num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2},
        tie_word_embeddings=True,
    ),
    LLAMA: lambda: LlamaConfig(
        **{"vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192},
        **{"num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8},
        **{"head_dim": 128, "tie_word_embeddings": True},
    ),
    "tiny": lambda: LlamaConfig(
        **{"vocab_size": 257, "hidden_size": 64, "intermediate_size": 128},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"eos_token_id": 256, "bos_token_id": 256, "tie_word_embeddings": True},
    ),
}
"""Configurations for random weights, which cost what the real ones cost."""


CONTEXT_TOKENS = (
    "--context_tokens",
    {"type": int, "help": "cut prompts to this many tokens on average (default: not)"},
)
PROFILE = ("--profile", {"action": "store_true", "help": "show where our time goes"})
LENGTHS = 0.35
"""Lengths of prompts that are cut are spread so far around their mean, relative to it."""


# Options ---------------------------------------------------------------------------------------


def parse(
    description: str | None,
    argv: Sequence[str] | None,
    *extra: tuple[str, Any],
    dtype: str = "bfloat16",
    **defaults: int,
) -> argparse.Namespace:
    """The options that all scripts have, `defaults` as integers, and `extra` (name, settings)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"rounds": 3, **defaults}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    help = f"of the weights, or auto: the faster of float32 and bfloat16 here (default: {dtype})"
    parser.add_argument("--dtype", default=dtype, help=help)
    parser.add_argument("--pretrained", help="the model (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape instead")
    clocks = "wall: seconds that pass; cpu: seconds this process computes, where others do too"
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=clocks)
    parser.add_argument("--tiny", action="store_true", help="a tiny model; judges no target")
    parser.add_argument("-o", "--output", metavar="FILE.json", help="and the page beside it")
    for name, settings in extra:
        parser.add_argument(name, **settings)
    args = parser.parse_args(argv)
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
    for name in ("rounds", *defaults):
        if getattr(args, name) < 1:
            raise LatentRefError(f"{name}={getattr(args, name)}: give at least 1")
    return args


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
    """Runs a script; a mistake is one line and status 2."""
    try:
        sys.exit(main())
    except LatentRefError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


# Models ----------------------------------------------------------------------------------------


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_model(shape: str, seed: int, dtype: str) -> PreTrainedModel:
    """Random weights, made where they are used."""
    torch.manual_seed(seed)
    with device():
        model = AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte: what random weights read text with."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, "<end>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>", pad_token="<end>"
    )


@contextlib.contextmanager
def checkpoint(args: argparse.Namespace) -> Iterator[str]:
    """The name of the model that `args` ask for; random weights lie in a folder meanwhile."""
    if args.shape is None:
        yield args.pretrained or BASE_NAME
        return
    with TemporaryDirectory() as folder:
        random_model(args.shape, 0, args.dtype).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        yield folder


def load_lm(args: argparse.Namespace, *, dtype: str | None = None) -> LatentRefLM:
    """The lm-eval class without thoughts."""
    with checkpoint(args) as name:
        return LatentRefLM(
            name,
            dtype=dtype or args.dtype,
            batch_size=getattr(args, "batch_size", 1),  # growth varies it itself
            device=str(device()),
            latent_steps=0,
            latent_markers="none",
        )


def identity(lm: LatentRefLM, args: argparse.Namespace) -> dict[str, str]:
    """What the model of `load_lm(args)` is."""
    if args.shape:
        return {"name": f"random weights in the shape of {args.shape}"}
    return lm.reasoner.loaded.backbone.identity


def hf_beside(lm: LatentRefLM) -> HFLM:
    """`--model hf` on the very weights of `lm`."""
    return HFLM(lm.model, tokenizer=lm.tokenizer, batch_size=lm.batch_size)


def thinking(lm: LatentRefLM, config: RefinementConfig, *references: PreTrainedModel) -> Any:
    """`lm` under other settings, with the same weights; `references` are strong and weak."""
    other, loaded = copy.copy(lm), copy.copy(lm.reasoner.loaded)
    if references:
        loaded.strong, loaded.weak = (
            LoadedModel(model=model, identity={"name": f"{name}, perturbed"})
            for name, model in zip(("strong", "weak"), references, strict=True)
        )
    other.reasoner = Reasoner(loaded, config)
    return other


def refined(hidden_size: int, **settings: Any) -> RefinementConfig:
    """Refinement with a step of d/2: from weak to strong, once a thought."""
    defaults = {"latent_steps": LATENT_STEPS, "memory_rate": 0.5}
    return RefinementConfig(**{**defaults, "search_step_size": hidden_size / 2, **settings})


def perturbed(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A copy of `model` with noise on its weights: a reference that costs what a real one does."""
    generator = torch.Generator(model.device).manual_seed(seed)
    with model.device:
        twin = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for weight in twin.parameters():
            if weight.dim() > 1:
                noise = torch.randn(weight.shape, generator=generator, device=weight.device)
                weight += (NOISE * weight.float().std() * noise).to(weight.dtype)
    return twin.eval().requires_grad_(False)


# Documents -------------------------------------------------------------------------------------


def mathqa(tiny: bool) -> list[dict[str, Any]]:
    """MathQA's dev questions as lm-eval's own `mathqa` asks them."""
    if tiny:
        return [
            {"Problem": f"the average of {n} is 12 .", "choices": list("12345"), "gold": n % 5}
            for n in range(12)
        ]
    return harness_documents("dev")


def prosqa(num: int, tiny: bool) -> list[str]:
    """ProsQA questions: those of the dev split where data are at hand, else generated ones."""
    if os.environ.get(DATA_VARIABLE) and not tiny:
        return [document["prompt"] for document in documents("prosqa", "dev")][:num]
    made = [
        document["prompt"] for document in generated_documents(num=num, seed=0, split="validation")
    ]
    return [f"{number} {prompt[-30:]}" for number, prompt in enumerate(made)] if tiny else made


def shortened(lm: HFLM, prompts: Sequence[str], mean: int | None) -> list[str]:
    """The ends of `prompts`, of about `mean` tokens on average; None: as they are."""
    if mean is None:
        return list(prompts)
    draw, spread = random.Random(0), round(LENGTHS * mean)
    lengths = [draw.randint(mean - spread, mean + spread) for _ in prompts]
    return [
        lm.tokenizer.decode(lm.tok_encode(prompt)[-length:])
        for prompt, length in zip(prompts, lengths, strict=True)
    ]


def score_choices(lm: HFLM, asked: Sequence[dict[str, Any]]) -> list[list[float]]:
    """The log-likelihood of each choice of each MathQA document."""
    requests = [
        _instance("loglikelihood", number, (_mathqa_prompt(document), f" {choice}"))
        for number, document in enumerate(asked)
        for choice in document["choices"]
    ]
    values = iter(lm.loglikelihood(requests, disable_tqdm=True))
    return [[next(values)[0] for _ in document["choices"]] for document in asked]


def write(lm: HFLM, prompts: Sequence[str]) -> list[str]:
    """Greedy text after each prompt, up to EOS."""
    until = {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    requests = [
        _instance("generate_until", number, (text, until)) for number, text in enumerate(prompts)
    ]
    return lm.generate_until(requests, disable_tqdm=True)


def _mathqa_prompt(document: dict[str, Any]) -> str:
    return f"Question: {document['Problem']}\nAnswer:"


def _instance(kind: Any, number: int, arguments: tuple[Any, ...]) -> Instance:
    return Instance(kind, {}, arguments, number, metadata=("bench", number, 1))


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
    needed = args.rounds * args.documents + NUM_WARM_UP
    if needed > len(documents):
        raise LatentRefError(
            f"rounds={args.rounds} of documents={args.documents} take {needed} documents, there "
            f"are {len(documents)}; lower --rounds or --documents"
        )
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


def _iqr(measurement: Measurement) -> float:
    return float(measurement.iqr / measurement.median)


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def kept(args: argparse.Namespace, part: str) -> dict[str, Any]:
    """What an earlier run wrote to `args.output` under `part`, if nothing there differs from now.

    Nothing are the machine, the versions and the dtype.
    """
    if not args.output or not Path(args.output).exists():
        return {}
    record = json.loads(Path(args.output).read_text(encoding="utf-8"))
    now = {"machine": machine(), "versions": versions()}
    same = all(record.get(name) == value for name, value in now.items())
    return record[part] if same and record["options"]["dtype"] == args.dtype else {}


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
    with profile() as profiled:
        call()
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    lines = [
        f"{event.self_cpu_time_total / total:6.1%}  {event.count:7d} calls  {event.key}"
        for event in events[:num_rows]
    ]
    return "\n".join([f"Where the {total / 1e6:.1f} s of one profiled batch go:", *lines])


# Pages -----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Report:
    """A finished measurement."""

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    record: dict[str, Any]
    """All of it as JSON values."""
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    """Checks of equal answers that did not hold; the numbers are then worth nothing."""
    profile: str = ""
    """A table of where our time goes."""
    missed: list[str] = field(default_factory=list)

    def check(self, holds: bool, failure: str) -> None:
        if not holds:
            self.failures.append(failure)

    def judge(
        self,
        what: str,
        values: Sequence[float],
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        tiny: bool = False,
    ) -> None:
        """Adds the sentence on whether the median of `values` reaches its target."""
        value = statistics.median(values)
        self.record.setdefault("judged", {})[what] = list(values)
        if tiny or at_least is at_most is None:
            self.remarks.append(f"{what}: {spread(values)}.")
            return
        reached = value >= at_least if at_least is not None else value <= (at_most or 0)
        bound = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
        verdict = "reached" if reached else "MISSED"
        self.remarks.append(f"{what}: {spread(values)}, to be {bound}: {verdict}.")
        if not reached:
            self.missed.append(self.remarks[-1])

    def table(self) -> str:
        lines = [tuple(self.header), *map(tuple, self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        text.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(
            [
                *(*text, "", *self.remarks, *(f"FAILED: {failure}" for failure in self.failures)),
                *(("", self.profile) if self.profile else ()),
            ]
        )

    def page(self) -> str:
        """The table with what repeats it, as Markdown."""
        where = [
            f"{kind.capitalize()}: {', '.join(f'{k} {v}' for k, v in self.record[kind].items())}."
            for kind in ("versions", "machine")
        ]
        written = f"Written by `{self.record['command']}`; all of it is in the JSON file beside it."
        return "\n\n".join([f"# {self.name}", written, f"```\n{self.table()}\n```", *where, ""])

    def finish(self, args: argparse.Namespace) -> int:
        """Prints the table and the JSON line, writes both where asked; the exit status."""
        options = {
            key: value for key, value in vars(args).items() if key not in ("output", "profile")
        }
        if clock_of(args) is time.process_time:
            self.remarks.append("Seconds are those that the process computed.")
        ends = {"failures": self.failures, "missed": self.missed, "options": options}
        self.record |= {"device": str(device()), "versions": versions(), "machine": machine()}
        self.record["command"] = f"python results/performance/{command()}"
        line = json.dumps({"bench": self.name, **ends, **self.record}, default=str)
        print(f"{self.table()}\n{line}")
        if args.output:
            path = Path(args.output)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(line + "\n", encoding="utf-8")
            path.with_suffix(".md").write_text(self.page(), encoding="utf-8")
        return int(bool(self.failures or self.missed))
