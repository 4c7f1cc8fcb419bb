"""`lm_eval --model latentref`: lm-eval's HFLM with thoughts between context and continuation.

    lm_eval --model latentref --model_args pretrained=FOLDER,memory_rate=0.3 --tasks mathqa

lm-eval does prompts, scoring and reports, HFLM the placement and decoding options, `Reasoner` the
thinking; this class is the seam between them: text to token ids, batches, errors with a document's
name. It holds no maths.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from lm_eval_latentref.benchmarks.documents import loaded_splits
from lm_eval_latentref.checkpoints.arguments import check_batch_size, check_known, one_line_errors
from lm_eval_latentref.checkpoints.loading import Source, load_set, load_tokenizer
from lm_eval_latentref.checkpoints.opening import StrictAutoModel
from lm_eval_latentref.checkpoints.planning import plan_run
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.harness.distributed import prepare_processes, told
from lm_eval_latentref.harness.naming import DocumentNames
from lm_eval_latentref.harness.response_cache import check_settings
from lm_eval_latentref.harness.rolling import Request, RollingLM
from lm_eval_latentref.latent.accounting import Accounting
from lm_eval_latentref.latent.batching import (
    Group,
    RowLimit,
    Tokens,
    group_by_context,
    in_batches,
)
from lm_eval_latentref.latent.config import OPTION_NAMES, RefinementConfig
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.thoughts import Context

logger = logging.getLogger(__name__)
# Our lines appear where lm-eval's do, at the level it was told.
logging.getLogger("lm_eval_latentref").parent = logging.getLogger("lm_eval")


class LatentRefLM(RollingLM):
    """A causal language model that reasons in refined continuous thoughts.

    Args:
        pretrained: the backbone: hub id, folder, or adapter folder; None for the trained set of
            this package, smollm2-135m.
        strong: the reference to move thoughts towards; as `pretrained`, or a raw state dict.
        weak: the reference to move thoughts away from; likewise.
        weights: a raw state dict laid over `pretrained`.
        kwargs: the fields of `RefinementConfig`; all arguments of HFLM; those of `from_pretrained`.

    Raises:
        LatentRefError: something given cannot be used; the message says what and why.
    """

    batch_size_per_gpu: Any
    reasoner: Reasoner

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        strong: str | None = None,
        weak: str | None = None,
        weights: str | None = None,
        peft: str | None = None,
        gguf_file: str | None = None,
        revision: str | None = None,
        subfolder: str = "",
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> None:
        started = time.perf_counter()
        check_batch_size(kwargs.get("batch_size", 1))
        self._plan, self._refinement = plan_run(
            {name: kwargs.pop(name) for name in OPTION_NAMES if name in kwargs},
            pretrained=pretrained,
            strong=strong,
            weak=weak,
            weights=weights,
            peft=peft,
            gguf_file=gguf_file,
            revision=revision,
            subfolder=subfolder,
            tokenizer=tokenizer if isinstance(tokenizer, str) else None,
        )
        self._documents = DocumentNames()
        # HFLM would ask for CUDA where there is none.
        kwargs["device"] = kwargs.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        if kwargs.get("device_map") is not None:
            # Without it HFLM forgets the map.
            kwargs["parallelize"] = True
        self._batch_texts: list[str] = []
        self._warned_of_cut = False
        backbone = self._plan.backbone
        prepare_processes()
        with one_line_errors(backbone.base):
            super().__init__(
                backbone.base,
                revision=backbone.revision or "main",
                subfolder=backbone.subfolder,
                gguf_file=backbone.gguf_file,
                tokenizer=tokenizer,
                peft=backbone.adapter,
                **kwargs,
            )
        del self._model.tie_weights
        self.reasoner.accounting.loaded(time.perf_counter() - started)
        if hasattr(self, "accelerator"):
            # HFLM does this for several GPUs only, and with the local index.
            self._rank = self.accelerator.process_index
            self._world_size = self.accelerator.num_processes
        if self.rank == 0:
            logger.info("latentref: %s", self.reasoner.describe())

    def refine(self, config: RefinementConfig) -> None:
        """Think as `config` says from now on, with costs counted anew.

        References must be loaded if it searches: they are if the model was made with a search.
        """
        self._refinement = config
        self.reasoner = Reasoner(self.reasoner.loaded, config)

    # Loading: HFLM opens each base model, so that its placement and quantisation options hold for
    # all three; what is laid over it is ours.

    def _get_backend(self, *args: Any, **kwargs: Any) -> None:
        super()._get_backend(*args, **kwargs)
        if self.backend != "causal":
            raise LatentRefError(
                f"pretrained={self._plan.backbone.base} is a {self.backend} model; latent thoughts "
                "need a decoder-only (causal) language model, such as GPT-2, Llama or Qwen"
            )
        self.AUTO_MODEL_CLASS = StrictAutoModel

    def _create_tokenizer(
        self, pretrained: str, tokenizer: Any, *, trust_remote_code: bool = False, **kwargs: Any
    ) -> None:
        if tokenizer is not None and not isinstance(tokenizer, str):
            self.tokenizer = tokenizer
            return
        options = {
            "use_fast": kwargs["use_fast_tokenizer"],
            "add_bos_token": kwargs["add_bos_token"],
        }
        self.tokenizer = load_tokenizer(
            self._plan.backbone,
            trust_remote_code=trust_remote_code,
            **{name: value for name, value in options.items() if value is not None},
        )

    def _create_model(self, pretrained: str, **kwargs: Any) -> None:
        own = inspect.signature(HFLM._create_model).parameters
        hflm = inspect.signature(HFLM.__init__).parameters.keys() - {"self", "kwargs"}
        check_known(kwargs.keys() - own, self.config, also=hflm)
        delta = kwargs.pop("delta", None)

        def open_base(source: Source) -> PreTrainedModel:
            own = {
                "revision": source.revision or "main",
                "subfolder": source.subfolder,
                "gguf_file": source.gguf_file,
                "delta": delta if source is self._plan.backbone else None,
            }
            super(LatentRefLM, self)._create_model(source.base, **{**kwargs, **own, "peft": None})
            return self._model

        loaded = load_set(
            self._plan,
            load_model=open_base,
            tokenizer=self.tokenizer,
            trust_remote_code=bool(kwargs["trust_remote_code"]),
        )
        self._model = loaded.backbone.model
        # HFLM ties weights once more; adapters stand in the way of that by now, and the ties were
        # settled when each base was opened.
        self._model.tie_weights = _nothing_to_do
        self.reasoner = Reasoner(loaded, self._refinement)

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's facts about the model, the refinement, checkpoints and data, and the cost."""
        ours = {**self.reasoner.settings(), "data": dict(loaded_splits)}
        mine = self.reasoner.accounting.report()
        ours["cost"] = Accounting.of_all(told(self.world_size) or [mine])
        return {**super().get_model_info(), "latentref": ours}

    # Scoring.

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each request's continuation after its context and thoughts."""
        self._documents.remember(requests)
        with self._telling_cost():
            return self._loglikelihood(requests, disable_tqdm)

    def _loglikelihood(self, requests: list[Any], disable_tqdm: bool) -> list[tuple[float, bool]]:
        if self.reasoner.markers is None:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        bar = tqdm(
            [request.args for request in requests], desc="Tokenizing inputs", disable=disable_tqdm
        )
        # The end marker parts the two, so each is encoded alone and nothing is moved across.
        pairs = [
            (
                (context, continuation),
                self._encode_context(context),
                self.tok_encode(continuation, add_special_tokens=False),
            )
            for context, continuation in bar
        ]
        return self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        if override_bs is not None:
            return self._score_windows(requests, disable_tqdm)
        nothing = (self.prefix_token_id,)
        pairs = self._fit_pairs([(tuple(ctx) or nothing, tuple(cont)) for _, ctx, cont in requests])
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        bar = tqdm(
            total=len(requests),
            disable=disable_tqdm or self.rank != 0,
            desc="Running loglikelihood requests",
        )

        def work(groups: Sequence[Group], max_rows: int) -> list[list[Any]]:
            texts = [requests[group.requests[0]][0] for group in groups]
            with self._autocast(), self._documents.telling([text[0] for text in texts]):
                return self.reasoner.score(
                    [group.context for group in groups],
                    [group.continuations for group in groups],
                    max_rows=max_rows,
                )

        all_groups = group_by_context(pairs)
        for groups, results in in_batches(
            all_groups, limit=self._row_limit(len(all_groups)), work=work
        ):
            for group, scores in zip(groups, results, strict=True):
                for index, score in zip(group.requests, scores, strict=True):
                    answers[index] = (score.log_likelihood, score.is_greedy)
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
                bar.update(len(group.requests))
        bar.close()
        return answers

    def _fit_pairs(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[tuple[Tokens, Tokens]]:
        """Each pair with its context cut, from the left, to what fits with the continuation."""
        if not self.reasoner.thinks:
            return [(self._cut(context, len(cont)), cont) for context, cont in pairs]
        # All continuations of a context share its thoughts, so they share one cut.
        longest: dict[Tokens, int] = {}
        for context, continuation in pairs:
            longest[context] = max(longest.get(context, 0), len(continuation))
        return [(self._cut(context, longest[context]), cont) for context, cont in pairs]

    def _cut(self, context: Tokens, num_after: int) -> Tokens:
        # The last token is predicted, never read: it takes no column.
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

    # Generation.

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Text written after each request's context and thoughts."""
        self._documents.remember(requests)
        for gen_kwargs in {repr(request.args[1]): request.args[1] for request in requests}.values():
            self._check_generation(gen_kwargs)
        self._generation_limit = self._row_limit(len(requests))
        with self._fixed_batch_size(), self._telling_cost():
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Contexts as ids (B, C), padded on the left, with their mask."""
        self._batch_texts = list(strings)
        if not self.reasoner.thinks and "" not in strings:
            return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        rows = [tuple(self._encode_context(string, truncation)) for string in strings]
        if left_truncate_len is not None:
            num_after = self.max_length - left_truncate_len
            rows = [self._cut(row, self._num_generated_columns(num_after)) for row in rows]
        context = Context.pad(rows)
        mask_BC = context.mask_BC
        if mask_BC is None:
            mask_BC = torch.ones_like(context.ids_BC)
        return context.ids_BC, mask_BC.long()

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> Tensor:
        num_columns = context.shape[1]
        mask_BC = generation_kwargs.pop("attention_mask")

        def work(rows: Sequence[int], _: int) -> list[list[int]]:
            ids_BC, keep_BC = context[list(rows)], mask_BC[list(rows)]
            names = self._documents.telling([self._batch_texts[row] for row in rows])
            with self.reasoner.accounting.working(), names:
                inputs = self._generation_inputs(ids_BC, keep_BC)
                num_read = inputs["input_ids"].shape[1]
                with self.reasoner.checking_text():
                    output_BK = super(LatentRefLM, self)._model_generate(
                        inputs.pop("input_ids"),
                        max_length - num_columns + num_read,
                        stop,
                        **inputs,
                        **generation_kwargs,
                    )
            self.reasoner.count_generated(new_ids := output_BK[:, num_read:].tolist())
            return new_ids

        batches = in_batches(range(len(context)), limit=self._generation_limit, work=work)
        written = [ids for _, results in batches for ids in results]
        longest = max(map(len, written))
        pad_id = self.tokenizer.pad_token_id
        new_ids = [ids + [pad_id] * (longest - len(ids)) for ids in written]
        new_BL = torch.tensor(new_ids, dtype=torch.long, device=context.device)
        return torch.cat([context, new_BL], dim=1)

    def _generation_inputs(self, ids_BC: Tensor, mask_BC: Tensor) -> dict[str, Any]:
        self.reasoner.backbone.activate()
        if not self.reasoner.thinks:
            self.reasoner.accounting.count(tokens_encoded=int(mask_BC.sum()))
            return {"input_ids": ids_BC, "attention_mask": mask_BC}
        # Off the device at once, not row by row.
        pairs = zip(ids_BC.tolist(), mask_BC.tolist(), strict=True)
        rows = [tuple(itertools.compress(ids, keep)) for ids, keep in pairs]
        with self._autocast():
            return self.reasoner.generation_inputs(rows, self.reasoner.think(rows))

    def _check_generation(self, gen_kwargs: dict[str, Any]) -> None:
        kwargs = normalize_gen_kwargs(gen_kwargs, self.max_gen_toks)
        by_default = self.reasoner.backbone.causal_lm.generation_config.num_beams
        num_beams = int(kwargs.get("num_beams") or by_default or 1)
        if num_beams > 1:
            raise LatentRefError(
                f"num_beams={num_beams}: beam search is not possible with latent thoughts; use "
                "greedy decoding (num_beams=1) or sampling (do_sample=True)"
            )
        self._cut((), self._num_generated_columns(kwargs["max_gen_toks"]))

    def _num_generated_columns(self, max_gen_toks: int) -> int:
        # hf keeps a column for the last token too, though it is never read; without thoughts we
        # cut where it does.
        return max_gen_toks if self.reasoner.thinks else max_gen_toks + 1

    # Shared by both.

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take lm-eval's response cache, unless it holds answers made under other settings."""
        names = (
            *("max_length", "add_bos_token", "custom_prefix_token_id", "truncation"),
            *("think_end_token", "delta", "mixed_precision_dtype", "softmax_dtype"),
        )
        config = self.model.config
        others = {
            **{name: str(getattr(self, name)) for name in names},
            "tokenizer": self.tokenizer.name_or_path,
            "attn_implementation": config._attn_implementation,
            "quantization": str(getattr(config, "quantization_config", None)),
        }
        check_settings(cache_hook, {**self.reasoner.settings(), **others})
        super().set_cache_hook(cache_hook)

    def _encode_context(self, string: str, truncation: bool = False) -> list[int]:
        if self.reasoner.markers is not None:
            ids = self.tok_encode(string) if string else []
        else:
            ids = super().tok_batch_encode([string], truncation=truncation)[0][0].tolist()
        return ids or [self.prefix_token_id]

    def _row_limit(self, num_items: int) -> RowLimit:
        # HFLM would size `auto` by a plain forward pass; here the real work is tried, and halved
        # when it does not fit. `auto:N` tries the most again N times.
        if self.batch_size != "auto":
            return RowLimit(self.batch_size, num_items=num_items)
        num_tries = max(1, int(self.batch_schedule))
        return RowLimit(self.max_batch_size, num_items=num_items, num_tries=num_tries)

    @contextmanager
    def _fixed_batch_size(self) -> Iterator[None]:
        asked_for = self.batch_size_per_gpu
        self.batch_size_per_gpu = self._generation_limit.rows
        try:
            yield
        finally:
            self.batch_size_per_gpu = asked_for

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        )


def _nothing_to_do(*_: Any, **__: Any) -> None:
    return
