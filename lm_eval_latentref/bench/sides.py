"""What the benches run: the default weights in lm-eval's classes, and the documents they answer.

    lm = load_lm(dtype="bfloat16", batch_size=8)
    refined = thinking(lm, RefinementConfig(latent_steps=6), references=None)
    texts = write(refined, prosqa_prompts(12), max_new_tokens=16)

All sides of one bench share the same weights in memory. Knows no clock.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, PreTrainedModel

from lm_eval_latentref.bench.report import environment
from lm_eval_latentref.benchmarks.documents import documents, generated_documents, harness_documents
from lm_eval_latentref.benchmarks.published import DATA_VARIABLE
from lm_eval_latentref.checkpoints.loading import LoadedModel
from lm_eval_latentref.checkpoints.packaged import BASE_NAME
from lm_eval_latentref.harness.model import LatentRefLM
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.reasoner import Reasoner

Document = dict[str, Any]

NOISE = 0.01
"""Size of the perturbation that makes a reference, relative to each weight matrix's own spread."""


def load_lm(*, pretrained: str | None, dtype: str, batch_size: int) -> LatentRefLM:
    """The lm-eval class with SmolLM2-135M's weights (or `pretrained`'s), no thoughts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return LatentRefLM(
        pretrained or BASE_NAME,
        dtype=dtype,
        batch_size=batch_size,
        device=device,
        latent_markers="none",
    )


def hf_beside(lm: LatentRefLM) -> HFLM:
    """`--model hf` on the very weights of `lm`."""
    return HFLM(lm.model, tokenizer=lm.tokenizer, batch_size=lm.batch_size)


def thinking(
    lm: LatentRefLM,
    config: RefinementConfig,
    references: tuple[PreTrainedModel, PreTrainedModel] | None = None,
) -> LatentRefLM:
    """`lm` under other settings, with the same weights; `references` are strong and weak."""
    other = copy.copy(lm)
    loaded = copy.copy(lm.reasoner.loaded)
    if references is not None:
        loaded.strong, loaded.weak = (
            LoadedModel(model=model, identity={"name": f"{name}, perturbed"})
            for name, model in zip(("strong", "weak"), references, strict=True)
        )
    other.reasoner = Reasoner(loaded, config)
    return other


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


def facts(lm: LatentRefLM) -> dict[str, Any]:
    """What is to be recorded of a bench's model and surroundings."""
    return {
        "model": lm.reasoner.loaded.backbone.identity,
        "dtype": str(lm.reasoner.backbone.dtype).removeprefix("torch."),
        "batch_size": lm.batch_size,
        **environment(lm.device),
    }


def mathqa_documents() -> list[Document]:
    """MathQA's dev questions as lm-eval's own `mathqa` asks them."""
    return harness_documents("dev")


def prosqa_prompts(num: int) -> list[str]:
    """ProsQA questions: those of the dev split where data are at hand, else generated ones."""
    if os.environ.get(DATA_VARIABLE):
        return [document["prompt"] for document in documents("prosqa", "dev")][:num]
    made = generated_documents(num=num, seed=0, split="validation")
    return [document["prompt"] for document in made]


def score_choices(lm: HFLM, asked: Sequence[Document]) -> list[list[float]]:
    """The log-likelihood of each choice of each MathQA document."""
    requests = [
        _instance("loglikelihood", number, (_mathqa_prompt(document), f" {choice}"))
        for number, document in enumerate(asked)
        for choice in document["choices"]
    ]
    values = iter(lm.loglikelihood(requests, disable_tqdm=True))
    return [[next(values)[0] for _ in document["choices"]] for document in asked]


def write(lm: HFLM, prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
    """Greedy text after each prompt, up to EOS."""
    until: dict[str, Any] = {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False}
    requests = [
        _instance("generate_until", number, (text, until)) for number, text in enumerate(prompts)
    ]
    return lm.generate_until(requests, disable_tqdm=True)


def counts_of(lm: LatentRefLM, work: Callable[[], Any], num_documents: int) -> dict[str, Any]:
    """Thoughts, tokens, forwards and columns of `lm` during one call of `work`, and of no other."""
    before = lm.reasoner.accounting.report()
    work()
    after = lm.reasoner.accounting.report()
    numbers = ("thought_steps", "tokens_encoded", "tokens_generated")
    return {
        "documents": num_documents,
        **{name: after[name] - before[name] for name in numbers},
        **{
            kind: {name: after[kind][name] - before[kind][name] for name in after[kind]}
            for kind in ("forwards", "columns_read")
        },
    }


def hits_gold(answers: Sequence[Sequence[float]], asked: Sequence[Document]) -> list[bool]:
    """Of each document, whether its gold choice has the largest log-likelihood."""
    return [
        max(range(len(values)), key=values.__getitem__) == document["gold"]
        for values, document in zip(answers, asked, strict=True)
    ]


def _mathqa_prompt(document: Document) -> str:
    return f"Question: {document['Problem']}\nAnswer:"


def _instance(kind: Any, number: int, arguments: tuple[Any, ...]) -> Instance:
    return Instance(kind, {}, arguments, number, metadata=("bench", number, 1))
