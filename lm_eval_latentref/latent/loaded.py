"""What a loader hands to `Reasoner`: a tokenizer, a backbone and, for the search, two references.

LoadedSet(tokenizer=tokenizer, backbone=LoadedModel(model=model))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, eq=False)
class ThoughtFiles:
    """What a checkpoint's files hold of its thoughts, beside the options in latentref.json."""

    tensors: Mapping[str, Any] = field(default_factory=dict)
    """The weights of the map from hidden state to thought, by the names that its kind reads."""

    opening: tuple[int, ...] | None = None
    closing: tuple[int, ...] | None = None
    """Ids around the thoughts; None for those that the kind finds in the tokenizer."""

    protocol: str | None = None
    """What prompt and answer it was trained on, by name; None if the files do not say."""

    num_text_ids: int | None = None
    """Text has ids below this one only; None: no limit."""


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

    thought_files: ThoughtFiles = field(default_factory=ThoughtFiles)

    source: Any = None
    """The names it was loaded by (`checkpoints.sources.Source`), for its loader's use."""


@dataclass(kw_only=True)
class LoadedSet:
    """A backbone with its tokenizer and, if they were given, both references."""

    tokenizer: Any
    backbone: LoadedModel
    strong: LoadedModel | None = None
    weak: LoadedModel | None = None
