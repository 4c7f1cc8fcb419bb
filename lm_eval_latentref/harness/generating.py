"""Generation after thoughts, between lm-eval's loop over prompts and transformers' `generate`.

    class LatentRefLM(GeneratingLM): ...

The model thinks about each batch, then HFLM's call of `generate` writes the text, in batches that
are halved when memory runs out. Without thoughts and markers everything is as in HFLM.

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
    """HFLM whose text follows the context's thoughts."""

    _documents: DocumentNames
    _generation_limit: RowLimit
    _batch_texts: Sequence[str] = ()
    _batch_samples: Sequence[int] = ()
    _samples: Mapping[str, Iterator[int]] = MappingProxyType({})
    _num_thoughts: dict[str, list[int]]
    _warned_of_cut = False

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Text written after each request's context and thoughts."""
        self._documents.remember(requests)
        for gen_kwargs in _kinds_of(requests):
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
            for numbers in self._in_order(requests):
                part = [requests[number] for number in numbers]
                written = super().generate_until(part, disable_tqdm=disable_tqdm)
                for number, text in zip(numbers, written, strict=True):
                    texts[number] = text
            return texts

    def _in_order(self, requests: Sequence[Any]) -> Iterator[Sequence[int]]:
        """Numbers of requests to work on together; what their contexts begin with is read once.

        Without thoughts that is for greedy decoding only: beams go through HFLM, and samples are
        those of HFLM's own batches.
        """
        if not self.reasoner.thinks and not all(map(self._goes_on, _kinds_of(requests))):
            return iter([range(len(requests))])
        return self.reasoner.trunks.in_order([self._context_of(*r.args) for r in requests])

    def _goes_on(self, gen_kwargs: dict[str, Any]) -> bool:
        """Whether text can be written greedily after a context that is partly read."""
        options = self._options(gen_kwargs)[0]
        own = self.reasoner.backbone.causal_lm.generation_config
        try:
            check_decoding(own, options, thinks=True)
        except LatentRefError:
            return False
        return not options["do_sample"]

    def _context_of(self, string: str, gen_kwargs: dict[str, Any]) -> Tokens:
        """The token ids that `tok_batch_encode` makes of a request's context."""
        ids = self.encode_context(string, self.truncation)
        return self.cut(tuple(ids), self._num_generated_columns(self._options(gen_kwargs)[1]))

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Contexts as ids (B, C), padded on the left, with their mask."""
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
        """`context_BC` followed by the new text, (B, L), padded on the right."""
        if self.reasoner.thinks or self.reasoner.trunks.in_use:
            work = self._writer_of_thoughts(context_BC, max_length, stop, options)
        else:
            work = self._writer_as_hf(context_BC, max_length, stop, options)
        batches = in_batches(range(len(context_BC)), limit=self._generation_limit, work=work)
        written = [ids for _, results in batches for ids in results]
        longest = max(map(len, written))
        pad_id = self.tokenizer.pad_token_id
        new_ids = [ids + [pad_id] * (longest - len(ids)) for ids in written]
        new_BL = torch.tensor(new_ids, dtype=torch.long, device=context_BC.device)
        return torch.cat([context_BC, new_BL], dim=1)

    def _writer_as_hf(
        self, context_BC: Tensor, max_length: int, stop: list[str], options: dict[str, Any]
    ) -> Writer:
        mask_BC = options.pop("attention_mask")

        def work(rows: Sequence[int], _: int) -> list[list[int]]:
            ids_BC, keep_BC = context_BC[list(rows)], mask_BC[list(rows)]
            self.reasoner.backbone.activate()
            with self.reasoner.accounting.working():
                output_BL = self.write_as_hf(
                    ids_BC, max_length, stop, attention_mask=keep_BC, **options
                )
            self.reasoner.accounting.count(tokens_encoded=int(keep_BC.sum()))
            return self._new_ids(output_BL[:, ids_BC.shape[1] :], stop)

        return work

    def _writer_of_thoughts(
        self, context_BC: Tensor, max_length: int, stop: list[str], options: dict[str, Any]
    ) -> Writer:
        # Copied off the device in one go, not row by row.
        pairs = zip(context_BC.tolist(), options.pop("attention_mask").tolist(), strict=True)
        contexts = [tuple(itertools.compress(ids, keep)) for ids, keep in pairs]
        num_new = max_length - context_BC.shape[1]
        samples = self._batch_samples

        def work(rows: Sequence[int], _: int) -> list[list[int]]:
            texts = [self._batch_texts[row] for row in rows]
            part = [contexts[row] for row in rows]
            numbers = [samples[row] for row in rows]
            written: dict[int, list[int]] = {}
            with self.reasoner.accounting.working(), self._documents.naming(texts):
                with self.autocast():
                    groups = self.reasoner.think_in_groups(part, numbers)
                for members, thoughts in groups:
                    self.note_thoughts([texts[row] for row in members], thoughts.num_thoughts)
                    with self.autocast():
                        inputs = self.reasoner.generation_inputs(
                            [part[row] for row in members], thoughts
                        )
                    with self.reasoner.checking_text(members):
                        new_ids = self._write_after(inputs, num_new, stop, options)
                    written.update(zip(members, new_ids, strict=True))
            return [written[row] for row in range(len(rows))]

        return work

    def _write_after(
        self, inputs: dict[str, Any], num_new: int, stop: list[str], options: dict[str, Any]
    ) -> list[list[int]]:
        """New token ids of each row after what `inputs` say has been read."""
        ids_BK = inputs.pop("input_ids")
        num_read = ids_BK.shape[1]
        # Overrides the number of new tokens in the model's generation config.
        inputs["max_new_tokens"] = None
        output_BL = self.write_as_hf(ids_BK, num_read + num_new, stop, **inputs, **options)
        return self._new_ids(output_BL[:, num_read:], stop)

    def _new_ids(self, new_BL: Tensor, stop: list[str]) -> list[list[int]]:
        """The new ids of each row, up to where it would end if it were alone in its batch.

        HFLM's stop strings, the end-of-sequence token among them, end a batch once all of its rows
        have one; until then the others go on. HFLM cuts what follows from the text, but not what
        follows a special token, which leaves no text, nor where it drops the thinking first.
        """
        eos_id = self.tokenizer.eos_token_id
        new_ids = [list(_up_to(eos_id, ids)) for ids in new_BL.tolist()]
        if self.think_end_token is not None and len(new_ids) > 1:
            new_ids = [self.up_to_stop(ids, stop) for ids in new_ids]
        self.reasoner.count_generated(new_ids)
        return new_ids

    def note_thoughts(self, texts: Sequence[str], num_thoughts: int) -> None:
        """Record how many thoughts each of these contexts took, where that depends on the row."""
        if self.reasoner.stop is not None:
            for text in texts:
                self._num_thoughts.setdefault(text, []).append(num_thoughts)

    @contextmanager
    def logging_thoughts(self, requests: Sequence[Any]) -> Iterator[None]:
        """Add to the arguments of each request, which lm-eval logs, what was noted of its context.

        Requests whose answers come from a cache have no such entry.
        """
        self._num_thoughts = {}
        yield
        for request in {id(request): request for request in requests}.values():
            if numbers := self._num_thoughts.get(request.args[0]):
                request.arguments = (*request.args, {"latent_thoughts": numbers})

    def _check_generation(self, gen_kwargs: dict[str, Any]) -> None:
        options, num_new = self._options(gen_kwargs)
        own = self.reasoner.backbone.causal_lm.generation_config
        check_decoding(own, options, thinks=self.reasoner.thinks)
        if options["do_sample"] and not gen_kwargs.get("do_sample") and self.uses_cache:
            raise LatentRefError(
                "--use_cache with text that is sampled: lm-eval would reuse the first sample for "
                "every later one; give do_sample=True in gen_kwargs, which it never caches"
            )
        self.cut((), self._num_generated_columns(num_new))

    def _options(self, gen_kwargs: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """The arguments of `generate`, and the most tokens it may write."""
        kwargs = normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)
        num_new = kwargs.pop("max_gen_toks")
        return {name: value for name, value in kwargs.items() if name != "until"}, num_new

    def _num_generated_columns(self, max_gen_toks: int) -> int:
        # HFLM keeps a column for the last token too, although it is never read; without thoughts
        # contexts are cut exactly as in HFLM.
        return max_gen_toks if self.reasoner.thinks else max_gen_toks + 1

    def check_protocols(self, requests: Sequence[Any]) -> None:
        """Warn once of each of our tasks that asks otherwise than the checkpoint was trained."""
        trained = self.reasoner.trained_protocol
        for name in dict.fromkeys(request.task_name for request in requests):
            asked = protocols_in_use.get(str(name))
            if trained is not None and asked not in (None, trained):
                logger.warning(
                    "%s asks as protocol %s, and the checkpoint was trained on %s: give "
                    '--metadata \'{"protocol": "%s"}\'',
                    *(name, asked, trained, trained),
                )

    def _check_repeats(self, requests: Sequence[Any]) -> None:
        """Number the samples of each document; warn or refuse where repeats make no sense."""
        numbers: dict[tuple[Any, ...], int] = {}
        samples: dict[str, list[int]] = {}
        for request in requests:
            document = (request.task_name, request.doc_id, request.args[0])
            samples.setdefault(request.args[0], []).append(numbers.get(document, 0))
            numbers[document] = numbers.get(document, 0) + 1
        self._samples = {text: iter(each) for text, each in samples.items()}
        most = max(numbers.values(), default=1)
        samples_text = any(request.args[1].get("do_sample") for request in requests)
        if most > 1 and self.reasoner.config.draws and self.uses_cache:
            raise LatentRefError(
                f"--use_cache with {most} samples of a document: lm-eval would reuse the first for "
                "every other; leave --use_cache out"
            )
        if most > 1 and not self.reasoner.config.draws and not samples_text:
            logger.warning(
                "%d samples of a document and nothing is drawn at random: all will be equal; give "
                "thought_noise, or do_sample=True in --gen_kwargs",
                most,
            )

    @property
    def uses_cache(self) -> bool:
        """Whether lm-eval's response cache is in use."""
        return self.cache_hook.dbdict is not None

    def cut(self, context: Tokens, num_after: int) -> Tokens:
        """`context`, cut from the left so that it fits before `num_after` tokens."""
        # The last token is predicted but never read, so it takes no column.
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
                "more may be, without further warnings",
                len(context),
                room,
                self.max_length,
            )
        return context[-room:]

    def encode_context(self, string: str, truncation: bool = False) -> list[int]:
        """Token ids of a context as in generation; the prefix token for an empty context."""
        if self.reasoner.markers is not None:
            special = None if self.reasoner.protocol.adds_special_tokens else False
            ids = self.tok_encode(string, add_special_tokens=special) if string else []
        else:
            ids = super().tok_batch_encode([string], truncation=truncation)[0][0].tolist()
        return ids or [self.prefix_token_id]

    def autocast(self) -> torch.autocast:
        """Mixed precision, if it was asked for."""
        return torch.autocast(
            self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        )


def _kinds_of(requests: Sequence[Any]) -> list[dict[str, Any]]:
    """The different arguments of generation that requests have."""
    return list({repr(request.args[1]): request.args[1] for request in requests}.values())


def _up_to(last: int, ids: Sequence[int]) -> Sequence[int]:
    """`ids` up to the first that is `last`, which is kept."""
    return ids[: ids.index(last) + 1] if last in ids else ids
