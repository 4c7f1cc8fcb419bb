"""The questions that the thought loop asks a kind of thought.

    class Continuous(Kind):
        name = "continuous"
        is_identity = True

        def vector(self, state):
            return state.hidden_BD

Shape suffixes: B batch, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lm_eval_latentref.latent.networks import Network


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What a kind can be made from."""

    network: Network
    tokenizer: Any


@dataclass(frozen=True, kw_only=True)
class State:
    """The backbone at the last column read, and what is known beside it."""

    network: Network
    num_rows: int
    hidden: Tensor | None
    """The final hidden state (B, D) in float32; None for kinds that do not ask for it."""

    @property
    def hidden_BD(self) -> Tensor:
        assert self.hidden is not None, "this kind reads no hidden state"
        return self.hidden


class Kind(ABC):
    """A kind of thought, frozen: the vector fed next as a function of the state before it."""

    name: ClassVar[str]
    """What `latent_kind` calls it."""

    reads_state: ClassVar[bool] = True
    """Whether the vector depends on the hidden state; if not, all thoughts are read in one pass."""

    is_identity: ClassVar[bool] = False
    """Whether the vector is the hidden state itself."""

    why_not_refined: ClassVar[str] = ""
    """Why memory rate and search have no meaning for it; empty where they have."""

    @classmethod
    @abstractmethod
    def of(cls, materials: Materials) -> Kind:
        """The kind for one backbone; raises LatentRefError if it cannot serve."""

    @abstractmethod
    def vector(self, state: State) -> Tensor:
        """The vector (B, D) that is fed next, before it is refined."""
