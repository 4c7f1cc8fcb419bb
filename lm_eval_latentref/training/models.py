"""Makes or opens models for training, adds marker tokens, and saves them so that `load` opens them.

    trainee = build(recipe, words=words(texts), latent=False)
    save(trainee, "out/strong", Manifest(latent_steps=0))
    trainee = build(recipe, words=(), latent=True, start="out/strong")

Training updates either all weights, or a LoRA adapter and the embeddings of the marker tokens. The
tokenizer of a new model has one token for each word of the training data. Words are separated by
spaces; a newline is a word of its own. Text whose words are separated by single spaces or newlines
is the same after encoding and decoding.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lm_eval_latentref.checkpoints import vocabulary
from lm_eval_latentref.checkpoints.census import Census, touches_base
from lm_eval_latentref.checkpoints.convert import base_name
from lm_eval_latentref.checkpoints.files import one_line
from lm_eval_latentref.checkpoints.manifest import Manifest, write_manifest
from lm_eval_latentref.checkpoints.opening import default_loader, load_tokenizer, open_model
from lm_eval_latentref.checkpoints.sources import Source
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.peft_seams import making
from lm_eval_latentref.latent.probe import check_model
from lm_eval_latentref.latent.protocol import answer_text, known_markers
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.training.recipe import Recipe
from lm_eval_latentref.training.start import changes_its_base, load_adapter, open_start

ADAPTER = "default"
"""The name PEFT gives the adapter in training."""


@dataclass(kw_only=True)
class Trainee:
    """A model in training, with its tokenizer."""

    model: Any
    """A PreTrainedModel, or a PeftModel whose only adapter is trained."""
    tokenizer: Any
    adapter: str | None = None
    """The name of the trained adapter; None if all weights are trained."""

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trained weights by name; a weight that two modules share occurs once."""
        named = self.model.named_parameters()
        return {name: weight for name, weight in named if weight.requires_grad}

    def network(self) -> Network:
        return Network(self.model, adapter=self.adapter)

    def reasoner(self, config: RefinementConfig) -> Reasoner:
        """The model as evaluation sees it; the caller sets the eval mode."""
        loaded = LoadedModel(model=self.model, adapter=self.adapter, identity={"name": "trainee"})
        return Reasoner(LoadedSet(tokenizer=self.tokenizer, backbone=loaded), config)


def build(
    recipe: Recipe,
    *,
    words: Iterable[str],
    latent: bool,
    start: str | os.PathLike[str] | None = None,
) -> Trainee:
    """The model of `recipe` at the start of a phase, on the CPU, in training mode.

    Args:
        words: the vocabulary of a new model.
        latent: whether the model needs the marker tokens.
        start: a folder written by `save` to start from; None to start as the recipe says.

    Raises:
        LatentRefError: a model that the recipe names cannot be opened, or does not fit `lora` or
            `start`.
    """
    if recipe.lora is not None:
        return _build_adapter(recipe, latent, start)
    if start is not None:
        source = Source(base=os.fspath(start))
        trainee = _open(source, "float32")
    elif recipe.pretrained is not None:
        trainee = _open(_plain_source(recipe.pretrained), "float32")
    else:
        trainee = _make(recipe, words)
    if latent:
        _add_markers(trainee)
    trainee.model.train()
    return trainee


def save(trainee: Trainee, folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Writes the model, its tokenizer and latentref.json into the existing `folder`."""
    if trainee.adapter is not None:
        # The base keeps its own embedding; the markers' rows are part of the adapter.
        trainee.model.save_pretrained(folder, save_embedding_layers=False)
        Path(folder, "README.md").unlink(missing_ok=True)  # an empty template
    else:
        trainee.model.save_pretrained(folder)
    trainee.tokenizer.save_pretrained(folder)
    write_manifest(folder, manifest)


def state(trainee: Trainee) -> dict[str, Tensor]:
    """The trained weights, on the CPU."""
    return {name: weight.detach().cpu() for name, weight in trainee.trained.items()}


def restore(trainee: Trainee, weights: dict[str, Tensor]) -> None:
    """Restores weights returned by `state`; the names must be the same."""
    trained = trainee.trained
    assert trained.keys() == weights.keys(), "the state belongs to another model"
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(weights[name])


def _open(source: Source, dtype: str) -> Trainee:
    tokenizer = load_tokenizer(source)
    model = open_model(default_loader(dtype=getattr(torch, dtype)), source)
    if tokenizer.eos_token_id is None:
        raise LatentRefError(
            f"the tokenizer of {source.name or source.base} has no EOS token to end answers with; "
            "give a model whose tokenizer has one"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Trainee(model=model, tokenizer=tokenizer)


def _plain_source(name: str) -> Source:
    source = open_start(name)
    if source.adapter is not None:
        raise LatentRefError(
            f"{name} is an adapter; run `latentref convert` on it and give that folder"
        )
    return source


def _make(recipe: Recipe, words: Iterable[str]) -> Trainee:
    """A new model with random weights, determined by the seed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    assert recipe.config is not None
    tokenizer = make_word_tokenizer(words)
    values = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **recipe.config,
    }
    try:
        config = AutoConfig.for_model(**values)
        torch.manual_seed(recipe.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _set_start(model, tokenizer, recipe)
    except Exception as error:  # each configuration class raises errors of its own
        raise LatentRefError(
            f"config={recipe.config} gives no causal language model ({one_line(error)}); see the "
            "configuration class of its model_type in transformers"
        ) from error
    check_model(model.eval(), "config")
    return Trainee(model=model, tokenizer=tokenizer)


@torch.no_grad()
def _set_start(model: Any, tokenizer: Any, recipe: Recipe) -> None:
    """Sets initial values that the configuration of a new model cannot express."""
    weight_VD = model.get_input_embeddings().weight
    if recipe.embedding_std is not None:
        weight_VD.normal_(0.0, recipe.embedding_std)
    if recipe.spelled_embeddings:
        special = set(tokenizer.all_special_tokens)
        _spell(weight_VD, {w: i for w, i in tokenizer.get_vocab().items() if w not in special})
    if recipe.final_norm is not None:
        # A decoder's final norm is the last of its own modules that has a weight.
        decoder = getattr(model, model.base_model_prefix)
        weighted = [part for part in decoder.children() if hasattr(part, "weight")]
        weighted[-1].weight.fill_(recipe.final_norm)


def _spell(weight_VD: Tensor, vocabulary: Mapping[str, int]) -> None:
    """Replaces the embeddings of words by sums of their characters', one rotation for each place.

    The embedding of a character is that of the word which consists of it alone, else a random one
    of the same size. The sums lose their mean, which is large if all words have a character in
    common, and get the size of the other embeddings.
    """
    std, size = weight_VD.std().item(), weight_VD.shape[1]
    words = sorted(word for word in vocabulary if len(word) > 1)
    if not words:
        return
    embedding = {
        character: weight_VD[vocabulary[character]].clone()
        if character in vocabulary
        else torch.empty(size).normal_(0.0, std)
        for character in sorted(set("".join(words)))
    }
    rotations = [torch.linalg.qr(torch.randn(size, size)).Q for _ in max(words, key=len)]
    sums_ND = torch.stack(
        [
            torch.stack(
                [turn @ embedding[each] for turn, each in zip(rotations, word, strict=False)]
            ).sum(0)
            for word in words
        ]
    )
    sums_ND -= sums_ND.mean(0)
    weight_VD[[vocabulary[word] for word in words]] = sums_ND * (std / sums_ND.std())


def _build_adapter(recipe: Recipe, latent: bool, start: str | os.PathLike[str] | None) -> Trainee:
    from peft import LoraConfig, get_peft_model

    assert recipe.pretrained is not None
    assert recipe.lora is not None
    source = open_start(recipe.pretrained)
    if source.adapter is not None:  # its training is continued
        start = source.adapter if start is None else start
        source = dataclasses.replace(source, adapter=None, tokenizer=None)
    base = base_name(source)  # before anything large is loaded
    trainee = _open(source, recipe.dtype)
    marker_ids = _add_markers(trainee) if latent else []
    values = {"task_type": "CAUSAL_LM", "revision": source.revision, **recipe.lora}
    if marker_ids:
        embedding = trainee.model.get_input_embeddings()
        (name,) = (n for n, m in trainee.model.named_modules() if m is embedding)
        values["trainable_token_indices"] = {name.rsplit(".", 1)[-1]: marker_ids}
    torch.manual_seed(recipe.seed)
    before = Census(trainee.model)
    try:
        config = LoraConfig(**values)
        with making():
            model = get_peft_model(trainee.model, config, adapter_name=ADAPTER)
    except Exception as error:
        raise LatentRefError(
            f"lora={recipe.lora} cannot be applied to {recipe.pretrained} ({one_line(error)}); see "
            "LoraConfig in peft"
        ) from error
    if touches_base(model, before):
        raise changes_its_base(recipe)
    model.peft_config[ADAPTER].base_model_name_or_path = base
    if start is not None:
        load_adapter(model, ADAPTER, start, recipe)
    model.train()
    return dataclasses.replace(trainee, model=model, adapter=ADAPTER)


def _add_markers(trainee: Trainee) -> list[int]:
    """Adds the missing marker tokens; returns the ids of all markers.

    Their embeddings are copies of a known token's, as in facebookresearch/coconut, which reports
    that this makes training more stable.
    """
    tokenizer, model = trainee.tokenizer, trainee.model
    before = known_markers(tokenizer)
    source_id = _initial_id(tokenizer)
    vocabulary.add_markers(tokenizer)
    after = known_markers(tokenizer)
    new_ids = sorted(after[marker] for marker in after.keys() - before.keys())
    if len(tokenizer) > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for token_id in new_ids:
                layer.weight[token_id] = layer.weight[source_id]
    return sorted(after.values())


def _initial_id(tokenizer: Any) -> int:
    for text in ("<<", "\n"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return ids[0]
    return tokenizer.eos_token_id


END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"


def words(texts: Iterable[str]) -> list[str]:
    """The distinct words of `texts` and of the prompt protocol, sorted."""
    distinct = {"\n", answer_text("").strip()}
    for text in texts:
        distinct.update(re.findall(r"\n|[^ \n]+", text))
    return sorted(distinct)


def make_word_tokenizer(vocabulary: Iterable[str]) -> Any:
    """A PreTrainedTokenizerFast whose tokens are `vocabulary`, end-of-text and unknown.

    End-of-text is also the padding token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate([END_OF_TEXT, UNKNOWN, *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    # WordPiece's decoder puts a space before each token but the first; no token has this prefix.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="\0", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(" \n", "\n"),
            decoders.Replace("\n ", "\n"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
