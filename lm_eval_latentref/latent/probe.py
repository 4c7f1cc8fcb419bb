"""Checks a loaded model, with a few tokens, for every property that the thought loop relies on.

    check_model(model, name="org/model")        # LatentRefError names a property it lacks

The check takes eight forwards of at most 14 tokens, which are neither logged nor counted. Limits
that show only in long contexts are checked by `lengths`.

Shape suffixes: B batch, L columns, D hidden size, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent import transformers_seams as seams
from lm_eval_latentref.latent.caches import keeps_columns
from lm_eval_latentref.latent.lengths import check_length
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.streams import Stream
from lm_eval_latentref.latent.thoughts import Context

_NUM_TOKENS, _SHORT, _SPLIT = 9, 5, 4
"""The number of tokens, the length of the shorter row, and the index at which tokens are split."""

_WINDOW = 4
"""The width of attention windows during the check, so that nine tokens exceed it."""

_NUM_COLUMNS = 11
"""The maximum number of columns in a row: the first part, a branch and the rest."""

_ADVICE = "give a model that attends to all columns it has read, such as GPT-2, Llama or Qwen3"


@torch.no_grad()
def check_model(model: Any, name: str) -> None:
    """Raise LatentRefError unless `model` has all properties that the thought loop relies on.

    Args:
        model: a PreTrainedModel in eval mode, on its device, without adapters.
        name: the model's name, for the message.
    """
    label = f"{name} ({model.config.model_type})"
    if not keeps_columns(model):
        raise LatentRefError(
            f"{label} has layers with a state besides the keys and values of columns "
            "(state-space, linear or indexed attention); that state may depend on padding and "
            f"cannot be undone; {_ADVICE}"
        )
    check_length(model.config, _NUM_COLUMNS, name)
    with seams.silence(), warnings.catch_warnings(), seams.narrow_windows(model, _WINDOW):
        warnings.simplefilter("ignore")
        _Probe(model, label).run()


class _Probe:
    """Reads nine tokens in several ways and compares the states with reading them at once, alone.

    The rows of the padded batch are two prefixes of the nine tokens. With causal attention their
    states must equal the first states of the nine.
    """

    def __init__(self, model: Any, label: str) -> None:
        self._model, self._label = model, label
        with self._property("it has a decoder apart from its head"):
            self._network = Network(model)
        num_ids = min(model.config.get_text_config().vocab_size, 1000)
        self._ids = [(5 + 7 * number) % num_ids for number in range(_NUM_TOKENS)]
        quantised = getattr(model, "quantization_config", None) is not None
        self._exact = self._network.dtype in (torch.float32, torch.float64) and not quantised

    def run(self) -> None:
        with self._property("without thoughts it computes what its own forward computes"):
            ids_1L = torch.tensor([self._ids], device=self._network.device)
            with _watching_lookups(self._model, ids_1L) as lookups:
                own_LV = self._model(input_ids=ids_1L, use_cache=False).logits[0]
        if lookups:
            raise LatentRefError(
                f"{self._label} looks token ids up in {lookups[0]!r} besides its input embedding "
                f"(per-layer embeddings), but a thought has no token id; {_ADVICE}"
            )
        with self._property("without thoughts it computes what its own forward computes"):
            at_once_LD = Stream(self._network).feed(self._embed(self._ids))[0]
        with self._property("its last hidden states are as wide as its input embeddings"):
            if at_once_LD.shape[-1] != self._network.hidden_size:
                raise _DifferentError(f"{at_once_LD.shape[-1]} and {self._network.hidden_size}")
        with self._property("without thoughts it computes what its own forward computes"):
            self._compare(self._network.project(at_once_LD), own_LV)
        with self._property("it reads vectors that are not the embedding of a token"):
            stream, first_LD = self._read_first()
        with self._property("reading in two steps with its cache gives the same states as at once"):
            self._compare(first_LD, at_once_LD[:_SPLIT])
            stream.crop(1)
            rest_LD = stream.fork().feed(self._embed(self._ids[_SPLIT:]))[0]
            self._compare(rest_LD, at_once_LD[_SPLIT:])
        if self._network.takes_branches:
            with self._property("branches in one row have the same states as each branch alone"):
                self._compare(self._beside_a_branch(stream), at_once_LD[_SPLIT:])
        with self._property("a row's states do not depend on padding on its left"):
            stream, pending_BLD = self._read_padded(at_once_LD)
        with self._property("`generate` takes embeddings and continues from a cache"):
            self._generate(stream, pending_BLD, own_LV)

    def _embed(self, ids: list[int]) -> Tensor:
        return self._network.embed(torch.tensor([ids]))

    def _read_first(self) -> tuple[Stream, Tensor]:
        """A stream that has read the first tokens and one other vector; the tokens' states."""
        stream = Stream(self._network, can_crop=True)
        embeds_BLD = self._embed(self._ids[:_SPLIT])
        vector_BLD = embeds_BLD.mean(1, keepdim=True)
        return stream, stream.feed(torch.cat([embeds_BLD, vector_BLD], dim=1))[0, :_SPLIT]

    def _beside_a_branch(self, stream: Stream) -> Tensor:
        """Hidden states of the remaining tokens, read in one row with another branch."""
        other = self._ids[:2]
        columns = [*other, *self._ids[_SPLIT:]]
        branch_1L = torch.tensor([[0] * len(other) + [1] * (_NUM_TOKENS - _SPLIT)])
        return stream.feed_branches(self._embed(columns), branch_1L)[0, len(other) :]

    def _padded(self) -> Context:
        rows = [self._ids[:_SHORT], self._ids[:-1]]
        return Context.pad(rows, device=self._network.device)

    def _read_padded(self, expected_LD: Tensor) -> tuple[Stream, Tensor]:
        """A stream that has read all columns of both rows but the last, and the last column."""
        context = self._padded()
        assert context.mask_BC is not None
        embeds_BLD = self._network.embed(context.ids_BC)
        stream = Stream(self._network)
        states_BLD = stream.feed(embeds_BLD[:, :-1], context.mask_BC[:, :-1])
        self._compare(states_BLD[0, 1 - _SHORT :], expected_LD[: _SHORT - 1])
        self._compare(states_BLD[1], expected_LD[:-2])
        return stream, embeds_BLD[:, -1:]

    def _generate(self, stream: Stream, pending_BLD: Tensor, expected_LV: Tensor) -> None:
        """Let `generate` write two given tokens after each row, and compare its logits."""
        context = self._padded()
        assert context.mask_BC is not None
        inputs = seams.generation_inputs(
            # The id of another token: `generate` must read the embeddings, not look up the ids.
            torch.full_like(context.ids_BC, self._ids[2]),
            context.mask_BC,
            cache=stream.cache,
            num_read=stream.length,
            pending_BPD=pending_BLD,
        )
        next_ids = (self._ids[_SHORT], self._ids[-1])
        written = self._model.generate(
            **inputs,
            max_new_tokens=2,
            min_new_tokens=2,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=0,
            prefix_allowed_tokens_fn=lambda row, _: [next_ids[row]],
        )
        for step, logits_BV in enumerate(written.logits):
            self._compare(logits_BV, expected_LV[[_SHORT - 1 + step, _NUM_TOKENS - 2 + step]])

    def _compare(self, ours_LD: Tensor, expected_LD: Tensor) -> None:
        """Raise _DifferentError unless both are equal up to rounding."""
        expected_LD = expected_LD.float()
        error_L = (ours_LD.to(expected_LD) - expected_LD).norm(dim=-1)
        error_L = error_L / (expected_LD - expected_LD.mean(-1, keepdim=True)).norm(dim=-1)
        error_L = error_L[expected_LD.isfinite().all(-1)]
        if len(error_L) == 0:
            return
        # In low precision, rounding may route a token to another expert, so most must agree.
        error = error_L.max() if self._exact else error_L.median()
        if not error <= (EXACT_TOLERANCE if self._exact else ROUNDED_TOLERANCE):
            raise _DifferentError(f"the relative error is {error:.2g}")

    @contextmanager
    def _property(self, name: str) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            lines = str(error).splitlines() or [""]
            reason = lines[0]
            if not isinstance(error, _DifferentError):
                reason = f"{type(error).__name__}: {reason}"
            raise LatentRefError(
                f"{self._label} cannot be used: it fails the check that {name} ({reason}); "
                f"{_ADVICE}"
            ) from error


@contextmanager
def _watching_lookups(model: Any, ids_1L: Tensor) -> Iterator[list[str]]:
    """Yield a list of all embeddings that look up `ids_1L` in this block, except the input's."""
    names: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and args[0].shape == ids_1L.shape and torch.equal(args[0].to(ids_1L), ids_1L):
                names.append(name)

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module is not model.get_input_embeddings()
    ]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


class _DifferentError(Exception):
    """Two results that should be equal differ."""


EXACT_TOLERANCE = 1e-3
"""The maximum error at any position in float32, relative to the norm of the state or the logits;
rounding gives about 1e-6."""

ROUNDED_TOLERANCE = 0.15
"""The maximum of the median relative error over positions in lower precision; rounding gives 0.005
to 0.05."""
