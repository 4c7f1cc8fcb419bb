"""The loaded models that `Reasoner` takes: a backbone with its tokenizer, and two references.

LoadedSet(tokenizer=tokenizer, backbone=LoadedModel(model=model))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, eq=False)
class ThoughtFiles:
    """What a checkpoint's files hold about its thoughts, apart from options."""

    tensors: Mapping[str, Any] = field(default_factory=dict)
    """The weights of the map from hidden state to thought, under the names that its kind reads."""

    opening: tuple[int, ...] | None = None
    closing: tuple[int, ...] | None = None
    """The ids of the markers before and after the thoughts; None: the tokenizer has them."""

    protocol: str | None = None
    """The protocol that the checkpoint was trained on; None if the files do not say."""

    num_text_ids: int | None = None
    """Generated text has only ids below this number; None: no limit."""


@dataclass(kw_only=True)
class LoadedModel:
    """One model of a set, ready for inference: in eval mode, no parameter requires a gradient."""

    model: Any
    """A PreTrainedModel, or a PeftModel that other members of the set may share."""

    adapter: str | None = None
    """The name of the PEFT adapter to activate; None: the base weights, all adapters disabled."""

    borrowed_ids: frozenset[int] = frozenset()
    """Ids of markers that this model was not trained on; the backbone's embedding rows are used."""

    identity: dict[str, str] = field(default_factory=dict)
    """Names, revisions and commits, for messages and results; "name" is required."""

    fingerprint: Callable[[], str] | None = None
    """Computes a hash of the files from which the model was loaded."""

    thought_files: ThoughtFiles = field(default_factory=ThoughtFiles)

    source: Any = None
    """The `checkpoints.sources.Source` from which it was loaded; `latent` does not read it."""


@dataclass(kw_only=True)
class LoadedSet:
    """A backbone with its tokenizer and, for the search, both references."""

    tokenizer: Any
    backbone: LoadedModel
    strong: LoadedModel | None = None
    weak: LoadedModel | None = None
