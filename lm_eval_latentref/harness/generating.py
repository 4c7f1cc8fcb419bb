"""`generate_until` with thoughts between the context and the generated text.

    class LatentRefLM(GeneratingLM): ...

The model thinks about each batch, then HFLM's call of `generate` writes the text. Batches are
halved when memory runs out. Without thoughts and markers the results are those of HFLM.

Shape suffixes: B batch, C context columns, K columns read, L columns of context and text.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor

from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.naming import DocumentNames
from lm_eval_latentref.harness.protocol_task import protocols_in_use
from lm_eval_latentref.harness.rolling import RollingLM
from lm_eval_latentref.latent.batching import RowLimit, Tokens, in_batches
from lm_eval_latentref.latent.decoding import check_decoding
from lm_eval_latentref.latent.thoughts import Context

logger = logging.getLogger(__name__)


Writer = Callable[[Sequence[int], int], list[list[int]]]
"""Takes row numbers and a row limit; returns the new token ids of each row."""


class GeneratingLM(RollingLM):
    """HFLM that thinks about each context before it generates text."""

    _documents: DocumentNames
    _generation_limit: RowLimit
    _batch_texts: Sequence[str] = ()
    _batch_samples: Sequence[int] = ()
    _samples: Mapping[str, Iterator[int]] = MappingProxyType({})
    _num_thoughts: dict[str, list[int]]
    _warned_of_cut = False

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The text generated after each request's context and thoughts."""
        self._documents.remember(requests)
        for gen_kwargs in _distinct_gen_kwargs(requests):
            self._check_generation(gen_kwargs)
        self._check_repeats(requests)
        self.check_protocols(requests)
        self._generation_limit = self.row_limit(len(requests))
        with (
            self.batches_of(self._generation_limit.rows),
            self.counting_cost(),
            self.logging_thoughts(requests),
        ):
            texts = [""] * len(requests)
            for indices in self._in_order(requests):
                group = [requests[index] for index in indices]
                new_texts = super().generate_until(group, disable_tqdm=disable_tqdm)
                for index, text in zip(indices, new_texts, strict=True):
                    texts[index] = text
            return texts

    def _in_order(self, requests: Sequence[Any]) -> Iterator[Sequence[int]]:
        """Yield indices of requests to process together, whose shared prefix is read once.

        Without thoughts prefixes are shared for greedy decoding only, so that beam search and
        sampling run in the same batches as in HFLM.
        """
        can_share = self.reasoner.thinks or all(
            map(self._is_greedy, _distinct_gen_kwargs(requests))
        )
        if not can_share:
            return iter([range(len(requests))])
        return self.reasoner.trunks.in_order([self._context_of(*r.args) for r in requests])

    def _is_greedy(self, gen_kwargs: dict[str, Any]) -> bool:
        """Whether these arguments mean greedy decoding that can continue from a cache."""
        options = self._options(gen_kwargs)[0]
        own = self.reasoner.backbone.causal_lm.generation_config
        try:
            check_decoding(own, options, thinks=True)
        except LatentRefError:
            return False
        return not options["do_sample"]

    def _context_of(self, string: str, gen_kwargs: dict[str, Any]) -> Tokens:
        """The token ids of a request's context, as `tok_batch_encode` encodes and cuts it."""
        ids = self.encode_context(string, self.truncation)
        return self.cut(tuple(ids), self._num_generated_columns(self._options(gen_kwargs)[1]))

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Left-padded token ids (B, C) of the contexts, and their mask (B, C) of 0 and 1."""
        self._batch_texts = list(strings)
        self._batch_samples = [next(self._samples.get(text, iter(())), 0) for text in strings]
        if not self.reasoner.thinks and "" not in strings:
            return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        rows = [tuple(self.encode_context(string, truncation)) for string in strings]
        if left_truncate_len is not None:
            num_after = self.max_length - left_truncate_len
            rows = [self.cut(row, self._num_generated_columns(num_after)) for row in rows]
        context = Context.pad(rows)
        mask_BC = context.mask_BC
        if mask_BC is None:
            mask_BC = torch.ones_like(context.ids_BC)
        return context.ids_BC, mask_BC.long()

    def write(self, context_BC: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """`context_BC` followed by the new text, (B, L), padded on the right.

        Args:
            max_length: the most columns of context and text.
            stop: the stop strings.
            options: the other arguments of `generate`, `attention_mask` (B, C) among them.
        """
        if self.reasoner.thinks or self.reasoner.trunks.in_use:
            writer = self._writer_with_thoughts(context_BC, max_length, stop, options)
        else:
            writer = self._writer_as_hf(context_BC, max_length, stop, options)
        batches = in_batches(range(len(context_BC)), limit=self._generation_limit, work=writer)
        new_ids = [ids for _, results in batches for ids in results]
        longest = max(map(len, new_ids))
        pad_id = self.tokenizer.pad_token_id
        padded_ids = [ids + [pad_id] * (longest - len(ids)) for ids in new_ids]
        new_BL = torch.tensor(padded_ids, dtype=torch.long, device=context_BC.device)
        return torch.cat([context_BC, new_BL], dim=1)

    def _writer_as_hf(
        self, context_BC: Tensor, max_length: int, stop: list[str], options: dict[str, Any]
    ) -> Writer:
        mask_BC = options.pop("attention_mask")

        def write(rows: Sequence[int], _: int) -> list[list[int]]:
            ids_BC, keep_BC = context_BC[list(rows)], mask_BC[list(rows)]
            self.reasoner.backbone.activate()
            with self.reasoner.accounting.working():
                output_BL = self.write_as_hf(
                    ids_BC, max_length, stop, attention_mask=keep_BC, **options
                )
            self.reasoner.accounting.count(tokens_encoded=int(keep_BC.sum()))
            return self._new_ids(output_BL[:, ids_BC.shape[1] :], stop)

        return write

    def _writer_with_thoughts(
        self, context_BC: Tensor, max_length: int, stop: list[str], options: dict[str, Any]
    ) -> Writer:
        # One copy from the device for all rows.
        pairs = zip(context_BC.tolist(), options.pop("attention_mask").tolist(), strict=True)
        contexts = [tuple(itertools.compress(ids, keep)) for ids, keep in pairs]
        num_new = max_length - context_BC.shape[1]
        samples = self._batch_samples

        def write(rows: Sequence[int], _: int) -> list[list[int]]:
            texts = [self._batch_texts[row] for row in rows]
            batch = [contexts[row] for row in rows]
            new_ids: dict[int, list[int]] = {}
            with self.reasoner.accounting.working(), self._documents.naming_rows(texts):
                with self.autocast():
                    groups = self.reasoner.think_in_groups(batch, [samples[row] for row in rows])
                for members, thoughts in groups:
                    self.record_thoughts([texts[row] for row in members], thoughts.num_thoughts)
                    with self.autocast():
                        inputs = self.reasoner.generation_inputs(
                            [batch[row] for row in members], thoughts
                        )
                    with self.reasoner.checking_states(members):
                        group_ids = self._write_after(inputs, num_new, stop, options)
                    new_ids.update(zip(members, group_ids, strict=True))
            return [new_ids[row] for row in range(len(rows))]

        return write

    def _write_after(
        self, inputs: dict[str, Any], num_new: int, stop: list[str], options: dict[str, Any]
    ) -> list[list[int]]:
        """New token ids of each row, at most `num_new`; `inputs` are those of the Reasoner."""
        ids_BK = inputs.pop("input_ids")
        num_read = ids_BK.shape[1]
        # None overrides the value in the model's generation config; max_length counts instead.
        inputs["max_new_tokens"] = None
        output_BL = self.write_as_hf(ids_BK, num_read + num_new, stop, **inputs, **options)
        return self._new_ids(output_BL[:, num_read:], stop)

    def _new_ids(self, new_BL: Tensor, stop: list[str]) -> list[list[int]]:
        """The new ids of each row, cut to the length they would have in a batch of this row alone.

        HFLM ends a batch when every row has a stop string or the end-of-sequence token; rows that
        have ended go on being extended until then. HFLM removes such text after a stop string, but
        not after a special token, which leaves no text, and not if it removes the thinking part
        before `think_end_token` first.
        """
        eos_id = self.tokenizer.eos_token_id
        new_ids = [list(_up_to(eos_id, ids)) for ids in new_BL.tolist()]
        if self.think_end_token is not None and len(new_ids) > 1:
            new_ids = [self.up_to_stop(ids, stop) for ids in new_ids]
        self.reasoner.count_generated(new_ids)
        return new_ids

    def record_thoughts(self, texts: Sequence[str], num_thoughts: int) -> None:
        """Record the number of thoughts about each of these contexts, if rows can stop early."""
        if self.reasoner.stop is not None:
            for text in texts:
                self._num_thoughts.setdefault(text, []).append(num_thoughts)

    @contextmanager
    def logging_thoughts(self, requests: Sequence[Any]) -> Iterator[None]:
        """After this block, append the recorded numbers of thoughts to each request's arguments.

        lm-eval logs these arguments. A request answered from the response cache has no such entry.
        """
        self._num_thoughts = {}
        yield
        for request in {id(request): request for request in requests}.values():
            if num_thoughts := self._num_thoughts.get(request.args[0]):
                request.arguments = (*request.args, {"latent_thoughts": num_thoughts})

    def _check_generation(self, gen_kwargs: dict[str, Any]) -> None:
        options, num_new = self._options(gen_kwargs)
        own = self.reasoner.backbone.causal_lm.generation_config
        check_decoding(own, options, thinks=self.reasoner.thinks)
        if options["do_sample"] and not gen_kwargs.get("do_sample") and self.uses_cache:
            raise LatentRefError(
                "--use_cache with text that is sampled: lm-eval would reuse the first sample for "
                "all later samples; give do_sample=True in gen_kwargs, and lm-eval does not cache"
            )
        self.cut((), self._num_generated_columns(num_new))

    def _options(self, gen_kwargs: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """The arguments for `generate`, and the maximum number of new tokens."""
        kwargs = normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)
        num_new = kwargs.pop("max_gen_toks")
        return {name: value for name, value in kwargs.items() if name != "until"}, num_new

    def _num_generated_columns(self, max_gen_toks: int) -> int:
        # The last token is written but not read. HFLM reserves a column for it nevertheless;
        # without thoughts contexts are cut exactly as in HFLM.
        return max_gen_toks if self.reasoner.thinks else max_gen_toks + 1

    def check_protocols(self, requests: Sequence[Any]) -> None:
        """Warn once for each of our tasks whose protocol differs from the checkpoint's."""
        trained = self.reasoner.trained_protocol
        for name in dict.fromkeys(request.task_name for request in requests):
            used = protocols_in_use.get(str(name))
            if trained is not None and used not in (None, trained):
                logger.warning(
                    "%s uses protocol %s, but the checkpoint was trained with %s: give "
                    '--metadata \'{"protocol": "%s"}\'',
                    *(name, used, trained, trained),
                )

    def _check_repeats(self, requests: Sequence[Any]) -> None:
        """Number the samples of each document; refuse or warn if they would all be equal."""
        num_seen: dict[tuple[Any, ...], int] = {}
        samples: dict[str, list[int]] = {}
        for request in requests:
            document = (request.task_name, request.doc_id, request.args[0])
            samples.setdefault(request.args[0], []).append(num_seen.get(document, 0))
            num_seen[document] = num_seen.get(document, 0) + 1
        self._samples = {text: iter(numbers) for text, numbers in samples.items()}
        most = max(num_seen.values(), default=1)
        samples_text = any(request.args[1].get("do_sample") for request in requests)
        if most > 1 and self.reasoner.config.draws and self.uses_cache:
            raise LatentRefError(
                f"--use_cache with {most} samples of a document: lm-eval would reuse the first "
                "sample for all others; leave --use_cache out"
            )
        if most > 1 and not self.reasoner.config.draws and not samples_text:
            logger.warning(
                "%d samples of a document, but nothing is random: all samples will be equal; give "
                "thought_noise, or do_sample=True in --gen_kwargs",
                most,
            )

    @property
    def uses_cache(self) -> bool:
        """Whether lm-eval's response cache is in use."""
        return self.cache_hook.dbdict is not None

    def cut(self, context: Tokens, num_after: int) -> Tokens:
        """`context`, cut from the left so that thoughts and `num_after` more tokens fit."""
        # The last token is predicted but not read, so it takes no column.
        room = self.max_length + 1 - self.reasoner.num_extra_columns - num_after
        if room < 1:
            raise LatentRefError(
                f"no room for a single context token: max_length={self.max_length}, "
                f"{self.reasoner.num_extra_columns} columns of thoughts and markers, {num_after} "
                "tokens after them; raise max_length or lower latent_steps or max_gen_toks"
            )
        if len(context) > room and not self._warned_of_cut:
            self._warned_of_cut = True
            logger.warning(
                "a context of %d tokens is cut from the left to the %d that fit max_length=%d; "
                "there is no further warning if more contexts are cut",
                len(context),
                room,
                self.max_length,
            )
        return context[-room:]

    def encode_context(self, string: str, truncation: bool = False) -> list[int]:
        """Token ids of a context for generation; an empty context becomes the prefix token."""
        if self.reasoner.markers is not None:
            special = None if self.reasoner.protocol.adds_special_tokens else False
            ids = self.tok_encode(string, add_special_tokens=special) if string else []
        else:
            ids = super().tok_batch_encode([string], truncation=truncation)[0][0].tolist()
        return ids or [self.prefix_token_id]

    def autocast(self) -> torch.autocast:
        """The autocast context for `mixed_precision_dtype`; disabled if that is None."""
        return torch.autocast(
            self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        )


def _distinct_gen_kwargs(requests: Sequence[Any]) -> list[dict[str, Any]]:
    """The distinct generation arguments of all requests."""
    return list({repr(request.args[1]): request.args[1] for request in requests}.values())


def _up_to(last: int, ids: Sequence[int]) -> Sequence[int]:
    """`ids` up to and including the first `last`; all if there is none."""
    return ids[: ids.index(last) + 1] if last in ids else ids
