"""What the scripts of this folder run: models with and without thoughts, documents, answers.

    lm = workload.load_lm(args)
    thinking = workload.thinking(lm, workload.refined(hidden_size), strong, weak)
    workload.write(thinking, workload.prosqa(64, tiny=False))

All sides of a script share the same weights in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import random
from collections.abc import Callable, Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
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
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel
from lm_eval_latentref.latent.reasoner import Reasoner

LATENT_STEPS, NEW_TOKENS = 6, 16
MEMORY_RATE = 0.5
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
LENGTHS = 0.35
"""Lengths of prompts that are cut are spread so far around their mean, relative to it."""


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
    defaults = {"latent_steps": LATENT_STEPS, "memory_rate": MEMORY_RATE}
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


class Counting:
    """`answer` of a side that runs the model of `lm`, and the products that it computes."""

    def __init__(self, lm: LatentRefLM, answer: Callable[[Sequence[Any]], Any]) -> None:
        self._answer = answer
        self._modules = [
            module
            for module in lm.model.modules()
            if getattr(getattr(module, "weight", None), "ndim", 0) == 2
            and not isinstance(module, torch.nn.Embedding)
        ]
        self.products = 0
        """Rows times weights of all linear layers, the output layer included, in all calls."""

    def __call__(self, documents: Sequence[Any]) -> Any:
        hooks = [module.register_forward_pre_hook(self._count) for module in self._modules]
        try:
            return self._answer(documents)
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self, module: Any, args: tuple[torch.Tensor, ...]) -> None:
        self.products += args[0].numel() // args[0].shape[-1] * module.weight.numel()


def _mathqa_prompt(document: dict[str, Any]) -> str:
    return f"Question: {document['Problem']}\nAnswer:"


def _instance(kind: Any, number: int, arguments: tuple[Any, ...]) -> Instance:
    return Instance(kind, {}, arguments, number, metadata=("bench", number, 1))
