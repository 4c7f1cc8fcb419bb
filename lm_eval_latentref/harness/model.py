"""`lm_eval --model latentref`: lm-eval's HFLM with thoughts between context and continuation.

    lm_eval --model latentref --model_args pretrained=FOLDER,memory_rate=0.3 --tasks mathqa

lm-eval builds prompts, metrics and reports; HFLM handles placement and decoding options; `Reasoner`
thinks. The class here connects them: it loads the models and scores choices. Its base classes
generate text (`generating`) and score whole texts (`rolling`).
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm
from transformers import PreTrainedModel

from lm_eval_latentref.benchmarks.documents import of_evaluations
from lm_eval_latentref.checkpoints.arguments import check_batch_size, check_known, one_line_errors
from lm_eval_latentref.checkpoints.loading import load_set
from lm_eval_latentref.checkpoints.opening import StrictAutoModel, load_tokenizer
from lm_eval_latentref.checkpoints.sets import CheckpointNames, SetPlan, plan_run, take_names
from lm_eval_latentref.checkpoints.sources import Source
from lm_eval_latentref.errors import LatentRefError, without_secrets
from lm_eval_latentref.harness.arguments import (
    check_values,
    decisive,
    device_or_default,
    model_digest,
    tokenizer_digest,
)
from lm_eval_latentref.harness.distributed import prepare_processes
from lm_eval_latentref.harness.generating import GeneratingLM
from lm_eval_latentref.harness.lm_eval_seams import Request, loading_arguments, log_as_lm_eval
from lm_eval_latentref.harness.naming import DocumentNames
from lm_eval_latentref.harness.response_cache import check_settings
from lm_eval_latentref.latent.accounting import Accounting
from lm_eval_latentref.latent.batching import Group, Tokens, group_by_context, in_batches
from lm_eval_latentref.latent.config import OPTION_NAMES, RefinementConfig
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet
from lm_eval_latentref.latent.probe import check_model
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.transformers_seams import attention_of

logger = logging.getLogger(__name__)


class LatentRefLM(GeneratingLM):
    """A causal language model that reasons in refined continuous thoughts.

    Args:
        pretrained: the backbone: a hub id, a folder or an adapter folder; None: the packaged set
            smollm2-135m. Alternatively a loaded model, without references, or a plan returned by
            `resolve`.
        tokenizer: a name or an object that replaces the backbone's own tokenizer.
        kwargs: other names of checkpoints (`strong`, `weak`, `weights`, ...: the fields of
            `CheckpointNames`), the fields of `RefinementConfig`, and all arguments of HFLM and of
            `from_pretrained`.

    Raises:
        LatentRefError: an argument cannot be used; the message gives the argument and the reason.
    """

    reasoner: Reasoner
    _reports: list[dict[str, Any]] | None = None
    """In the first process: the cost of every process, collected at the last barrier."""
    _shown_arguments: dict[str, Any] | None = None
    """The model arguments, without secrets."""

    def __init__(
        self,
        pretrained: str | PreTrainedModel | SetPlan | None = None,
        *,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> None:
        started = time.perf_counter()
        log_as_lm_eval()
        check_batch_size(kwargs.get("batch_size", 1))
        check_values(kwargs)
        options = {name: kwargs.pop(name) for name in OPTION_NAMES if name in kwargs}
        self._decisive = decisive(kwargs)
        kwargs["device"] = device_or_default(kwargs.get("device"))
        if kwargs.get("device_map") is not None:
            # Without `parallelize` HFLM ignores the device map.
            kwargs["parallelize"] = True
        self._max_length = kwargs.get("max_length")  # HFLM sets it too late
        self._documents = DocumentNames()
        if isinstance(tokenizer, str):
            kwargs["tokenizer"] = tokenizer
        if isinstance(pretrained, torch.nn.Module):
            _check_loaded(pretrained, CheckpointNames.taken_from(kwargs))
            self._plan = SetPlan(backbone=Source(base=str(pretrained.name_or_path)))
            self._refinement = RefinementConfig.parse(options)
            self._set_up(pretrained, tokenizer=tokenizer, **kwargs)
            self._take_loaded(pretrained)
        else:
            self._plan, self._refinement = plan_run(take_names(pretrained, kwargs), options)
            backbone = self._plan.backbone
            self._set_up(
                backbone.base,
                revision=backbone.revision or "main",
                subfolder=backbone.subfolder,
                gguf_file=backbone.gguf_file,
                tokenizer=tokenizer,
                peft=backbone.adapter,
                **kwargs,
            )
        self.reasoner.accounting.loaded(time.perf_counter() - started)
        if self.rank == 0:
            logger.info("latentref: %s", self.reasoner.describe())

    def _set_up(self, pretrained: str | PreTrainedModel, **arguments: Any) -> None:
        prepare_processes()
        with one_line_errors(self._plan.backbone.base):
            super().__init__(pretrained, **arguments)
            self.finish_setting_up()

    def refine(self, config: RefinementConfig) -> None:
        """Use `config` from now on, and restart the cost counters.

        If `config` searches, the references must already be loaded. A response cache is no longer
        used, because its answers belong to other settings.
        """
        self._refinement = config
        super().set_cache_hook(CacheHook(None))
        self.reasoner = Reasoner(self.reasoner.loaded, config, max_length=self._max_length)

    # Loading: HFLM opens each base model, so its placement and quantisation options apply to all
    # three models. Then this package loads adapters and raw state dicts.

    def check_backend(self) -> None:
        """Raise LatentRefError unless the backbone is a decoder-only model."""
        if self.backend != "causal":
            raise LatentRefError(
                f"pretrained={self._plan.backbone.base} is a {self.backend} model; latent thoughts "
                "need a decoder-only (causal) language model, such as GPT-2, Llama or Qwen"
            )
        self.AUTO_MODEL_CLASS = StrictAutoModel

    def open_tokenizer(
        self, tokenizer: Any, *, trust_remote_code: bool, use_fast: Any, add_bos_token: Any
    ) -> Any:
        """The given tokenizer or, for None and a name, the tokenizer of the plan's backbone."""
        if tokenizer is not None and not isinstance(tokenizer, str):
            _check_ending(tokenizer, "tokenizer=")
            return tokenizer
        options = {"use_fast": use_fast, "add_bos_token": add_bos_token}
        own = load_tokenizer(
            self._plan.backbone,
            trust_remote_code=trust_remote_code,
            **{name: value for name, value in options.items() if value is not None},
        )
        source = self._plan.backbone
        _check_ending(own, f"the tokenizer of {source.name or source.base}")
        return own

    def open_models(self, arguments: dict[str, Any]) -> None:
        """Load the backbone and, if the search runs, both references."""
        own = loading_arguments()
        hflm = inspect.signature(HFLM.__init__).parameters.keys() - {"self", "kwargs"}
        check_known(arguments.keys() - own, self.config, also=hflm)
        delta = arguments.pop("delta", None)

        def open_base(source: Source) -> PreTrainedModel:
            own = {
                "revision": source.revision or "main",
                "subfolder": source.subfolder,
                "gguf_file": source.gguf_file,
                "delta": delta if source is self._plan.backbone else None,
                "raw_file": source.weights if source.bare else None,
            }
            return self.open_as_hf(source.base, **{**arguments, **own})

        loaded = load_set(
            self._plan,
            load_model=open_base,
            tokenizer=self.tokenizer,
            trust_remote_code=bool(arguments["trust_remote_code"]),
        )
        self._model = loaded.backbone.model
        self.reasoner = Reasoner(loaded, self._refinement, max_length=self._max_length)

    def _take_loaded(self, model: PreTrainedModel) -> None:
        check_model(model, model.name_or_path or type(model).__name__)
        backbone = LoadedModel(
            model=model,
            identity={"name": model.name_or_path or type(model).__name__},
            fingerprint=partial(model_digest, model, self.tokenizer),
        )
        loaded = LoadedSet(tokenizer=self.tokenizer, backbone=backbone)
        self.reasoner = Reasoner(loaded, self._refinement, max_length=self._max_length)

    def barrier(self) -> None:
        """Wait for all processes, and collect their costs in the first process.

        lm-eval calls this in every process after each kind of request. Costs cannot be collected
        while requests are answered, because a process whose answers are all cached answers none.
        """
        super().barrier()
        self._reports = self.gather_object(self.reasoner.accounting.report(), dst=0)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> LatentRefLM:
        """As in lm-eval; also records the arguments, without secrets, for `get_model_info`."""
        model = super().create_from_arg_obj(arg_dict, additional_config)
        model._shown_arguments = without_secrets(arg_dict)
        return model

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's description of the model, with the refinement, checkpoints, data and cost.

        The cost covers the time since the last call or, before the first call, since loading.
        """
        ours = {**self.reasoner.settings(), "data": of_evaluations.report()}
        ours["cost"] = Accounting.of_all(self._reports or [self.reasoner.accounting.report()])
        self._is_reported, self._reports = True, None
        shown = {} if self._shown_arguments is None else {"model_args": self._shown_arguments}
        return {**super().get_model_info(), **shown, "latentref": ours}

    # Scoring.

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each request's continuation after its context and thoughts."""
        self._documents.remember(requests)
        self._check_choices(requests)
        self.check_protocols(requests)
        with self.counting_cost(), self.logging_thoughts(requests):
            return self._loglikelihood(requests, disable_tqdm)

    def _check_choices(self, requests: Sequence[Any]) -> None:
        if self.enable_thinking:
            names = sorted({str(request.task_name) for request in requests})
            raise LatentRefError(
                f"enable_thinking=True with choices ({', '.join(names)}): choices are scored "
                "directly after the prompt, where such a model begins its reasoning; leave it out, "
                "or use tasks that generate text"
            )
        if self._plan.manifest.writes_steps:
            logger.warning(
                "%s was trained to write reasoning steps before its answer, but choices are scored "
                "directly after the thoughts: expect chance level; use the task that generates "
                "text",
                self._plan.backbone.name or self._plan.backbone.base,
            )
        for request in requests:
            if request.args == ("", ""):  # lm-eval would fail on the missing first token
                raise self._no_token(("", ""))

    def _loglikelihood(self, requests: list[Any], disable_tqdm: bool) -> list[tuple[float, bool]]:
        if self.reasoner.markers is None:
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        bar = tqdm(
            [request.args for request in requests], desc="Tokenizing inputs", disable=disable_tqdm
        )
        # The end marker separates context and continuation, so they are encoded separately. HFLM
        # would move spaces at the end of the context to the continuation.
        pairs = [
            (
                (context, continuation),
                self.encode_context(context),
                self.tok_encode(continuation, add_special_tokens=False),
            )
            for context, continuation in bar
        ]
        return self.score_pairs(pairs, disable_tqdm)

    def score_pairs(
        self, requests: Sequence[Request], disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is the greedy one."""
        pairs = self.fit_pairs(requests)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        bar = tqdm(
            total=len(requests),
            disable=disable_tqdm or self.rank != 0,
            desc="Running loglikelihood requests",
        )

        def work(groups: Sequence[Group], max_rows: int) -> list[list[Any]]:
            texts = [requests[group.requests[0]][0][0] for group in groups]

            def record(rows: Sequence[int], num_thoughts: int) -> None:
                self.record_thoughts([texts[row] for row in rows], num_thoughts)

            with self.autocast(), self._documents.naming_rows(texts):
                return self.reasoner.score(
                    [group.context for group in groups],
                    [group.continuations for group in groups],
                    max_rows=max_rows,
                    record=record,
                )

        all_groups = group_by_context(pairs)
        limit = self.row_limit(len(all_groups))
        order = self.reasoner.trunks.in_order([group.context for group in all_groups])
        parts = ([all_groups[number] for number in numbers] for numbers in order)
        batches = (batch for part in parts for batch in in_batches(part, limit=limit, work=work))
        for groups, results in batches:
            for group, scores in zip(groups, results, strict=True):
                for index, score in zip(group.requests, scores, strict=True):
                    answers[index] = (score.log_likelihood, score.is_greedy)
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
                bar.update(len(group.requests))
        bar.close()
        return answers

    def fit_pairs(self, requests: Sequence[Request]) -> list[tuple[Tokens, Tokens]]:
        """(context, continuation) of each request as ids; contexts are cut from the left to fit."""
        empty = (self.prefix_token_id,)
        pairs = [(tuple(context) or empty, tuple(ids)) for _, context, ids in requests]
        # All continuations of a context share its thoughts, so the longest determines the cut.
        longest: dict[Tokens, int] = {}
        for (text, _, _), (context, ids) in zip(requests, pairs, strict=True):
            if not ids:
                raise self._no_token(text)
            longest[context] = max(longest.get(context, 0), len(ids))
        return [
            (self._fit(text, context, len(ids), longest[context]), ids)
            for (text, _, _), (context, ids) in zip(requests, pairs, strict=True)
        ]

    def _fit(self, text: Any, context: Tokens, num_after: int, longest: int) -> Tokens:
        with self._documents.naming_document(text[0]):
            alone = self.cut(context, num_after)
            if not self.reasoner.thinks:
                return alone
            together = self.cut(context, longest)
            if self.uses_cache and len(together) < len(alone):
                raise LatentRefError(
                    "--use_cache with a context that is cut to fit the longest of its choices: "
                    "the answers would depend on which choices are already cached; raise "
                    "max_length or leave --use_cache out"
                )
            return together

    def _no_token(self, text: tuple[str, str]) -> LatentRefError:
        reason = (
            "the choice is empty; with --apply_chat_template no delimiter precedes it"
            if not text[1]
            else "the tokenizer merges all of it into the context's last token; start the choice "
            "with a space or end the context with a line break (target_delimiter)"
        )
        return LatentRefError(
            f"{self._documents.name_of(text[0])}: the choice {text[1]!r} has no tokens of its own "
            f"after {text[0][-30:]!r}, so it has no log-likelihood: {reason}"
        )

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Use a response cache of lm-eval.

        Raises LatentRefError if it has answers of other settings.
        """
        settings = {
            **self.reasoner.settings(),
            **self._decisive,  # the argument dtype replaces the backbone's actual dtype
            "tokenizer": tokenizer_digest(self.tokenizer),
            "attn_implementation": attention_of(self.model),
            "quantization": str(getattr(self.model.config, "quantization_config", None)),
        }
        check_settings(cache_hook, settings)
        super().set_cache_hook(cache_hook)


def _check_ending(tokenizer: Any, label: str) -> None:
    """Raise LatentRefError for a tokenizer without an end-of-sequence token."""
    if tokenizer.eos_token_id is None:
        raise LatentRefError(
            f"{label} has no end-of-sequence token to end answers; add eos_token to its "
            "tokenizer_config.json, or name another tokenizer with tokenizer="
        )


def _check_loaded(model: Any, others: CheckpointNames) -> None:
    """Raise LatentRefError unless `model` is a PreTrainedModel and no `others` are given."""
    if not isinstance(model, PreTrainedModel):
        raise LatentRefError(
            f"pretrained is a loaded {type(model).__name__}, not a PreTrainedModel of "
            "transformers; merge an adapter into it with merge_and_unload(), or give its folder"
        )
    named = dataclasses.asdict(others).items()
    given = ", ".join(name for name, value in named if value and name != "tokenizer")
    if given:
        raise LatentRefError(
            f"pretrained is a loaded {type(model).__name__}, so {given} cannot be given as well; "
            "give the folder or hub id from which it was loaded"
        )
