"""Loads a set of checkpoints and checks that its models fit together.

    plan = resolve(CheckpointNames(pretrained="out/coconut"))
    tokenizer = load_tokenizer(plan.backbone)
    loaded = load_set(plan, load_model=default_loader(dtype="float32"), tokenizer=tokenizer)

Configurations and tokenizers are checked before any weight is read. The caller of `load_set`
passes the function that opens a base model; `load` uses transformers.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lm_eval_latentref.checkpoints import vocabulary
from lm_eval_latentref.checkpoints.adapter_files import Adapter, read_adapter
from lm_eval_latentref.checkpoints.adapters import attach, compute_in_one_dtype
from lm_eval_latentref.checkpoints.arguments import check_device, check_known
from lm_eval_latentref.checkpoints.opening import (
    ModelLoader,
    default_loader,
    has_marker_rows,
    has_tokenizer,
    load_tokenizer,
    open_config,
    open_model,
    open_tokenizer,
)
from lm_eval_latentref.checkpoints.sets import SetPlan, plan_run, take_names
from lm_eval_latentref.checkpoints.sources import Source, describe, fingerprint
from lm_eval_latentref.checkpoints.state_dicts import LORA_ALPHA, RawStateDict, load_raw, read_raw
from lm_eval_latentref.checkpoints.thought_files import thought_files
from lm_eval_latentref.errors import LatentRefError
from lm_eval_latentref.latent.config import OPTION_NAMES
from lm_eval_latentref.latent.loaded import LoadedModel, LoadedSet, ThoughtFiles
from lm_eval_latentref.latent.networks import Network
from lm_eval_latentref.latent.peft_seams import keep_merged_rows
from lm_eval_latentref.latent.protocol import known_markers
from lm_eval_latentref.latent.reasoner import Reasoner
from lm_eval_latentref.latent.transformers_seams import limit_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Facts:
    """A source with everything that can be read without loading the model."""

    role: str
    source: Source
    config: Any
    tokenizer: Any
    """The source's own tokenizer, or None."""

    raw: RawStateDict | None = None
    adapter: Adapter | None = None

    @property
    def label(self) -> str:
        return f"{self.role}={self.source.name or self.source.base}"

    @property
    def base_rows(self) -> int:
        return self.raw.num_rows if self.raw else self.config.get_text_config().vocab_size

    @property
    def num_rows(self) -> int:
        """The number of rows that its input embedding will have after loading."""
        if self.adapter is None:
            return self.base_rows
        own = len(self.tokenizer) if self.source.tokenizer and self.tokenizer is not None else 0
        trained = max(self.adapter.trained_ids, default=-1) + 1
        return self.adapter.known_rows or max(self.base_rows, own, trained)

    @property
    def is_exact(self) -> bool:
        """Whether its adapter has or adapts a whole embedding, so that `num_rows` is mandatory."""
        return self.adapter is not None and self.adapter.exact_rows is not None

    @property
    def trains_rows(self) -> bool:
        """Whether its adapter trained individual rows of the embedding."""
        return self.adapter is not None and bool(self.adapter.trained_ids)


def load(
    pretrained: str | SetPlan | None = None,
    *,
    device: str | None = None,
    max_length: int | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> Reasoner:
    """Load a set of checkpoints by name; the arguments are those of `lm_eval --model latentref`.

    Args:
        pretrained: the name of the backbone, or a plan returned by `resolve`; None: the packaged
            set smollm2-135m.
        device: the device of all models; None: the GPU if there is one. Not used with `device_map`.
        max_length: the maximum number of columns; None: the limit in the backbone's configuration.
        trust_remote_code: whether code in the checkpoints may run.
        options: other names of checkpoints (`strong`, `weak`, `weights`, ...: the fields of
            `CheckpointNames`), the fields of `RefinementConfig`, and arguments of `from_pretrained`
            (`dtype`, `device_map`, `attn_implementation`, ...).

    Raises:
        LatentRefError: an argument cannot be used; the message gives the argument and the reason.
    """
    started = time.perf_counter()
    refinement = {name: options.pop(name) for name in OPTION_NAMES if name in options}
    plan, config = plan_run(take_names(pretrained, options), refinement)
    if not isinstance(trust_remote_code, bool):
        raise LatentRefError(f"trust_remote_code={trust_remote_code}: it must be True or False")
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise LatentRefError(f"max_length={max_length}: it must be an integer >= 1")
    check_known(options, open_config(plan.backbone, "pretrained", trust_remote_code))
    loading = {"dtype": "auto", "trust_remote_code": trust_remote_code, **options}
    if "device_map" not in loading:
        if device is not None:
            check_device(device)
        loading["device_map"] = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_set(
        plan,
        load_model=default_loader(**loading),
        tokenizer=load_tokenizer(plan.backbone, trust_remote_code=trust_remote_code),
        trust_remote_code=trust_remote_code,
    )
    reasoner = Reasoner(loaded, config, max_length=max_length)
    reasoner.accounting.loaded(time.perf_counter() - started)
    return reasoner


def load_set(
    plan: SetPlan, *, load_model: ModelLoader, tokenizer: Any, trust_remote_code: bool = False
) -> LoadedSet:
    """Checks and loads the set of `plan`; models with the same base share it in memory.

    Args:
        load_model: opens a base model.
        tokenizer: the backbone's tokenizer, from `load_tokenizer`.

    Raises:
        LatentRefError: the models cannot be used together. Most checks come before any weight is
            read.
    """
    facts = _read_facts(plan, tokenizer, trust_remote_code)
    _check_set(facts, tokenizer)
    files = thought_files(plan, facts["pretrained"].raw, facts["pretrained"].config)
    loaded: dict[str, LoadedModel] = {}
    for members in _groups(list(facts.values())):
        loaded.update(_load_group(members, load_model))
    for member in loaded.values():
        if member.adapter is not None:
            compute_in_one_dtype(member.model)
    loaded["pretrained"].thought_files = files
    if files.num_text_ids is not None:
        limit_text(Network(loaded["pretrained"].model).causal_lm, files.num_text_ids)
    marker_ids = frozenset([*(files.opening or ()), *(files.closing or ())])
    for role in facts.keys() - {"pretrained"}:
        borrowed = _borrowed_ids(facts[role], tokenizer, trust_remote_code)
        loaded[role].borrowed_ids = borrowed | marker_ids
        if loaded[role].borrowed_ids:
            ids = sorted(loaded[role].borrowed_ids)
            logger.info("%s uses the backbone's embeddings of tokens %s", facts[role].label, ids)
    return LoadedSet(
        tokenizer=tokenizer,
        backbone=loaded["pretrained"],
        strong=loaded.get("strong"),
        weak=loaded.get("weak"),
    )


def read_thought_files(plan: SetPlan, trust_remote_code: bool = False) -> ThoughtFiles:
    """The thought-related data in the backbone's files; its weights are not loaded."""
    facts = _read("pretrained", plan.backbone, None, trust_remote_code)
    return thought_files(plan, facts.raw, facts.config)


def check_set(
    plan: SetPlan, *, tokenizer: Any, trust_remote_code: bool = False
) -> dict[str, frozenset[int]]:
    """Checks the set of `plan` as `load_set` does, without loading weights.

    Returns the `borrowed_ids` of each reference, by its role.
    """
    facts = _read_facts(plan, tokenizer, trust_remote_code)
    _check_set(facts, tokenizer)
    return {
        role: _borrowed_ids(member, tokenizer, trust_remote_code)
        for role, member in facts.items()
        if role != "pretrained"
    }


def load_alone(
    source: Source, *, load_model: ModelLoader, trust_remote_code: bool = False
) -> LoadedModel:
    """Loads one checkpoint of a set, with a base model that is not shared."""
    facts = _read("pretrained", source, None, trust_remote_code)
    return _load_group([facts], load_model)["pretrained"]


def _read_facts(plan: SetPlan, tokenizer: Any, trust_remote_code: bool) -> dict[str, _Facts]:
    sources = {"pretrained": plan.backbone, "strong": plan.strong, "weak": plan.weak}
    return {
        role: _read(role, source, tokenizer if role == "pretrained" else None, trust_remote_code)
        for role, source in sources.items()
        if source is not None
    }


def _read(role: str, source: Source, tokenizer: Any, trust_remote_code: bool) -> _Facts:
    """Reads configuration, tokenizer, adapter and raw state dict of `source`.

    Args:
        tokenizer: the tokenizer of `source` if it is already open; else None.
    """
    config = open_config(source, role, trust_remote_code)
    adapter = raw = None
    if source.adapter is not None:
        adapter = read_adapter(source.adapter, config, trust_remote_code)
    if source.weights is not None:
        raw = read_raw(source.weights, config, trust_remote_code)
    elif tokenizer is None and has_tokenizer(source):
        tokenizer = open_tokenizer(source, trust_remote_code)
    return _Facts(role, source, config, tokenizer, raw, adapter)


def _check_set(facts: dict[str, _Facts], tokenizer: Any) -> None:
    """Raises LatentRefError unless hidden sizes and vocabularies fit together."""
    backbone = facts["pretrained"]
    for marker, token_id in known_markers(tokenizer).items():
        if token_id >= backbone.num_rows:
            raise LatentRefError(
                f"{backbone.label} has {backbone.num_rows} embedding rows, but {marker} has id "
                f"{token_id} in its tokenizer; give the tokenizer or the weights that belong to it"
            )
    for member in facts.values():
        if member.raw is not None:
            has_marker_rows(member.raw, member.config, tokenizer)
        configs = (backbone.config, member.config)
        sizes = [config.get_text_config().hidden_size for config in configs]
        if sizes[0] != sizes[1]:
            raise LatentRefError(
                f"{backbone.label} has hidden size {sizes[0]} but {member.label} has {sizes[1]}; "
                "references must have the backbone's hidden size"
            )
        if member is not backbone and member.tokenizer is not None:
            names = (backbone.label, member.label)
            vocabulary.check_same_ids(names, tokenizer, member.tokenizer)
        elif member.num_rows < vocabulary.num_plain(tokenizer) and member.adapter is None:
            raise LatentRefError(
                f"{member.label} has {member.num_rows} embedding rows, fewer than the "
                f"{vocabulary.num_plain(tokenizer)} tokens of {backbone.label}; give a checkpoint "
                "trained from the same base"
            )


def _borrowed_ids(member: _Facts, tokenizer: Any, trust_remote_code: bool) -> frozenset[int]:
    """The ids of the backbone's markers for which this reference has no own embedding row."""
    own = known_markers(member.tokenizer) if member.tokenizer is not None else {}
    base = own
    if member.adapter is not None:
        plain = dataclasses.replace(member.source, adapter=None, tokenizer=None)
        has_own = member.raw is None and has_tokenizer(plain)
        base_tokenizer = open_tokenizer(plain, trust_remote_code) if has_own else None
        base = known_markers(base_tokenizer) if base_tokenizer is not None else {}
    raw = member.raw is not None and has_marker_rows(member.raw, member.config, tokenizer)

    def is_own(marker: str, token_id: int) -> bool:
        if member.adapter is not None and member.adapter.trains(token_id):
            return True
        if member.adapter is not None and marker in own and member.adapter.carries(token_id):
            return True
        return raw or (marker in base and token_id < member.base_rows)

    markers = known_markers(tokenizer).items()
    return frozenset(token_id for marker, token_id in markers if not is_own(marker, token_id))


def _groups(facts: list[_Facts]) -> list[list[_Facts]]:
    """Groups of members that can share one base model, with as many rows as the first needs.

    References are only read for hidden states, so their base may have more rows than they need.
    The backbone's base may not have additional rows, because they would change its probabilities.
    PEFT does not combine adapters of individual rows with adapters of the whole embedding.
    """
    groups: list[list[_Facts]] = []
    for member in facts:
        for group in groups:
            if group[0].source.base_key == member.source.base_key and _fits(group, member):
                group.append(member)
                break
        else:
            groups.append([member])
    return groups


def _fits(group: list[_Facts], member: _Facts) -> bool:
    mixes = any(
        (member.is_exact and other.trains_rows) or (member.trains_rows and other.is_exact)
        for other in group
    )
    fewer = member.num_rows < group[0].num_rows and not member.is_exact
    adapters = [facts.adapter for facts in (*group, member) if facts.adapter is not None]
    kinds = {adapter.config["peft_type"] for adapter in adapters}
    return len(kinds) < 2 and not mixes and (fewer or member.num_rows == group[0].num_rows)


def _contiguous(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # `generate` passes the last column, a strided slice, to the head. If no weight requires a
    # gradient, torch then multiplies a batch of matrices and copies the whole head for each row.
    return inputs[0].contiguous(), *inputs[1:]


def _load_group(members: list[_Facts], load_model: ModelLoader) -> dict[str, LoadedModel]:
    """Opens the base model of a group and adds the raw weights and adapters of its members."""
    leader = members[0]
    model = open_model(load_model, leader.source)
    if leader.raw is not None:
        load_raw(leader.raw, model, leader.source.lora_alpha or LORA_ALPHA)
    names = {"pretrained": "backbone", "strong": "strong", "weak": "weak"}
    adapters = {names[facts.role]: facts.adapter for facts in members if facts.adapter is not None}
    if adapters:
        model = attach(model, adapters, leader.num_rows, is_shared=len(members) > 1)
    model.requires_grad_(False)
    model.eval()
    if adapters:
        keep_merged_rows(model)
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(_contiguous)
    return {
        member.role: LoadedModel(
            model=model,
            adapter=names[member.role] if member.adapter is not None else None,
            identity=describe(member.source),
            fingerprint=partial(fingerprint, member.source),
            source=member.source,
        )
        for member in members
    }
