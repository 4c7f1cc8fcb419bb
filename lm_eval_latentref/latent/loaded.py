"""What a loader hands to `Reasoner`: a tokenizer, a backbone and, for the search, two references.

LoadedSet(tokenizer=tokenizer, backbone=LoadedModel(model=model))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class LoadedModel:
    """One model of a set, ready for inference: eval mode, no parameter requires a gradient."""

    model: Any
    """A PreTrainedModel, or a PeftModel that other members of the set may share."""

    adapter: str | None = None
    """The PEFT adapter to activate; None with a PeftModel: all adapters disabled."""

    borrowed_ids: frozenset[int] = frozenset()
    """Tokens whose embedding rows come from the backbone: markers this model was not trained on."""

    identity: dict[str, str] = field(default_factory=dict)
    """Names, revisions and commits."""

    fingerprint: Callable[[], str] | None = None
    """Returns a hash of the files the model was read from, computed on the call."""

    source: Any = None
    """The names it was loaded by (`checkpoints.sources.Source`), for its loader's use."""


@dataclass(kw_only=True)
class LoadedSet:
    """A backbone with its tokenizer and, if they were given, both references."""

    tokenizer: Any
    backbone: LoadedModel
    strong: LoadedModel | None = None
    weak: LoadedModel | None = None
