"""What a loader hands to `Reasoner`: a backbone with its tokenizer, and both references.

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
    """A PreTrainedModel, or a PeftModel which other members of the set may share."""

    adapter: str | None = None
    """The PEFT adapter to activate; None with a PeftModel: all adapters disabled."""

    borrowed_ids: frozenset[int] = frozenset()
    """Tokens whose embedding row must come from the backbone: markers this model never learnt."""

    identity: dict[str, str] = field(default_factory=dict)
    """Names, revisions and commits."""

    fingerprint: Callable[[], str] | None = None
    """Hash of the files it was read from, computed when asked for; None where it has none."""

    source: Any = None
    """The names it was loaded by (`checkpoints.sources.Source`), for whoever loaded it."""


@dataclass(kw_only=True)
class LoadedSet:
    """The backbone with its tokenizer and, where given, both references."""

    tokenizer: Any
    backbone: LoadedModel
    strong: LoadedModel | None = None
    weak: LoadedModel | None = None
