"""No buffer grows with the square of the context, and logits are made of scored positions only."""

from __future__ import annotations

import pytest
import torch
from matrix import crossed
from thought_cases import BOTH
from tiny import FAMILIES, VOCAB_SIZE, random_ids, tiny_model, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lm_eval_latentref.latent import streams
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.reasoner import Reasoner

SHORTER, LONGER = 190, 200
CONTEXTS = [random_ids(number, seed=number) for number in (SHORTER, LONGER)]
CONTINUATIONS = [[random_ids(3, seed=1), random_ids(2, seed=2)]] * 2
NUM_SCORED = sum(len(tokens) for choices in CONTINUATIONS for tokens in choices)
NUM_NEW = 4


class Shapes(TorchDispatchMode):
    """Collects the shapes of all tensors that operators return, except views of the weights."""

    def __init__(self, models):
        super().__init__()
        held = [weight for model in models for weight in (*model.parameters(), *model.buffers())]
        self.weights = {weight.untyped_storage().data_ptr() for weight in held}
        self.all = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, torch.Tensor)
                and tensor.untyped_storage().data_ptr() not in self.weights
            ):
                self.all.add(tuple(tensor.shape))
        return result


def shapes(family, work):
    names = ("backbone", "strong", "weak")
    models = [tiny_model(family, seed) for seed in range(3)]
    members = [LoadedModel(model=model, identity={"name": "tiny"}) for model in models]
    loaded = dict(zip(names, members, strict=True))
    reasoner = Reasoner(LoadedSet(tokenizer=tiny_tokenizer(), **loaded), BOTH)
    with Shapes(models) as collected:
        work(reasoner)
    return collected.all


def score(reasoner):
    reasoner.score(CONTEXTS, CONTINUATIONS, max_rows=4)


def score_without_padding(reasoner):
    reasoner.score(CONTEXTS[:1], CONTINUATIONS[:1], max_rows=4)


def write(reasoner):
    reasoner.answer(CONTEXTS, max_new_tokens=NUM_NEW)


def square(collected):
    return [shape for shape in collected if sum(size >= SHORTER for size in shape) > 1]


@pytest.mark.parametrize(
    ("family", "work"), crossed(FAMILIES, [score, score_without_padding, write], every=3)
)
def test_no_buffer_has_two_dimensions_as_long_as_the_context(family, work, monkeypatch):
    monkeypatch.setattr(streams, "COLUMNS_AT_ONCE", 16)
    assert not square(shapes(family, work))


def test_a_mask_over_all_columns_at_once_would_be_seen():
    assert square(shapes("llama", score))


@pytest.mark.parametrize("work", [score, write])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_logits_are_made_of_scored_positions_only(family, work):
    rows = [torch.Size(s).numel() // VOCAB_SIZE for s in shapes(family, work) if VOCAB_SIZE in s]
    assert 0 < max(rows) <= (NUM_SCORED if work is score else len(CONTEXTS))


def test_freed_memory_is_given_back_before_each_model_reads_many_columns(monkeypatch):
    given_back = []
    monkeypatch.setattr(streams, "give_back_memory", lambda: given_back.append(1))
    monkeypatch.setattr(streams, "MANY_COLUMNS", 2 * LONGER)
    shapes("llama", score)
    assert len(given_back) == 3
    shapes("llama", score_without_padding)
    assert len(given_back) == 3
