"""Ways of thinking, each as our options and as functions for the naive loop; both are run here."""

from __future__ import annotations

from dataclasses import dataclass, field

import naive_kinds as naive
import pytest
import torch
from tiny import HIDDEN_SIZE, random_ids, tiny_model, tiny_tokenizer

from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.kinds.draws import Draws
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet, ThoughtFiles
from lm_eval_latentref.latent.reasoner import Reasoner

FAMILIES = ("gpt2", "llama", "qwen3", "gemma3")
CONTEXTS = [random_ids(n, seed=n) for n in (5, 13, 8, 3, 9)]
CONTINUATIONS = [[random_ids(3, seed=50 + row), random_ids(1, seed=9)] for row in range(5)]
TOKENIZER = tiny_tokenizer(markers=False)
OPENING, CLOSING = "think", "halve it"
STEP = 2.0 * HIDDEN_SIZE / 2


def ids(text):
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


REFINED = {"memory_rate": 0.4, "search_step_size": STEP, "search_steps": 2}
MIXED = {"memory_rate": 0.4}


@dataclass
class Case:
    """One way of thinking: our options, the naive vector of a model, and how it is refined."""

    options: dict
    vector: object
    refinement: dict = field(default_factory=lambda: REFINED)
    min_thoughts: int = 0


def entropies(family, temperature=1.0):
    """A threshold that some contexts are below and some above."""
    model = tiny_model(family)
    values = []
    for context in CONTEXTS:
        _, logits = naive.read(model, list(naive.embed(model, [*context, *ids(OPENING)])))
        values.append(naive.entropy(logits, temperature))
    return round(sorted(values)[2], 3) + 0.0005


CASES = {
    "continuous": Case({"latent_kind": "continuous"}, naive.continuous),
    "mixture": Case({"latent_kind": "mixture"}, naive.mixture, MIXED),
    "sharp mixture": Case(
        {
            "latent_kind": "mixture",
            "mixture_temperature": 1.0,
            "mixture_top_k": 7,
            "mixture_top_p": 0.4,
            "mixture_min_p": 0.3,
            "mixture_tokens": 2,
        },
        lambda model: naive.mixture(
            model, temperature=1.0, top_k=7, top_p=0.4, min_p=0.3, tokens=2
        ),
        MIXED,
    ),
    "realigned": Case({"latent_kind": "realigned"}, naive.realigned),
    "realigned by ridge": Case(
        {"latent_kind": "realigned", "realign": "ridge"},
        lambda model: naive.realigned(model, ridge=True),
    ),
}
MAP_WIDTH = 24


def map_layers(layers, seed=5):
    """Random weights and biases by layer: (rows, columns), or a width for a LayerNorm."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return 0.3 * torch.randn(*shape, generator=generator)

    return {
        name: (random(*shape), random(shape[0]))
        if isinstance(shape, tuple)
        else (1 + random(shape), random(shape))
        for name, shape in layers.items()
    }


D, M = HIDDEN_SIZE, MAP_WIDTH
PROJECTOR = map_layers({"linear_1": (M, D), "linear_2": (D, M), "norm": D})
POLICY = map_layers({"fc_1": (M, D), "fc_2": (M, M), "norm": M, "mean": (D, M), "log_std": (D, M)})
SCALE = 0.5


def tensors_of(layers):
    return {
        f"{layer}.{name}": tensor
        for layer, pair in layers.items()
        for name, tensor in zip(("weight", "bias"), pair, strict=True)
    }


PAUSE_D = torch.linspace(-1, 1, D)
MAPS = {
    "projected": tensors_of(PROJECTOR),
    "gaussian": tensors_of(POLICY),
    "pause": {"row": PAUSE_D},
}
CASES |= {
    "pause": Case({"latent_kind": "pause"}, lambda model: lambda *_: PAUSE_D, {}),
    "projected": Case({"latent_kind": "projected"}, lambda model: naive.projected(PROJECTOR)),
    "gaussian mean": Case(
        {
            "latent_kind": "gaussian",
            "thought_scale": SCALE,
            "thought_temperature": 0,
            "latent_stop": "steps",
        },
        lambda model: naive.gaussian(POLICY, scale=SCALE),
        min_thoughts=1,
    ),
}


def reasoner(family, options, **more):
    loaded = [
        LoadedModel(
            model=tiny_model(family, seed),
            identity={"name": str(seed)},
            thought_files=ThoughtFiles(tensors=MAPS.get(options["latent_kind"], {})),
        )
        for seed in range(3)
    ]
    members = dict(zip(("backbone", "strong", "weak"), loaded, strict=True))
    config = RefinementConfig.parse(
        {"latent_steps": 4, "latent_markers": f"{OPENING}|{CLOSING}", **options, **more}
    )
    return Reasoner(LoadedSet(tokenizer=TOKENIZER, **members), config)


def ours(family, options, *, batch_size=5, **more):
    return results_of(reasoner(family, options, **more), batch_size)


def results_of(subject, batch_size=5):
    """Scores of each context, its greedy text, and its number of thoughts."""
    scores, texts, numbers = [], [], []
    for start in range(0, len(CONTEXTS), batch_size):
        part = CONTEXTS[start : start + batch_size]
        count = {}
        results = subject.score(
            part,
            CONTINUATIONS[start : start + batch_size],
            max_rows=3,
            record=lambda rows, number, count=count: count.update(dict.fromkeys(rows, number)),
        )
        scores += [[score.log_likelihood for score in row] for row in results]
        numbers += [count[row] for row in range(len(part))]
        texts += [answer.text for answer in subject.answer(part, max_new_tokens=4)]
    return scores, texts, numbers


def wanted(family, case, *, refined=False, stops=None, closing=None, gradient="detached"):
    """The naive loop's scores, text and number of thoughts of each context."""
    models = [tiny_model(family, seed) for seed in range(3)]
    vector = case.vector(models[0])
    refinement = naive_refinement(case, models[1:], gradient) if refined else {}
    scores, texts, numbers = [], [], []
    with torch.no_grad():
        for context, continuations in zip(CONTEXTS, CONTINUATIONS, strict=True):
            columns, actual = naive.think(
                models[0],
                context,
                vector,
                cap=4,
                opening=ids(OPENING),
                closing=ids(CLOSING) if closing is None else closing,
                stops=stops and naive.Stops(**stops),
                min_thoughts=case.min_thoughts,
                **refinement,
            )
            add_naive_results(models[0], columns, continuations, scores, texts)
            numbers.append(len(actual))
    return scores, texts, numbers


def naive_refinement(case, references, gradient="detached"):
    """The arguments of the naive loop for the refinement of `case`."""
    names = {"search_step_size": "step_size"}
    given = {names.get(name, name): value for name, value in case.refinement.items()}
    searched = {"references": references, "gradient": gradient} if "step_size" in given else {}
    return {**given, **searched}


def add_naive_results(model, columns, continuations, scores, texts):
    """Appends the naive log-likelihoods of `continuations` and the greedy text after `columns`."""
    scores.append([naive.log_likelihood(model, columns, c) for c in continuations])
    written = naive.greedy(model, columns, 4, end=TOKENIZER.eos_token_id)
    texts.append(TOKENIZER.decode(written, skip_special_tokens=True))


def assert_equal(actual, expected):
    assert actual[2] == expected[2]
    assert actual[1] == expected[1]
    for row, expected_row in zip(actual[0], expected[0], strict=True):
        assert row == pytest.approx(expected_row, abs=1e-4)


def draws_of(context, number=0, seed=3):
    return Draws.of([(context, number)], seed=seed)
